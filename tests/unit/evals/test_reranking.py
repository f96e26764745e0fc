"""Candidates in the order of a model, of the first stage and of both, against numbers made by hand."""

import json
import math
from statistics import fmean

import pytest
import torch
from PIL import Image
from scipy.stats import ttest_rel

from tests.multimodal_models import picture, reranker
from tests.unit.evals.fakes import Rows, Spec
from vlalign.data.images import ORIENTATION, opened
from vlalign.data.query_rows import QueryRows
from vlalign.data.sources.candidates import CandidatesFile
from vlalign.evals.candidates import Asked
from vlalign.evals.evaluators.reranking import Reranking
from vlalign.evals.report.page import write as write_report
from vlalign.evals.rows import read_rows, write_rows
from vlalign.models.rerank_scorer import RerankScorer
from vlalign.registry import EVALUATORS
from vlalign.types import BadRow, DataError, Item, Limits, UserError

TURNED = Image.Exif()
TURNED[ORIENTATION] = 6


class Lengths:
    """Scores a candidate by the letters that it shares with the query; keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def score(self, queries, candidates):
        self.asked += zip(queries, candidates, strict=True)
        return [
            torch.tensor([float(len(set(query) & set(each))) for each in own])
            for query, own in zip(queries, candidates, strict=True)
        ]


def candidate(id, text, label=0, bm25=0.0, **more):
    return {"id": id, "text": text, "label": label, "bm25": bm25, **more}


def line(id, query, *candidates):
    return {"id": id, "query": query, "candidates": candidates}


LINES = [
    # The model: a (2), then c and b tie (1), c is later. The first stage: b, a, c.
    line("q1", "xy", candidate("a", "xy", 2, 2), candidate("b", "x", 0, 3), candidate("c", "y", 1, 1)),
    # Both put the right one last.
    line("q2", "k", candidate("a", "m", 1, 0), candidate("b", "k", 0, 5)),
    # No right one.
    line("q3", "k", candidate("a", "k"), candidate("b", "k")),
]
ONE = 1 / math.log2(3)


@pytest.fixture
def data(tmp_path):
    """Makes a source of lines."""

    def make(lines=LINES):
        path = tmp_path / "candidates.jsonl"
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
        return CandidatesFile(path=str(path))

    return make


def measure(data, model=None, **fields):
    return Reranking(data=data, dataset="own/set", **fields)(model or Lengths(), Limits())


def test_the_metrics_of_a_small_set_are_those_by_hand(data):
    (row,) = measure(data(), metrics=("nDCG@10", "RR@10", "AP", "P@1", "R@1", "Success@1"))
    assert (row.dataset, row.task) == ("own/set", "reranking")
    assert row.exhibits["queries"] == {
        "query": ["q1", "q2", "q3"],
        "ranked": [3, 2, 2],
        "positives": [2, 1, 0],
        "nDCG_linear@10": pytest.approx([1, ONE, 0]),
        "RR@10": [1, 0.5, 0],
        "AP": [1, 0.5, 0],
        "P@1": [1, 0, 0],
        "R@1": [0.5, 0, 0],
        "Success@1": [1, 0, 0],
    }
    metrics = dict(row.metrics)
    # Margins are 1, 1 and 0: of the two surest one is right.
    assert metrics.pop("aurc") == pytest.approx((1 / 2 + 1 / 2 + 2 / 3) / 3)
    p = [1 / (1 + math.exp(-score)) for score in (0, 1, 2)]
    gaps = [(0 - p[0]) + 1, 5 * (0 - p[1]) + 1, 1 - p[2]]  # right minus probability, by score
    assert metrics.pop("ece") == pytest.approx(sum(map(abs, gaps)) / 7, abs=1e-6)
    assert metrics.pop("without_positive") == 1
    queries = row.exhibits["queries"]
    assert metrics == {name: pytest.approx(fmean(queries[name])) for name in list(queries)[3:]}
    assert row.chance["P@1"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert row.chance["R@1"] == pytest.approx((1 / 3 + 1 / 2 + 0) / 3)
    assert row.chance["RR@10"] == pytest.approx((2 / 3 + 1 / 3 / 2 + (1 + 1 / 2) / 2) / 3)
    assert row.chance["aurc"] == pytest.approx(1 - row.chance["P@1"])
    assert row.exhibits["rows"] | {"licences": []} == {
        "used": 3,
        "skipped": {},
        "converted": {},
        "licences": [],
    }


def test_a_gain_is_the_recipes_choice_and_stands_in_the_name(data):
    lines = [line("q", "k", candidate("a", "m", 3), candidate("b", "k", 1))]
    for gain, three in (("linear", 3), ("exponential", 7)):
        (row,) = measure(data(lines), gain=gain, metrics=("nDCG@10",))
        assert row.metrics[f"nDCG_{gain}@10"] == pytest.approx((1 + three * ONE) / (three + ONE))
        assert row.exhibits["gain"] == gain
    half = (1 + ONE) / 2
    assert row.chance["nDCG_exponential@10"] == pytest.approx(8 * half / (7 + ONE))


def test_a_first_stage_is_measured_beside_the_reranker_and_both_together(data):
    first, fused, own = measure(data(), first_stage="bm25", weight=2.0, metrics=("RR@10", "P@1"))
    assert [row.dataset for row in (first, fused, own)] == ["own/set/first_stage", "own/set/fused", "own/set"]
    assert first.exhibits["queries"]["RR@10"] == [0.5, 0.5, 0]
    assert own.exhibits["queries"]["RR@10"] == [1, 0.5, 0]
    # a: 2 + 2 * 2, b: 3 + 2 * 1, c: 1 + 2 * 1
    assert fused.exhibits["queries"]["RR@10"] == [1, 0.5, 0]
    assert measure(data(), first_stage="bm25", weight=0.5)[1].exhibits["queries"]["P@1"] == [
        0,
        0,
        0,
    ]  # b, a tie
    assert first.chance == fused.chance == own.chance
    for row in (fused, own):
        pairs = [each.exhibits["queries"]["RR@10"] for each in (row, first)]
        wanted, found = ttest_rel(*pairs), row.exhibits["over_first_stage"]["RR@10"]
        interval = wanted.confidence_interval()
        assert found == pytest.approx(
            {"difference": 0.5 / 3, "low": interval.low, "high": interval.high, "p": wanted.pvalue}
        )
        told = {name: value for name, value in row.metrics.items() if "over_first_stage" in name}
        assert told == {f"RR@10_over_first_stage_{part}": value for part, value in found.items()}
        assert set(row.exhibits["over_first_stage"]) == {"RR@10", "P@1"}
    assert not any("over" in name for name in first.metrics)
    assert "ece" in own.metrics and "ece" not in fused.metrics and "ece" not in first.metrics
    assert "rows" in own.exhibits and "rows" not in first.exhibits


def test_scores_are_summed_in_double_precision(data):
    """In float32 2^24 + 1 is 2^24."""
    lines = [line("q", "k", candidate("a", "k", 1, 2.0**24), candidate("b", "m", 0, 2.0**24))]
    _, fused, _ = measure(data(lines), first_stage="bm25", metrics=("P@1",))
    assert fused.metrics["P@1"] == 1


def test_candidates_that_look_alike_do_not_profit_from_their_order(data):
    """Files often have the right one first."""
    lines = [{"query": "k", "candidates": [{"text": "k", "label": 1}, {"text": "k"}, {"text": "k"}]}]
    (row,) = measure(data(lines), metrics=("RR",))
    assert row.metrics["RR"] == pytest.approx(1 / 3) and row.metrics["aurc"] == 1


def test_only_the_first_queries_are_asked_where_there_is_a_limit(data):
    model = Lengths()
    (row,) = measure(data(), model, limit=2)
    assert row.exhibits["queries"]["query"] == ["q1", "q2"] and [query for query, _ in model.asked] == [
        "xy",
        "k",
    ]
    assert measure(data(), limit=99)[0].exhibits["rows"]["used"] == 3


def test_many_queries_are_asked_in_several_calls_each_once(data):
    lines = [line(f"q{n}", f"{n}", candidate("a", f"{n}", 1), candidate("b", "x")) for n in range(150)]
    model = Lengths()
    (row,) = measure(data(lines), model)
    assert [query for query, _ in model.asked] == [f"{n}" for n in range(150)]
    assert row.exhibits["queries"]["query"] == [f"q{n}" for n in range(150)] and row.metrics["P@1"] == 1


def test_rows_that_cannot_be_read_are_counted(data):
    (row,) = measure(data([*LINES, "{", {"query": "k"}]))
    assert row.exhibits["rows"]["used"] == 3
    assert row.exhibits["rows"]["skipped"] == {"not_json": 1, "no_candidates": 1}
    assert row.exhibits["noted"] == {"no_positive": 1}
    (licence,) = row.exhibits["rows"]["licences"]
    assert licence["name"] == "candidates.jsonl"


class Memory:
    """Rows of queries with candidates; an exception stands for a row that cannot be read."""

    skipped, licences = {}, ()
    opened = QueryRows.opened

    def __init__(self, *rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        if isinstance(self.rows[index], Exception):
            raise self.rows[index]
        return self.rows[index]


class Held(Spec):
    reads = "candidates"


def asked(id="q", candidates=(Item(text="k"),), ids="0123456789", label=(1.0,)):
    ids = list(ids)[: len(candidates)]
    row = {"id": id, "query": Item(text="k"), "candidates": candidates, "candidate_ids": ids}
    return row | {"numbers": {"label": label}}


def test_a_row_that_turns_out_bad_is_counted_and_none_that_is_good_is_told():
    (row,) = measure(Held(Memory(asked(), BadRow("gone"))))
    assert row.exhibits["rows"]["skipped"] == {"gone": 1} and row.metrics["P@1"] == 1
    with pytest.raises(DataError, match="none of the 1 queries could be read .gone: 1."):
        measure(Held(Memory(BadRow("gone"))))
    with pytest.raises(DataError, match="two queries have one id"):
        measure(Held(Memory(asked(), asked())))


def test_a_text_alone_is_what_any_scorer_takes_and_pictures_are_opened(tmp_path):
    model, path, picture = Lengths(), tmp_path / "a.png", Image.new("RGB", (2, 2), "red")
    picture.save(path)
    items = (Item(images=(path,)), Item(text="t", images=(path, path)), Item(images=(picture,)))
    model.score = lambda queries, candidates: (
        model.asked.append((queries, candidates)) or [torch.zeros(3) for _ in queries]
    )
    measure(Held(Memory(asked("q", items, label=(1.0, 0.0, 0.0)))), model)
    [(queries, [candidates])] = model.asked
    assert queries == ["k"] and [(each.text, len(each.images)) for each in candidates] == [
        ("", 1),
        ("t", 2),
        ("", 1),
    ]
    assert all(image.getpixel((0, 0)) == (255, 0, 0) for each in candidates for image in each.images)


class Brightness:
    """Scores a picture by how bright it is, a text by nothing; keeps how many queries it got at once."""

    def __init__(self):
        self.asked = []

    def score(self, queries, candidates):
        self.asked.append(len(queries))
        return [
            torch.tensor([float(each.images[0].getpixel((0, 0))[0]) for each in own]) for own in candidates
        ]


def test_a_picture_that_cannot_be_opened_costs_its_own_row_alone(tmp_path):
    for name, colour in (("dark", "black"), ("light", "white")):
        Image.new("RGB", (4, 4), colour).save(tmp_path / f"{name}.png")
    Image.new("RGB", (50, 50)).save(tmp_path / "large.png")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n")

    def row(id, wrong, right):
        items = [Item(images=(tmp_path / f"{name}.png",)) for name in (wrong, right)]
        told = asked(id, items, label=(0.0, 1.0))
        return told | {"numbers": told["numbers"] | {"bm25": [2.0, 1.0]}}

    rows = [row("q1", "dark", "light"), row("q2", "torn", "light"), row("q3", "dark", "large")]
    rows += [row("q4", "none", "light"), row("q5", "light", "dark")]
    query = Item(text="k", images=(tmp_path / "torn.png",))
    rows += [row("q6", "dark", "light") | {"query": query}]
    found = Reranking(data=Held(Memory(*rows)), dataset="d", metrics=("P@1",), first_stage="bm25")(
        Brightness(), Limits(pixels=100)
    )
    assert [each.exhibits["queries"]["query"] for each in found] == [["q1", "q5"]] * 3
    assert [each.exhibits["queries"]["P@1"] for each in found] == [[0, 0], [1, 0], [1, 0]]
    assert found[-1].exhibits["rows"]["used"] == 2
    assert found[-1].exhibits["rows"]["skipped"] == {"truncated": 2, "too_many_pixels": 1, "missing_file": 1}
    with pytest.raises(DataError, match="none of the 1 queries could be read .truncated: 1."):
        measure(Held(Memory(rows[1])), Brightness())


def test_while_it_trains_a_reranker_is_given_opened_pictures_too(tmp_path):
    model = reranker(tmp_path / "base").train()
    picture(0).save(tmp_path / "0.png", exif=TURNED)
    (tmp_path / "torn.png").write_bytes(b"")
    items = [Item(text="red", images=(tmp_path / "0.png",)), Item(text="red")]
    bad = [Item(images=(tmp_path / "torn.png",))]
    rows = Held(Memory(asked("q", items, label=(1.0, 0.0)), asked("torn", bad)))
    live = RerankScorer(model, opening=opened)  # as a run has it
    run = Asked(rows.build()).scored(live, Limits())
    assert run == {"q": dict(zip("01", live.score(["k"], [items])[0].tolist(), strict=True))}
    (row,) = measure(rows, live)
    assert row.exhibits["rows"]["skipped"] == {"empty_file": 1} and model.training


def test_pictures_of_few_rows_are_held_at_once():
    pictures = [Item(images=(Image.new("RGB", (2, 2)),))] * 6
    model, rows = Brightness(), [asked(f"q{n}", pictures, label=(1.0,) * 6) for n in range(7)]
    measure(Held(Memory(*rows)), model)
    assert model.asked == [3, 3, 1]


def test_what_cannot_be_measured_is_told(data):
    twice = asked("q9", [Item(text="k"), Item(text="m")], ids="aa", label=(1.0, 0.0))
    soft = asked("q9", label=(0.5,))
    for source, fields, told in (
        (Held(Memory(twice)), {}, "query 'q9': two candidates are called 'a'; give each its own id"),
        (Held(Memory(soft)), {}, "query 'q9': the label of candidate '0' is 0.5; a grade is a whole number"),
        (data(), {"first_stage": "bm52"}, "query 'q1': .* no number 'bm52', all of them have bm25, label"),
    ):
        model = Lengths()
        with pytest.raises(DataError, match=told):
            measure(source, model, **fields)
        assert not model.asked  # the first model call may be hours before the last
    model.score = lambda queries, _: [torch.full((3,), math.nan)] * len(queries)
    with pytest.raises(UserError, match="query 'q1': a score is not finite"):
        measure(data(), model)


WRONG = {"every": -1, "limit": 0, "weight": math.inf, "metrics": ("MRR@10",), "data": Spec(Rows([]))}


@pytest.mark.parametrize(("field", "value"), [*WRONG.items(), ("metrics", ())])
def test_a_value_out_of_range_is_refused_by_its_name(field, value):
    with pytest.raises(ValueError, match=f"^{field}( |: )"):
        Reranking(**({"data": Held(Memory()), "dataset": "d"} | {field: value}))


def test_a_recipe_names_it_and_its_rows_are_written_and_shown(data, tmp_path):
    told = {"name": "reranking", "dataset": "own/set", "first_stage": "bm25", "gain": "exponential"}
    path = data().path
    evaluator = EVALUATORS.decode(told | {"data": {"name": "candidates", "path": path}})
    assert evaluator.reads == "candidates" and evaluator.gain == "exponential"
    rows = evaluator(Lengths(), Limits())
    write_rows(tmp_path / "out", rows)
    assert read_rows(tmp_path / "out") == rows
    page = write_report(tmp_path / "out").read_text()
    assert page.count("nDCG exponential@10 over first stage p") == 2 and "own/<wbr>set/<wbr>fused" in page
