"""Precision and recall of filters on rows whose answers are known."""

import json

import numpy as np
import pytest
import torch
from compare_chain import CONTROL, JUDGE, TEXTS, Pairs, shares, stages, table


@pytest.fixture
def folder(tmp_path):
    """The judge knows all, the cosine nothing; 60 queries of four candidates, one right and not labelled."""
    random, lines = np.random.default_rng(0), []
    for query in range(60):
        candidates = [
            {"id": "a", "text": f"cat {query}", "label": 1, "right": 1, "judge_score": 1.0, "score": 1.0}
        ]
        for at in range(4):
            own = {
                "id": f"{at}",
                "text": f"x{at} {query}",
                "label": 0,
                "right": int(at == 2),
                "score": random.random(),
            }
            candidates.append({**own, "judge_score": 0.9 if at == 2 else 0.1 * random.random()})
        asked = {"id": f"google/{query:x}", "query": {"text": f"cat {query}"}, "candidates": candidates}
        lines.append(json.dumps(asked))
    (tmp_path / "candidates.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def rower(items):
    """A number of each text's letters, on a circle."""
    angle = torch.tensor([float(len(each.text)) for each in items])
    return torch.stack([angle.cos(), angle.sin()], 1)


def test_a_judge_that_knows_finds_all_and_its_permuted_scores_know_nothing(folder):
    pairs = Pairs(folder, rower)
    assert len(pairs.right) == 240 and pairs.right.sum() == 60 and pairs.concept.max() == 59
    found = {name: shares(pairs.counts(pairs.suspected(own)).sum(1)) for name, own in pairs.scores.items()}
    assert found[JUDGE].tolist() == [1.0, 1.0, 1.0]
    assert found["the same text"][0] == pytest.approx(0.25)  # it never fires, and so suspects all or none
    for query in range(60):
        own = pairs.concept == pairs.concept[4 * query]
        assert sorted(pairs.scores[CONTROL][own]) == sorted(pairs.scores[JUDGE][own])
    assert found[CONTROL][2] < 0.6
    lines = table(pairs)
    assert lines[2].startswith("| judge | 100.0 [100.0, 100.0] | 100.0 [100.0, 100.0] |") and len(lines) == 10


def test_precision_and_recall_are_those_of_a_loop(folder):
    pairs = Pairs(folder, rower)
    suspected = np.random.default_rng(1).random(240) < 0.3
    hit = sum(a and b for a, b in zip(suspected, pairs.right, strict=True))
    precision, recall = hit / sum(suspected), hit / sum(pairs.right)
    expected = [precision, recall, 2 * precision * recall / (precision + recall)]
    assert shares(pairs.counts(suspected).sum(1)) == pytest.approx(expected)


def test_texts_are_compared_by_their_rows(folder):
    pairs = Pairs(folder, rower)
    assert pairs.scores[TEXTS][:4] == pytest.approx([float(torch.tensor(1.0).cos())] * 4)  # "cat 0", "x0 0"


def test_a_stage_is_a_line(tmp_path):
    own = {"difference": 0.02, "low": -0.01, "high": 0.05}
    rows = [
        {"stage": "base", "mean": 0.5},
        {"stage": "more", "mean": 0.52, **own, "control": {**own, "stage": "dealt"}},
    ]
    tables = [
        {"dataset": "a", "metric": "m", "rows": rows},
        {"dataset": "b", "metric": "m", "rows": [rows[0], {"stage": "other", "mean": 1.0}]},
        {"dataset": "alone", "metric": "m", "rows": rows[:1]},
    ]
    told = {"comparisons": tables, "judges": {"judge": {"verdict": "informative"}}}
    (tmp_path / "pipeline.json").write_text(json.dumps(told))
    assert stages(tmp_path) == [
        "judge: informative.",
        "",
        "| stage | a m | b m |",
        "|---|---|---|",
        "| base | 50.0 | 50.0 |",
        "| more | 52.0, +2.0 [-1.0, +5.0] |  |",
        "| other |  | 100.0 |",
        "| more less dealt | +2.0 [-1.0, +5.0] |  |",
    ]
