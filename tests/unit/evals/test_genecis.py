"""R@k in galleries: loops, properties, and what a model finds that reads a picture and a text."""

import json

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch.nn.functional import normalize

import vlalign
from tests.unit.evals.fakes import COLOURS, ColourModel
from tests.unit.infer.mined import write
from vlalign.data.sources.genecis import cropped
from vlalign.evals.conditional import recalls
from vlalign.evals.metrics.ranks import hits, of_galleries, recall
from vlalign.models.weights import save
from vlalign.registry import EVALUATORS, MODELS, SOURCES
from vlalign.types import BadRow, DataError, Item, Limits, UserError


def galleries(count=400, size=7, seed=0):
    random = torch.Generator().manual_seed(seed)
    scores = torch.randn(count, size, generator=random, dtype=torch.float64)
    return scores, torch.randint(size, (count,), generator=random)


def test_a_recall_is_that_of_a_loop_and_a_gallery_may_be_shorter():
    scores, right = galleries()
    sizes = [3 + at % 5 for at in range(len(scores))]
    some = [own[:size] for own, size in zip(scores, sizes, strict=True)]
    places = [int(place) % size for place, size in zip(right, sizes, strict=True)]
    ranks = of_galleries(some, places)
    for k in (1, 2, 3):
        found = 0
        for own, place in zip(some, places, strict=True):
            found += sum(score > own[place] for score in own) < k
        assert recall(ranks, k) == pytest.approx(found / len(some))


def test_recalls_grow_with_k_and_reach_one_and_chance_is_k_of_g():
    scores, right = galleries(20_000)
    found = [recall(of_galleries(scores, right.tolist()), k) for k in range(1, 8)]
    assert found == sorted(found) and found[-1] == 1.0
    assert found == pytest.approx([k / 7 for k in range(1, 8)], abs=0.012)
    level = of_galleries(torch.zeros(5, 7), [0] * 5)
    assert [recall(level, k) for k in (1, 2, 3)] == pytest.approx([1 / 7, 2 / 7, 3 / 7])


def test_the_order_of_a_gallery_changes_nothing():
    scores, right = galleries()
    order = torch.stack([torch.randperm(7, generator=torch.Generator().manual_seed(at)) for at in range(400)])
    moved = (order == right[:, None]).int().argmax(1)
    own = of_galleries(scores, right.tolist())
    assert torch.equal(hits(own, 2), hits(of_galleries(scores.gather(1, order), moved.tolist()), 2))


def test_the_sum_of_scores_ranks_as_the_sum_of_rows():
    torch.manual_seed(0)
    image, text = (normalize(torch.randn(50, 8, dtype=torch.float64), dim=1) for _ in range(2))
    gallery = normalize(torch.randn(50, 6, 8, dtype=torch.float64), dim=2)
    both = normalize(image + text, dim=1)
    scores = [torch.einsum("qd,qgd->qg", each, gallery) for each in (both, image, text)]
    found = recalls(list(torch.stack(scores, 2)), [at % 6 for at in range(50)])
    for k in (1, 2, 3):
        assert found[f"R@{k}"] == found[f"sum_R@{k}"] != found[f"text_R@{k}"]


@pytest.fixture
def folder(tmp_path):
    """Pictures of two colours each; a box of an attribute is their right half."""
    for at, left in enumerate(COLOURS.values()):
        for right_at, right in enumerate(COLOURS.values()):
            image = Image.new("RGB", (20, 10), left)
            image.paste(right, (10, 0, 20, 10))
            image.save(tmp_path / f"{4 * at + right_at:012d}.jpg", quality=100, subsampling=0)
            image.save(tmp_path / f"{4 * at + right_at}.jpg", quality=100, subsampling=0)
    return tmp_path


def of_object(place):
    return {"val_image_id": place}


def of_box(place):
    return {"image_id": place, "instance_bbox": [10, 0, 10, 10], "object_name": "thing"}


