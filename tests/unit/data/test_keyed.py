"""Queries and candidates for a dual encoder: loops say what the losses are, and chunks change none."""

import json
import math

import pytest
import torch

import vlalign
from tests.multimodal_models import picture
from tests.unit.infer.mined import lines, write
from vlalign.data.hashing import hash63
from vlalign.data.keyed import ItemSide, KeyedCandidates, check, content, kinds
from vlalign.data.sampler import Order
from vlalign.models.embedder import DualEncoderEmbedder
from vlalign.recipe.decode import load_recipe
from vlalign.registry import SAMPLERS, SOURCES, TASKS
from vlalign.train.loop import train
from vlalign.types import BadRow, Item, RecipeError

TINY, ROWS = "recipes/tiny/open_clip", "recipes/tiny/candidates.jsonl"
UNIME = {
    "objective": {"name": "kl", "direction": "symmetric", "target_temperature": 0.02},
    "targets": {"name": "given", "field": "judge_score"},
    "selectors": ["own_candidates"],
}
TASK = {"targets": {"name": "identity", "same": ["row", "document"]}, "directions": ["query_to_key"]}


def chunk(source, count=6, **sides):
    model = vlalign.load(TINY).model
    process = dict(zip(("image", "text"), model.processors(), strict=True))
    query, key = (ItemSide(kind=kind, process=process[kind], **sides) for kind in kinds(source))
    order = Order(sampler=SAMPLERS.decode("random"), rows=len(source), batch=count, seed=0)
    chunks = KeyedCandidates(source=source, order=order, query=query, key=key, known_bad={})
    drawn = [chunks.draw(at, 0) for at in range(count)]
    return model, drawn, chunks.collate(drawn)


@pytest.fixture(scope="module")
def source():
    return SOURCES.decode({"name": "candidates", "path": ROWS, "positives": 1, "negatives": 3}).build()


def test_each_query_meets_every_drawn_candidate_but_copies_of_its_own(source):
    model, drawn, batch = chunk(source, 30)
    task = TASKS.decode({"name": "align", **TASK, "terms": [{"objective": "info_nce"}]})
    with torch.no_grad():
        features = model(batch)
    found = task.loss(features, batch, 1, 1).total
    keys = [(text, good) for row in drawn for text, good in zip(row["keys"], row["right"], strict=True)]
    assert len({text for text, _ in keys}) < len(keys) == 120  # some are candidates of several queries
    live = DualEncoderEmbedder(model)
    query = live.encode_text([row["query"] for row in drawn]).double()
    key = live.encode_text([text for text, _ in keys]).double()
    scale, total = features.scale.double().item(), 0.0
    for at, row in enumerate(drawn):
        [own] = [text for text, good in zip(row["keys"], row["right"], strict=True) if good]
        logits = [scale * float(query[at] @ each) for each in key]
        positives = [x for x, (text, _) in zip(logits, keys, strict=True) if text == own]
        whole = math.log(sum(math.exp(x) for x in logits))
        total += sum(whole - x for x in positives) / len(positives)
    assert found.item() == pytest.approx(total, rel=1e-5)


def test_a_judges_opinion_is_learned_over_a_querys_own_candidates_alone(source):
    model, drawn, batch = chunk(source)
    task = TASKS.decode({"name": "align", **TASK, "terms": [UNIME]})
    with torch.no_grad():
        features = model(batch)
    found = task.loss(features, batch, 1, 1).total
    live, total = DualEncoderEmbedder(model), 0.0
    for row in drawn:
        [cosines] = live.score([row["query"]], [row["keys"]])
        student = (features.scale.double() * cosines.double()).softmax(0)
        judge = (torch.tensor(row["numbers"]["judge_score"]).double() / 0.02).softmax(0)
        for p, q in zip(student.tolist(), judge.tolist(), strict=True):
            total += (p - q) * (math.log(p) - math.log(q)) / 2
    assert found.item() == pytest.approx(total, rel=1e-4)


