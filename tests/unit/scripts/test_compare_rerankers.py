"""What the comparison of rerankers computes: ranks, gains, sums, and which trainings are due. None is run."""

import json
import math

import compare_rerankers as compare
import numpy as np
import pytest
from compare_rerankers import ARMS, FIRST, RATES, SEEDS, ZERO, Cell, best, cells, gains
from rerank_cells import Queries, padded, reciprocal, spread, summed

from vlalign.evals.ranking import measured
from vlalign.types import Item


def queries(first, right, rows=None, asked=None):
    return Queries(rows, asked or len(right), list(range(len(right))), padded(first), np.array(right))


def test_the_rank_is_that_of_a_loop_and_of_equal_scores_the_first_half_is_ahead():
    random = np.random.default_rng(0)
    scores = random.integers(0, 4, (200, 7)).astype(float)
    scores[:, 5:] = np.where(random.random((200, 2)) < 0.5, -np.inf, scores[:, 5:])  # no such candidates
    right = random.integers(0, 5, 200)
    found = queries(scores, right).ranks(scores)
    for own, place, rank in zip(scores, right, found, strict=True):
        ahead = sum(each > own[place] for each in own)
        level = sum(each == own[place] for each in own)
        assert rank == ahead + math.ceil((level - 1) / 2) + 1
        assert ahead + 1 <= rank <= ahead + level
    assert queries([[1.0] * 10], [3]).ranks(np.ones((1, 10))).tolist() == [6]  # it gains nothing from place


def test_gains_are_those_of_ir_measures():
    ranks = np.arange(1, 13)
    qrels = {f"q{rank:02}": {"right": 1} for rank in ranks}
    run = {f"q{rank:02}": {"right" if at == rank else f"d{at}": -float(at) for at in ranks} for rank in ranks}
    table = measured(run, qrels, ("nDCG@10", "RR@10", "R@1"), "linear")
    wanted = [list(table[name].values()) for name in ("nDCG_linear@10", "RR@10", "R@1")]
    np.testing.assert_allclose(gains(ranks), wanted, atol=1e-12)
    assert reciprocal(ranks) == pytest.approx(np.mean(wanted[1]))


def test_a_sum_is_of_spreads_and_weighs_the_model():
    first, own = (
        np.array([[1.0, 3.0, -np.inf], [0.0, 2.0, 1.0]]),
        np.array([[5.0, 1.0, -np.inf], [2.0, 4.0, 9.0]]),
    )
    assert spread(first) == pytest.approx(np.std([1, 3, 0, 2, 1])) and spread(np.full((2, 2), 3.0)) == 1
    spreads = spread(own), spread(first)
    np.testing.assert_allclose(summed(own, first, spreads, 0.0)[1], first[1] / spreads[1])
    both = summed(own, first, spreads, 2.0)
    np.testing.assert_allclose(both[0, 0], 1 / spreads[1] + 2 * 5 / spreads[0])
    assert both[0, 2] == -np.inf and not np.isnan(both).any()
    scaled = summed(100 * own, first / 7, (spread(100 * own), spread(first / 7)), 2.0)
    np.testing.assert_allclose(scaled, both)  # units do not matter


def mined(folder, *rows):
    folder.mkdir()
    lines = []
    for at, (labels, scores) in enumerate(rows):
        pairs = enumerate(zip(labels, scores, strict=True))
        told = [{"id": f"d{n}", "text": f"t{n}", "label": y, "score": x} for n, (y, x) in pairs]
        lines.append(json.dumps({"id": f"q{at}", "query": f"query {at}", "candidates": told}))
    (folder / "candidates.jsonl").write_text("\n".join(lines))
    return folder


def test_queries_whose_right_one_was_not_found_are_counted_and_not_asked(tmp_path):
    found = Queries.of(mined(tmp_path / "test", ([0, 1, 0], [3, 2, 1]), ([0, 0], [1, 0]), ([1, 0], [5, 4])))
    assert (found.asked, found.places, found.right.tolist()) == (3, [0, 2], [1, 0])
    np.testing.assert_array_equal(found.first, [[3, 2, 1], [5, 4, -np.inf]])
    assert found.ranks(found.first).tolist() == [2, 1]
    with pytest.raises(SystemExit, match="a query has several right candidates"):
        Queries.of(mined(tmp_path / "two", ([1, 1], [1, 0])))


def test_scores_of_a_model_stand_where_their_candidates_do(tmp_path):
    found = Queries.of(mined(tmp_path / "test", ([0, 0], [9, 8]), ([0, 1, 0], [3, 2, 1]), ([1, 0], [5, 4])))
    asked = []

    class Model:
        def score(self, some, candidates):
            asked.append((some, candidates))
            return [np.arange(len(own)) for own in candidates]

    np.testing.assert_array_equal(found.scored(Model()), [[0, 1, 2], [0, 1, -np.inf]])
    assert asked == [(["query 1"], [["t0", "t1", "t2"]]), (["query 2"], [["t0", "t1"]])]


