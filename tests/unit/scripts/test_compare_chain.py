"""Precision and recall of filters on rows whose answers are known."""

import json

import numpy as np
import pytest
from compare_filters import CONTROL, JUDGE, Pairs, shares, table


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
        lines += [json.dumps(asked), json.dumps({**asked, "id": f"twitter/{query:x}"})]
    (tmp_path / "candidates.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_a_judge_that_knows_finds_all_and_its_permuted_scores_know_nothing(folder):
    pairs = Pairs(folder)
    assert len(pairs.right) == 240 and pairs.right.sum() == 60 and pairs.concept.max() == 59
    found = {name: shares(pairs.counts(pairs.suspected(own)).sum(1)) for name, own in pairs.scores.items()}
    assert found[JUDGE].tolist() == [1.0, 1.0, 1.0]
    assert found["the same text"][0] == pytest.approx(0.25)  # it never fires, and so suspects all or none
    for query in range(60):
        own = pairs.concept == pairs.concept[4 * query]
        assert sorted(pairs.scores[CONTROL][own]) == sorted(pairs.scores[JUDGE][own])
    assert found[CONTROL][2] < 0.6
    lines = table(pairs)
    assert lines[2].startswith("| judge | 100.0 [100.0, 100.0] | 100.0 [100.0, 100.0] |") and len(lines) == 8


def test_precision_and_recall_are_those_of_a_loop(folder):
    pairs = Pairs(folder)
    suspected = np.random.default_rng(1).random(240) < 0.3
    hit = sum(a and b for a, b in zip(suspected, pairs.right, strict=True))
    precision, recall = hit / sum(suspected), hit / sum(pairs.right)
    expected = [precision, recall, 2 * precision * recall / (precision + recall)]
    assert shares(pairs.counts(suspected).sum(1)) == pytest.approx(expected)