def task(folder, name, shown):
    rows = [
        {"condition": "blue", "reference": shown(0), "target": shown(2), "gallery": [shown(5), shown(15)]},
        {"condition": "red", "reference": shown(5), "target": shown(4), "gallery": [shown(0), shown(10)]},
    ]
    (folder / f"{name}.json").write_text(json.dumps(rows))
    return {"name": "genecis", "path": str(folder / f"{name}.json"), "images": str(folder)}


def evaluator(**fields):
    return EVALUATORS.decode({"name": "genecis", "dataset": "own", **fields})


class Model(ColourModel):
    """Reads both as the sum of their rows, and hears how often it is asked."""

    def score(self, queries, candidates):
        return [self.row(query) @ self.rows(own).T for query, own in zip(queries, candidates, strict=True)]

    def rows(self, items):
        return torch.stack([self.row(each) for each in items])

    def row(self, item):
        item = Item(text=item) if isinstance(item, str) else item
        shown = [self.encode_image([image.resize((1, 1), Image.Resampling.BOX)])[0] for image in item.images]
        said = [self.encode_text([item.text])[0]] if item.text else []
        return normalize(sum([*shown, *said]), dim=0)


def test_a_task_is_read_and_measured_by_its_parts_and_as_a_whole(folder):
    tasks = {"focus_object": task(folder, "o", of_object), "focus_attribute": task(folder, "a", of_box)}
    source = SOURCES.decode(tasks["focus_object"]).build()
    row = source[0]
    assert row["query"].text == "blue" and row["query"].images == (folder / f"{0:012d}.jpg",)
    assert [each.images[0].name for each in row["candidates"]] == [f"{at:012d}.jpg" for at in (2, 5, 15)]
    assert row["numbers"]["label"] == [1.0, 0.0, 0.0]
    first, second, mean = evaluator(tasks=tasks)(Model(), Limits())
    assert [first.dataset, second.dataset, mean.dataset] == ["own/focus_object", "own/focus_attribute", "own"]
    assert first.metrics["R@1"] == first.metrics["sum_R@1"] == 1.0 and first.metrics["R@3"] == 1.0
    assert first.chance["text_R@2"] == pytest.approx(2 / 3)
    for name, value in mean.metrics.items():
        assert value == pytest.approx((first.metrics[name] + second.metrics[name]) / 2)
    assert first.exhibits["rows"]["used"] == 2 and first.exhibits["queries"]["R@1"] == [1.0, 1.0]


def test_a_dual_encoder_without_a_combiner_ranks_as_the_sum_of_its_parts(folder):
    asked = evaluator(tasks={"a": task(folder, "a", of_box)})
    found = asked(vlalign.load("recipes/tiny/open_clip"), Limits())[0].exhibits["queries"]
    for k in (1, 2, 3):
        assert found[f"R@{k}"] == found[f"sum_R@{k}"]


def test_a_combiner_ranks_by_its_head_and_each_part_by_its_encoder(folder, tmp_path):
    """Every picture of the folder is a reference, with each colour: no agreement comes by chance."""
    shown = [of_object(at) for at in range(16)]
    rows = [
        {
            "condition": colour,
            "reference": shown[at],
            "target": shown[(at + 3) % 16],
            "gallery": [shown[(at + step) % 16] for step in (1, 2, 4, 5, 6)],
        }
        for at in range(16)
        for colour in COLOURS
    ]
    (folder / "all.json").write_text(json.dumps(rows))
    told = {"name": "genecis", "path": str(folder / "all.json"), "images": str(folder)}
    torch.manual_seed(0)
    encoder = "local-dir:recipes/tiny/open_clip"
    spec = {"name": "combiner", "encoder": encoder, "projection": 16, "hidden": 16}
    save(MODELS.decode(spec).build(), tmp_path / "model")
    model, source = vlalign.load(tmp_path / "model", device="cpu"), SOURCES.decode(told).build()
    found = evaluator(tasks={"a": told})(model, Limits())[0].exhibits["queries"]
    combiner = model.model
    for at in range(len(source)):
        row = source[at]
        text = model.encode_text([row["query"].text])
        image = model.encode_image([Image.open(row["query"].images[0])])
        gallery = model.encode_image([Image.open(each.images[0]) for each in row["candidates"]])
        both = normalize(combiner.head(text, image), dim=1)
        for way, query in (("", both), ("picture_", image), ("text_", text), ("sum_", image + text)):
            right, *wrong = (gallery @ query[0]).tolist()
            above = sum(score >= right for score in wrong)
            for k in (1, 2, 3):
                assert found[f"{way}R@{k}"][at] == float(above < k)
    ways = ("R@1", "picture_R@1", "text_R@1", "sum_R@1")
    assert len({tuple(found[name]) for name in ways}) == len(ways)


