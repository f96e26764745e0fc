"""Runs of others, from disk."""

import pytest

from vlalign.evals.evaluators.run import RunFile
from vlalign.evals.report.page import write as write_report
from vlalign.evals.rows import write_rows
from vlalign.evals.runs import write_run
from vlalign.registry import EVALUATORS
from vlalign.types import DataError, Limits

RUN = {"q1": {"a": 3.0, "b": 2.0, "c": 1.0}, "q2": {"a": 1.0, "b": 1.0}, "strange": {"a": 1.0}}
QRELS = {"q1": {"b": 1, "z": 1}, "q2": {"b": 2}, "q3": {"a": 1}, "q4": {"a": 0}}


@pytest.fixture
def files(tmp_path):
    write_run(tmp_path / "run.txt", RUN.items())
    lines = [
        f"{query} 0 {document} {grade}\n" for query, own in QRELS.items() for document, grade in own.items()
    ]
    (tmp_path / "qrels.txt").write_text("".join(lines))
    return {"run": str(tmp_path / "run.txt"), "qrels": str(tmp_path / "qrels.txt"), "dataset": "own/run"}


def test_a_run_is_measured_without_a_model(files, tmp_path):
    names = ["RR@10", "R@2", "AP", "nDCG@10"]
    evaluator = EVALUATORS.decode({"name": "run", "metrics": names, "gain": "exponential", **files})
    (row,) = evaluator(None, Limits())
    assert (row.dataset, row.task) == ("own/run", "reranking")
    queries = row.exhibits["queries"]
    assert queries["query"] == ["q1", "q2", "q3", "q4"] and queries["ranked"] == [3, 2, 0, 0]
    assert queries["RR@10"] == [0.5, 1, 0, 0] and queries["R@2"] == [0.5, 1, 0, 0]
    assert queries["AP"] == [0.25, 1, 0, 0] and queries["positives"] == [2, 1, 1, 0]
    assert row.metrics["RR@10"] == 0.375 and row.metrics["without_positive"] == 1
    assert row.chance["R@2"] == pytest.approx((1 / 2 * 2 / 3 + 1) / 4)
    assert set(row.metrics) - set(row.chance) == {"without_positive"} and "nDCG_exponential@10" in row.metrics
    assert row.exhibits["queries_without_run"] == 2 and row.exhibits["queries_without_judgements"] == 1
    write_rows(tmp_path / "out", [row])
    assert "nDCG exponential@10" in write_report(tmp_path / "out").read_text()


def test_what_is_wrong_in_a_file_is_told_when_it_is_read(files, tmp_path):
    evaluator = RunFile(**files)
    (tmp_path / "run.txt").write_text("q1 Q0 a 1 high tag\n")
    with pytest.raises(DataError, match="run.txt:1: a score must be a finite number, got 'high'"):
        evaluator(None, Limits())


@pytest.mark.parametrize(("field", "value"), [("every", -1), ("metrics", ("ndcg@10",))])
def test_a_value_out_of_range_is_refused_by_its_name(files, field, value):
    with pytest.raises(ValueError, match=f"^{field}( |: )"):
        RunFile(**files | {field: value})