def done_of(*told):
    return {Cell("words", *each[:3]): {"validation": each[3]} for each in told}


def test_rates_are_tried_on_one_seed_and_the_best_goes_on():
    tried = [Cell("words", arm, 0, rate) for arm in ARMS for rate in RATES]
    assert cells("words", {}) == [Cell("words", ZERO, 0, 0.0), *tried]
    arm, (low, high) = ARMS[1], RATES
    half = done_of((arm, 0, low, 0.5))
    assert cells("words", half) == cells("words", {}) and not best(half, Cell("words", arm, 0, low))
    done = done_of((arm, 0, low, 0.5), (arm, 0, high, 0.6))
    more = [Cell("words", arm, seed, high) for seed in range(1, SEEDS)]
    assert cells("words", done) == [*cells("words", {}), *more]
    assert best(done, Cell("words", arm, 0, high)) and not best(done, Cell("words", arm, 0, low))
    assert best(done, Cell("words", ZERO, 0, 0.0)) and not best(done, Cell("words", ARMS[0], 0, high))
    same = done_of((arm, 0, low, 0.5), (arm, 0, high, 0.5))
    assert best(same, Cell("words", arm, 0, low))
    others = {Cell("pictures", *cell[1:]): row for cell, row in done.items()}
    assert cells("words", others) == cells("words", {})


def test_what_learns_nothing_is_told_beside_what_learns():
    rows = [{"query": Item(text="a red car"), "candidates": [Item(text=x) for x in texts]} for texts in
            (["a dog", "red car", "red dog"], ["car", "a cat"])]  # fmt: skip
    asked = queries([[3.0, 2.0, 1.0], [1.0, 2.0]], [1, 1], rows)
    found = compare.baselines(asked)
    np.testing.assert_allclose(found["random order"][1], [(1 + 1 / 2 + 1 / 3) / 3, (1 + 1 / 2) / 2])
    assert (found["oracle"] == 1).all() and found[FIRST][1].tolist() == [1 / 2, 1]
    assert found["word overlap"][2].tolist() == [1, 0]
    pictures = [{**row, "query": Item(images=("x.png",))} for row in rows]
    assert "word overlap" not in compare.baselines(queries([[3.0, 2.0], [1.0, 2.0]], [1, 0], pictures))


def test_a_row_an_arm_over_all_queries_with_means_of_seeds_first():
    rows = [{"query": Item(images=("x.png",)), "candidates": []}] * 4
    asked = queries([[2.0, 1.0]] * 4, [0, 0, 0, 1], rows, asked=5)
    done = {}
    for cell in [
        Cell("words", ZERO, 0, 0.0),
        *(Cell("words", arm, 0, rate) for arm in ARMS for rate in RATES),
    ]:
        done[cell] = {"validation": cell.rate, "test": {"alone": [2, 2, 2, 2], "sum": [1, 1, 1, 2]}}
    for cell in cells("words", done):
        done.setdefault(cell, {"validation": 0.0, "test": {"alone": [1, 1, 2, 1], "sum": [1, 1, 1, 1]}})
    found = {row["arm"]: row for row in compare.summary("words", "test", done, asked)}
    assert list(found)[:3] == ["random order", "oracle", FIRST] and found["oracle"]["gains"][2] == 80
    assert found[FIRST]["gains"][1] == pytest.approx(100 * (3 + 1 / 2) / 5)
    reciprocals = np.mean([[1 / 2] * 4, *[[1, 1, 1 / 2, 1]] * (SEEDS - 1)], 0)
    assert found["sft"]["gains"][1] == pytest.approx(100 * reciprocals.sum() / 5)
    assert found["sft"]["paired"].mean == pytest.approx((reciprocals.sum() - 3.5) / 5)
    assert found[FIRST]["paired"] is None and found["sft"]["p"] >= found["sft"]["paired"].p
    lines = compare.table(list(found.values()))
    assert len(lines) == 2 + len(found) and {line.count("|") for line in lines} == {7}
    assert "MRR less first stage" in lines[0]
    asked = queries([[1.0, 2.0]] * 4, [0, 0, 0, 1], rows, asked=5)  # worse than none: 2.5 of 5, chance 3
    found = {row["arm"]: row for row in compare.summary("words", "test", done, asked)}
    assert "MRR less random order" in compare.table(list(found.values()))[0]
    assert found[FIRST]["paired"].mean == pytest.approx((2.5 - 3) / 5)
    assert found["sft"]["paired"].mean == pytest.approx((reciprocals.sum() - 3) / 5)