def test_a_box_is_cut_with_what_is_left_of_it_and_above_and_made_a_square():
    image = Image.new("RGB", (100, 50), "white")
    image.paste("red", (50, 20, 60, 40))
    found = cropped(image, (50.0, 20.0, 10.0, 20.0))  # 7 more on the left, 14 above
    assert found.size == (34, 34)  # 17 x 34 in a square
    inside = found.crop((8, 0, 25, 34))
    assert inside.getpixel((6, 13)) == (255, 255, 255) and inside.getpixel((7, 14)) == (255, 0, 0)
    assert inside.getpixel((16, 33)) == (255, 0, 0) and found.getpixel((7, 5)) == (0, 0, 0)
    assert cropped(image, (0.0, 0.0, 100.0, 50.0)).size == (100, 100)
    with pytest.raises(BadRow, match="a box of"):
        cropped(image, (200.0, 20.0, 10.0, 20.0))


def test_bad_rows_are_skipped_and_counted(folder):
    good = {"condition": "blue", "reference": of_box(0), "target": of_box(2), "gallery": [of_box(5)]}
    bad = [
        {**good, "condition": " "},
        {**good, "reference": None},
        {**good, "target": {"image_id": 3}},
        {**good, "gallery": 3},
        {**good, "target": of_box(99)},
    ]
    (folder / "rows.json").write_text(json.dumps([good, *bad]))
    told = {"name": "genecis", "path": str(folder / "rows.json"), "images": str(folder)}
    source = SOURCES.decode(told).build()
    skipped = {reason: len(ids) for reason, ids in source.skipped.items()}
    assert skipped == {"no_text": 1, "no_picture": 1, "no_box": 1, "not_a_list": 1}
    row = evaluator(tasks={"a": told})(Model(), Limits())[0]
    assert row.exhibits["rows"]["used"] == 1
    assert row.exhibits["rows"]["skipped"] == {**skipped, "missing_file": 1}


def test_what_cannot_be_measured_is_refused_with_a_sentence(folder):
    for fields, told in (
        ({"tasks": {}}, "there is none"),
        ({"tasks": {"a": {"name": "jsonl", "path": "x"}}}, "queries with candidates: a"),
        ({"tasks": {"a": task(folder, "a", of_box)}, "limit": 0}, "limit must be >= 1"),
    ):
        with pytest.raises(ValidationError, match=told):
            evaluator(**fields)
    shown = [{"image": "0.jpg", "label": 1}, {"image": "1.jpg", "label": 1}]
    both = {"id": "q", "query": {"text": "red", "image": "0.jpg"}, "candidates": shown}
    path = str(write(folder / "both.jsonl", [both]))
    with pytest.raises(DataError, match="'q' has 2 right candidates"):
        evaluator(tasks={"a": {"name": "candidates", "path": path}})(Model(), Limits())
    path = str(write(folder / "text.jsonl", [{**both, "query": "red"}]))
    with pytest.raises(DataError, match="each query must have a picture and a text"):
        evaluator(tasks={"a": {"name": "candidates", "path": path}})(Model(), Limits())

    class Lost(Model):
        def row(self, item):
            return super().row(item) * torch.nan

    with pytest.raises(UserError, match="a score is not finite"):
        evaluator(tasks={"a": task(folder, "a", of_box)})(Lost(), Limits())