def test_fields_say_whose_a_key_is_what_it_says_and_whether_it_is_right(source):
    _, drawn, batch = chunk(source)
    query, key = batch["query_fields"], batch["key_fields"]
    whose = [row["id"] for row in drawn for _ in row["keys"]]
    assert key["query"].tolist() == [hash63(each) for each in whose]
    assert query["row"].tolist() == query["query"].tolist() == [hash63(row["id"]) for row in drawn]
    right = [good for row in drawn for good in row["right"]]
    assert (key["row"] == key["query"]).tolist() == right
    assert not set(key["row"][~torch.tensor(right)].tolist()) & set(query["row"].tolist())
    assert query["document"].tolist() == key["document"][torch.tensor(right)].tolist()
    assert key["label"].tolist() == [float(good) for good in right]


def test_a_document_is_alike_where_it_says_or_shows_the_same():
    assert content(Item(text="A  cat")) == content(Item(text="a cat")) != content(Item(text="a dog"))
    same = [content(Item(images=(picture(0).copy(),))) for _ in range(2)]
    assert same[0] == same[1] != content(Item(images=(picture(1),)))


def test_what_is_not_what_all_others_are_is_a_bad_row():
    assert check(Item(text="a"), "text") == "a" and check(Item(images=("p",)), "image") == "p"
    for item, kind in (
        (Item(text="a"), "image"),
        (Item(images=("p",)), "text"),
        (Item(images=("p", "q")), "image"),
    ):
        with pytest.raises(BadRow, match="here each is one"):
            check(item, kind)


def recipe(tmp_path, name, *overrides):
    told = [f"out={tmp_path / name}", "log.trackers=[]", *overrides]
    return load_recipe("recipes/tiny/unime_v2.yaml", told)


def losses(out):
    return [line["loss"] for line in lines(out / "log.jsonl")[1:]]


def test_chunks_change_nothing(tmp_path):
    one = losses(train(recipe(tmp_path, "one", "data.chunk=8")))
    assert losses(train(recipe(tmp_path, "four", "data.chunk=2"))) == pytest.approx(one, rel=1e-5)
    assert one[0] != one[2]


@pytest.fixture
def pictures(tmp_path):
    """Rows of a picture and texts, one of them torn."""
    rows = []
    for at in range(12):
        picture(at).save(tmp_path / f"{at}.png")
        texts = [{"text": f"a {word} cat", "label": int(word == at % 4)} for word in range(4)]
        rows.append({"id": f"q{at}", "query": {"image": f"{at}.png"}, "candidates": texts})
        for each in texts:
            each["judge_score"] = 0.9 if each["label"] else 0.2
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:50])
    return write(tmp_path / "rows.jsonl", rows)


def test_features_that_are_kept_teach_the_same(tmp_path, pictures, monkeypatch):
    monkeypatch.setenv("VLALIGN_CACHE", str(tmp_path / "cache"))
    towers = {
        "name": "dual_encoder",
        "image": {
            "name": "timm",
            "id": "test_efficientnet",
            "pretrained": False,
            "image_size": 32,
            "lock": True,
        },
        "text": {"name": "hf_text", "id": "recipes/tiny/hf_text", "pretrained": False, "lock": True},
        "dim": 16,
    }
    changes = [f"model={json.dumps(towers)}", f"data.train.path={pictures}", "data.train.negatives=2"]
    runs = {
        kept: train(recipe(tmp_path, f"kept-{kept}", *changes, f"feature_cache={json.dumps(kept)}"))
        for kept in (True, False)
    }
    assert losses(runs[True]) == pytest.approx(losses(runs[False]), rel=1e-5)
    for out in runs.values():
        assert sum(line["bad_rows"] for line in lines(out / "log.jsonl")[1:]) >= 1  # the torn one


def test_what_is_for_pairs_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="data.augment is for pairs, and data.train holds candidates"):
        recipe(tmp_path, "a", "data.augment.scale=[0.5, 1.0]")
    with pytest.raises(
        RecipeError, match="it reads the field 'caption', and queries and candidates have row"
    ):
        train(recipe(tmp_path, "b", "task.targets.same=[row, caption]"))
    with pytest.raises(RecipeError, match="selectors: \\[own_candidates\\]"):
        recipe(tmp_path, "c", "task.terms.0.selectors=[]")
    own = "[{objective: barlow}]"
    with pytest.raises(RecipeError, match="task.embedding_terms: they are for pairs"):
        train(recipe(tmp_path, "d", f"task.embedding_terms={own}"))
