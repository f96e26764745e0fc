"""Whole benchmarks as lists of evaluators: missing positives count, and tests are those of other tools."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import ttest_rel

from vlalign.evals.evaluators.run import RunFile
from vlalign.evals.metrics.paired import paired
from vlalign.evals.ranking import measured
from vlalign.recipe.decode import load_recipe
from vlalign.registry import EVALUATORS
from vlalign.types import Item, Limits

RECIPE = "recipes/eval/mrb.yaml"
RUN = {"q1": {"a": 4.0, "b": 3.0, "c": 2.0}, "q2": {"b": 2.0, "c": 1.0}, "q3": {"c": 1.0, "d": 0.5}}
QRELS = {"q1": {"c": 2, "z": 1}, "q2": {"b": 1}, "q3": {"a": 1, "e": 2}}  # z is in no corpus


class Shortest:
    """Prefers the shorter text, and a picture to any; keeps how many it was asked."""

    def __init__(self):
        self.asked = 0

    def score(self, queries, candidates):
        self.asked += len(queries)
        texts = [[each.text if isinstance(each, Item) else str(each) for each in own] for own in candidates]
        return [torch.tensor([-float(len(text)) for text in own]) for own in texts]


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path):
    """A set of MRB; the model's order is that of the alphabet backwards."""
    lines(tmp_path / "corpus.jsonl", [{"_id": id, "text": "x" * (9 - at)} for at, id in enumerate("abcde")])
    lines(tmp_path / "queries.jsonl", [{"_id": id, "text": id} for id in RUN])
    judged = [f"{query}\t{id}\t{grade}" for query, own in QRELS.items() for id, grade in own.items()]
    (tmp_path / "qrels.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]))
    found = [f"{query} Q0 {id} 0 {score} t" for query, own in RUN.items() for id, score in own.items()]
    (tmp_path / "run.trec").write_text("\n".join(found))
    return tmp_path


def test_a_recipe_measures_set_after_set_beside_their_first_stage(folder):
    count = len(load_recipe(RECIPE).evals)
    changes = [f"evals.{at}.data.path={folder}" for at in range(count)]
    recipe, model = load_recipe(RECIPE, changes), Shortest()
    rows = [row for evaluator in recipe.evals for row in evaluator(model, Limits())]
    assert model.asked == count * 3 and len(rows) == count * 3
    assert [row.dataset for row in rows[:3]] == [
        f"mrb/scifact{end}" for end in ("/first_stage", "/fused", "")
    ]
    for row in rows:
        assert set(row.metrics) >= {"nDCG_linear@10", "R@5"}
        over = "nDCG_linear@10_over_first_stage_p" in row.metrics
        assert over == (not row.dataset.endswith("/first_stage"))


@pytest.mark.parametrize("gain", ["linear", "exponential"])
def test_what_is_right_and_was_not_retrieved_counts_as_with_all_judgements(gain, folder):
    """A first stage's numbers are those of its run against the judgements, and so are a reranker's."""
    metrics = ("nDCG@10", "AP", "R@10", "RR@10")
    told = {"name": "reranking", "dataset": "s", "metrics": metrics, "gain": gain, "first_stage": "score"}
    evaluator = EVALUATORS.decode(told | {"data": {"name": "mrb", "path": str(folder)}})
    first, _, own = evaluator(Shortest(), Limits())
    of = {"qrels": str(folder / "qrels.tsv"), "dataset": "s", "metrics": metrics, "gain": gain}
    (whole,) = RunFile(run=str(folder / "run.trec"), **of)(None, Limits())
    assert first.exhibits["queries"] == whole.exhibits["queries"]
    assert {name: first.metrics[name] for name in whole.metrics} == whole.metrics
    assert first.chance == whole.chance == own.chance
    reranked = {query: {id: float(ord(id)) for id in ids} for query, ids in RUN.items()}
    for name, values in measured(reranked, QRELS, metrics, gain).items():
        assert own.exhibits["queries"][name] == list(values.values())
    assert own.exhibits["queries"]["R@10"] == [0.5, 1, 0] and own.exhibits["queries"]["positives"] == [
        2,
        1,
        2,
    ]
    assert own.exhibits["noted"] == {"not_retrieved": 2, "no_positive": 1}
    assert 0 <= own.metrics["ece"] <= 1


def test_mmebs_score_is_whether_the_first_target_comes_first(tmp_path):
    path = tmp_path / "MMEB-eval" / "Things" / "test-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    targets = [["x", "xx", "xxx"], ["xx", "x"], ["x", "x", "y"]]
    rows = [{"qry_text": f"{at}", "qry_img_path": "", "tgt_text": each} for at, each in enumerate(targets)]
    pq.write_table(
        pa.Table.from_pylist([{**r, "tgt_img_path": [""] * len(r["tgt_text"])} for r in rows]), path
    )
    told = {"name": "reranking", "dataset": "mmeb/things", "metrics": ["P@1"]}
    evaluator = EVALUATORS.decode(told | {"data": {"name": "mmeb_eval", "path": str(path.parent)}})
    (row,) = evaluator(Shortest(), Limits())
    assert row.exhibits["queries"]["P@1"] == [1, 0, 0]  # the last: a tie, which the right one does not win
    assert row.chance["P@1"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3)


# Of ten queries, the place that either ranker gives the one right document of ten.
PLACES = {"first": [1, 4, 2, 9, 3, 1, 7, 2, 10, 5], "second": [2, 4, 1, 5, 1, 1, 3, 1, 8, 6]}
# By ranx 0.3.21, `compare(..., stat_test="student")`; package ranx (PyPI), which needs numba.
OF_RANX = {
    "nDCG@10": (0.5502817027766052, 0.6620131182773143, 0.19408538460841213),
    "RR@10": (0.41373015873015867, 0.5575, 0.21261570865371282),
}


@pytest.mark.parametrize("name", OF_RANX)
def test_means_and_paired_tests_are_those_of_ranx_and_of_scipy(name):
    qrels = {f"q{at}": {"right": 1} for at in range(10)}
    values = []
    for places in PLACES.values():
        run = {
            f"q{at}": {"right" if rank == place else f"d{rank}": -float(rank) for rank in range(1, 11)}
            for at, place in enumerate(places)
        }
        (table,) = measured(run, qrels, (name,), "linear").values()
        values.append(list(table.values()))
    first, second, p = OF_RANX[name]
    assert [sum(each) / 10 for each in values] == pytest.approx([first, second], abs=1e-12)
    found, wanted = paired(*values), ttest_rel(*values)
    assert found["p"] == pytest.approx(p, abs=1e-12) == pytest.approx(wanted.pvalue, abs=1e-12)
    assert found["difference"] == pytest.approx(first - second, abs=1e-12)
