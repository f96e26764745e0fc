import weakref
from base64 import b64decode
from io import BytesIO

import pytest
from PIL import Image

from tests.unit.evals.fakes import COLOURS, ColourModel, Rows, Spec
from vlalign.evals.evaluators.embedding_health import EmbeddingHealth
from vlalign.evals.evaluators.linear_probe import LinearProbe
from vlalign.evals.evaluators.retrieval import Retrieval
from vlalign.evals.evaluators.zero_shot import ZeroShot
from vlalign.evals.reading import AHEAD
from vlalign.types import BadRow, DataError, Limits


def source(**more):
    names = ["red", "green", "blue", "white"]
    rows = [
        {"image": COLOURS[name], "captions": (f"a {name} thing", f"{name}!"), "concept": name}
        for name in names
    ]
    return Rows([*rows, {"image": None, "captions": ("lost",), "concept": "lost"}], **more)


def measure(source, **fields):
    return Retrieval(data=Spec(source), dataset="fake/set", **fields)(ColourModel(), Limits())[0]


def test_a_model_that_sees_gets_everything_and_bad_rows_are_counted():
    row = measure(source(skipped={"empty_caption": ["x", "y"]}))
    assert (row.dataset, row.task) == ("fake/set", "zeroshot_retrieval")
    for direction in ("text_to_image", "image_to_text"):
        assert row.metrics[f"{direction}_R@1"] == 1.0 and row.metrics[f"{direction}_median_rank"] == 1.0
    assert row.chance["text_to_image_R@1"] == pytest.approx(1 / 4)
    assert row.chance["image_to_text_R@1"] == pytest.approx(2 / 8)
    assert row.chance["image_to_text_R@5"] == pytest.approx(1 - 6 / 56)  # C(6, 5) / C(8, 5) have no right one
    assert set(row.chance) == set(row.metrics)
    assert row.exhibits["rows"]["used"] == 4
    assert row.exhibits["rows"]["skipped"] == {"empty_caption": 2, "truncated": 1}


def test_what_counts_as_right_is_the_recipes_choice():
    twins = Rows(
        [
            {"image": COLOURS["red"], "captions": ("Red ", "warm red"), "concept": "a"},
            {"image": COLOURS["red"], "captions": ("red",), "concept": "b"},
            {"image": COLOURS["blue"], "captions": ("blue",), "concept": "a"},
        ]
    )
    assert measure(twins).metrics["text_to_image_R@1"] == pytest.approx((0.5 + 0.5 + 0.5 + 1) / 4)
    assert measure(twins, same="caption").metrics["text_to_image_R@1"] == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert measure(twins, same="concept").metrics["text_to_image_R@1"] == pytest.approx(
        (0.5 + 0.5 + 0.5 + 1) / 4
    )


def test_one_threshold_for_all_queries_is_measured_where_negatives_are_asked_for():
    assert not [name for name in measure(source()).metrics if name.endswith(("auc", "f1", "threshold"))]
    row = measure(source(), negatives=500)
    for direction in ("text_to_image", "image_to_text"):
        assert row.metrics[f"{direction}_auc"] == row.metrics[f"{direction}_f1"] == 1.0
        assert row.metrics[f"{direction}_threshold"] == pytest.approx(1, abs=1e-5)
        assert row.chance[f"{direction}_auc"] == 0.5
    assert row.chance["text_to_image_f1"] == pytest.approx(2 * 8 / (2 * 8 + 24))  # 8 right of 32 pairs
    fewer = measure(source(), negatives=1)
    assert fewer.chance["text_to_image_f1"] == pytest.approx(2 * 8 / (2 * 8 + 8))
    assert set(row.metrics) - set(row.chance) == {
        f"{d}_threshold" for d in ("text_to_image", "image_to_text")
    }


def test_data_without_a_wrong_pair_has_no_auc_and_ends_nothing():
    one = Rows([{"image": COLOURS["red"], "captions": ("red", "Red"), "concept": "a"}] * 3)
    with pytest.warns(UserWarning, match="negatives: fake/set has no wrong pair, so no AUC"):
        row = measure(one, negatives=500, same="concept")
    assert row.metrics == measure(one, same="concept").metrics and set(row.chance) == set(row.metrics)


def test_the_gallery_shows_queries_answers_and_what_was_wanted():
    rows = [
        {"image": COLOURS[name], "captions": (text,)} for name, text in (("red", "blue"), ("blue", "red"))
    ]
    shown = measure(Rows(rows), gallery=2, failures=1).exhibits
    first = shown["text_to_image"]["gallery"][0]
    assert first["query"] == {"text": "blue"} and first["place"] == 2.0
    assert [answer["right"] for answer in first["answers"]] == [False, True]
    assert first["answers"][0]["picture"] == 1 and first["wanted"]["picture"] == 0
    assert len(shown["image_to_text"]["failures"]) == 1
    assert shown["pictures"]["0"].startswith("data:image/webp;base64,")


def test_the_conversions_of_pictures_are_counted():
    rows = [{"image": COLOURS["red"], "captions": ("red",), "conversions": ("cmyk",)} for _ in range(600)]
    row = Retrieval(data=Spec(Rows(rows)), dataset="d", gallery=3)(ColourModel(), Limits())[0]
    assert row.exhibits["rows"]["converted"] == {"cmyk": 600}  # thumbnails, decoded again, do not count


def test_few_pictures_are_in_memory_at_once():
    alive, peak = set(), [0]

    class Counted(Rows):
        def __getitem__(self, index):
            row = super().__getitem__(index)
            alive.add(index)
            weakref.finalize(row["image"], alive.discard, index)
            peak[0] = max(peak[0], len(alive))
            return row

    rows = [{"image": COLOURS["red"], "captions": ("red",)} for _ in range(400)]
    measure(Counted(rows), gallery=0, failures=0)
    assert AHEAD // 2 <= peak[0] <= AHEAD + 2 and not alive


def test_a_picture_that_is_gone_when_it_is_to_be_shown_is_grey():
    class Vanishing(Rows):
        seen = frozenset()

        def __getitem__(self, index):
            if index in self.seen and index == 1:
                raise BadRow("missing_shard")
            self.seen |= {index}
            return super().__getitem__(index)

    shown = measure(Vanishing(source().rows)).exhibits["pictures"]
    with Image.open(BytesIO(b64decode(shown["1"].partition(",")[2]))) as grey:
        assert len(shown) == 4 and grey.size == (96, 96) and len(set(grey.getpixel((9, 9)))) == 1


def test_unusable_data_is_told():
    with pytest.raises(DataError, match="none of the 1 rows could be read .truncated: 1."):
        measure(Rows([{"image": None, "captions": ("x",)}]))
    with pytest.raises(DataError, match="row '0' has no field 'concept'; it has captions, id"):
        measure(Rows([{"image": COLOURS["red"], "captions": ("x",)}]), same="concept")


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        *((Retrieval, field, -1) for field in ("every", "negatives", "gallery", "failures")),
        *((Retrieval, field, 0) for field in ("block", "thumbnail")),
        (EmbeddingHealth, "samples", 1),
        (EmbeddingHealth, "every", -1),
        *(
            (LinearProbe, *pair)
            for pair in (("C", float("inf")), ("C", 0.0), ("iterations", 0), ("every", -1), ("shots", (0, 9)))
        ),
        *((ZeroShot, *pair) for pair in (("every", -1), ("block", 0), ("classes", ()), ("templates", ()))),
        (ZeroShot, "shots", (9, 8)),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(kind, field, value):
    with pytest.raises(ValueError, match=f"^{field} must "):
        kind(data=Spec(source()), dataset="d", **{field: value})
