"""Ties, queries without an answer, groups and leaks: what changes a number without a word."""

import itertools
import json

import pytest
import torch

from tests.rerank_traps.test_training import logged, recipe, rows
from vlalign.data.leakage import check_leakage
from vlalign.evals.ranking import means, measured
from vlalign.evals.runs import completed, ordered, write_run
from vlalign.registry import SOURCES, TASKS
from vlalign.train.loop import train
from vlalign.types import DataError, PairScores


def test_09_ties_are_broken_by_one_rule_whatever_the_order_they_come_in(tmp_path):
    """By providers they are broken by document, up or down, and in float32, where 1 + 1e-9 is 1."""
    scores = {"b": 1.0, "c": 1.0, "a": 1.0, "d": 1.0 + 1e-9}
    qrels = {"q": {"a": 0, "b": 1, "c": 0, "d": 0}}
    found = set()
    for turn in itertools.permutations(scores):
        run = {"q": {document: scores[document] for document in turn}}
        assert ordered(run) == {"q": ["d", "c", "b", "a"]}
        write_run(tmp_path / "run", run.items())
        found.add((tmp_path / "run").read_text())
        assert measured(run, qrels, ["RR", "P@1"], "linear")["RR"] == {"q": pytest.approx(1 / 3)}
    assert len(found) == 1


def test_10_a_query_without_an_answer_counts_nothing_wherever_it_is_missing():
    qrels = {"found": {"a": 1, "b": 0}, "lost": {"a": 1}, "none": {"a": 0, "b": 0}, "absent": {"a": 2}}
    run = {
        "found": {"a": 2.0, "b": 1.0},
        "lost": {"b": 1.0},
        "none": {"a": 1.0, "b": 0.5},
        "strange": {"a": 1.0},
    }
    table = measured(run, qrels, ["RR@10", "nDCG@10", "R@10"], "linear")
    assert completed(run, qrels).keys() == qrels.keys()
    for values in table.values():
        assert values == {"found": pytest.approx(1.0), "lost": 0.0, "none": 0.0, "absent": 0.0}
    assert all(value == pytest.approx(1 / 4) for value in means(table).values())


def test_11_groups_are_told_and_not_guessed_from_labels():
    """Two queries side by side, the first with two positives, the second with none."""
    task = TASKS.decode({"name": "rerank", "terms": [{"objective": "info_nce"}]})
    scores = torch.tensor([0.5, -1.0, 2.0, 0.3, -0.7], dtype=torch.float64, requires_grad=True)
    label = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0])
    batch = {"group": torch.tensor([0, 0, 0, 1, 1]), "ids": ["a", "b"], "query_fields": {}}
    batch["key_fields"] = {"label": label}
    loss = task.loss(PairScores(scores, scores, 0 * scores), batch, 1, 2).total
    logs = scores[:3].log_softmax(0)
    torch.testing.assert_close(loss, -(logs[0] + logs[2]) / 2)
    (slope,) = torch.autograd.grad(loss, scores)
    assert slope.isfinite().all() and (slope[3:] == 0).all()


@pytest.mark.parametrize("objective", ["yes_no", "weight_direction"])
def test_11_a_group_of_wrong_candidates_alone_is_finite(objective):
    task = TASKS.decode({"name": "rerank", "answer_terms": [{"objective": objective}]})
    yes, no = torch.tensor([300.0, -300.0], requires_grad=True), torch.tensor([-300.0, 300.0])
    batch = {"group": torch.tensor([0, 0]), "ids": ["a"], "query_fields": {}}
    batch["key_fields"] = {"label": torch.zeros(2)}
    loss = task.loss(PairScores(yes - no, yes, no), batch, 1, 2).total
    assert loss.isfinite() and torch.autograd.grad(loss, yes)[0].isfinite().all()


def test_13_what_was_trained_on_is_not_tested_on(tmp_path):
    lines = rows(tmp_path / "train.jsonl").read_text().splitlines()
    fresh = {"id": "x", "query": "A  RED car", "candidates": [{"text": "a new text", "label": 1}]}
    old = json.loads(lines[0])
    seen = {**fresh, "id": "y", "query": old["query"].upper() + " "}
    paths = {"clean": [fresh], "leaky": [fresh, seen]}
    for name, told in paths.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in told))
    train_rows, clean, leaky = (
        SOURCES.decode({"name": "candidates", "path": str(tmp_path / f"{name}.jsonl")}).build()
        for name in ("train", "clean", "leaky")
    )
    check_leakage(train_rows, clean)
    with pytest.raises(DataError, match=r"1 texts or pictures of the test .*query_text: y of the test is q0"):
        check_leakage(train_rows, leaky)


def test_20_a_batch_that_queries_do_not_fill_evenly_loses_none(tmp_path):
    """23 queries in batches of 8 and chunks of 3: each comes once an epoch, in steps of 8, 8 and 7."""
    rows(tmp_path / "rows.jsonl", 23)
    told = recipe(tmp_path, f"out={tmp_path / 'out'}", "steps=3")
    rows(tmp_path / "rows.jsonl", 23)  # the recipe has written 24
    lines = logged(train(told))
    assert [line["samples_seen"] for line in lines][-1] == 23
