"""A judge that is not certain of a pair leaves it unjudged: which, at what cost, and what becomes of it."""

import json

import numpy as np
import pytest

from tests.unit.infer.mined import lines
from tests.unit.infer.test_verdict import CANDIDATES, QUERIES, found, made
from vlalign.infer.abstain import abstained, certain
from vlalign.infer.choosing import chosen
from vlalign.recipe.abstaining import Abstention
from vlalign.recipe.judging import Choice
from vlalign.types import RecipeError

SCORES = [[0.95, 0.5, 0.3], [0.55, 0.02, 0.7, 0.49]]
RIGHT = [[True, True, False], [False, False, False, True]]
ALL = [[True] * 3, [True] * 4]


def test_the_most_certain_are_judged_up_to_the_coverage_or_the_distance():
    assert certain(SCORES, ALL, None) == ALL
    assert certain(SCORES, ALL, Abstention(coverage=1.0)) == ALL
    two = [[True, False, False], [False, True, False, False]]
    assert certain(SCORES, ALL, Abstention(coverage=2 / 7)) == two
    assert certain(SCORES, ALL, Abstention(coverage=0.01)) == [[False] * 3, [False, True, False, False]]
    assert certain(SCORES, ALL, Abstention(distance=0.19)) == [
        [True, False, True],
        [False, True, True, False],
    ]
    assert certain(SCORES, ALL, Abstention(distance=0.0)) == ALL


def test_the_share_is_of_pairs_that_tell_of_a_judge_and_the_bound_is_for_all():
    counted = [[False, True, True], [True, False, True, True]]
    told = certain(SCORES, counted, Abstention(coverage=0.4))  # of 5 the 2 that are 0.2 from a half
    assert told == [[True, False, True], [False, True, True, False]]


def test_pairs_as_certain_as_the_last_come_in_too():
    told = certain([[0.9, 0.1, 0.9, 0.4]], [[True] * 4], Abstention(coverage=0.25))
    assert told == [[True, True, True, False]]


@pytest.mark.parametrize("seed", range(3))
def test_a_larger_coverage_judges_all_that_a_smaller_one_does(seed):
    scores = np.random.default_rng(seed).uniform(size=(6, 5)).tolist()
    every = [[True] * 5] * 6
    shares, before = [0.1, 0.4, 0.7, 1.0], np.zeros((6, 5), bool)
    for share in shares:
        told = np.array(certain(scores, every, Abstention(coverage=share)))
        assert told.sum() == round(30 * share) and (told | before == told).all()
        before = told


def test_what_is_told_is_counted_by_hand():
    judged = certain(SCORES, ALL, Abstention(coverage=2 / 7))
    told = abstained(SCORES, RIGHT, ALL, judged)
    assert told["unjudged"] == 5 and told["coverage"] == pytest.approx(2 / 7) and told["error"] == 0
    # by distance 0.02, 0.95 and 0.3, which are so, then 0.7, 0.55, 0.49 and 0.5, which are not
    errors = {round(7 * each["coverage"]): each["error"] for each in told["risk_coverage"]}
    assert errors == pytest.approx({1: 0, 2: 0, 3: 0, 4: 1 / 4, 5: 2 / 5, 6: 3 / 6, 7: 4 / 7})
    assert told["aurc"] == pytest.approx((1 / 4 + 2 / 5 + 3 / 6 + 4 / 7) / 7)
    # of two candidates of the second query 0.49 is the best beside 0.02 alone; the first has no four
    assert told["best_of"] == pytest.approx({"1": (2 / 3 + 1 / 4) / 2, "2": (1 + 1 / 6) / 2, "4": 0.0})


def test_what_is_left_unjudged_is_not_suspected_and_sets_no_bound():
    scores, right = [0.52, 0.9, 0.7, 0.6, 0.1], [True, True, False, False, False]
    choice = Choice(margin=0.0, k=9, stride=1)
    assert chosen(scores, right, choice).false == [2, 3]
    assert chosen(scores, right, choice, [False, True, True, True, True]).false == []  # the bound is 0.9
    assert chosen(scores, right, choice, [True, True, True, False, True]) == ([0, 1, 3, 4], [2])
    assert chosen(scores, right, choice, [False, False, True, True, True]) == ([0, 1, 2, 3, 4], [])


def test_a_run_tells_what_it_left_and_errs_less_on_the_rest(tmp_path):
    folders = {name: tmp_path / name for name in ("all", "most")}
    for folder in folders.values():
        folder.mkdir()
    fields = {
        "judges": [],
        "numbers": ["model"],
        "choose": {"margin": 0.3, "k": 9, "stride": 1, "treat": "soft"},
    }
    plain, before = found(made(folders["all"], 2.0, **fields))
    told, rows = found(made(folders["most"], 2.0, **fields, abstain={"coverage": 0.7}))
    own = told.pop("abstained")
    assert "abstained" not in plain and not any("judge_score_certain" in e for e in before[0]["candidates"])
    assert own["coverage"] == pytest.approx(0.7, abs=0.01) and own["unjudged"] == 72
    assert own["error"] < own["risk_coverage"][-1]["error"] and own["risk_coverage"][-1]["coverage"] == 1.0
    assert told["score"] == plain["score"] and told["treated"]["suspected"] < plain["treated"]["suspected"]
    flat = [each for row in rows for each in row["candidates"]]
    assert len(flat) == QUERIES * CANDIDATES
    sure = [abs(each["judge_score"] - 0.5) for each in flat if each["judge_score_certain"] == 1]
    left = [abs(each["judge_score"] - 0.5) for each in flat if each["judge_score_certain"] == 0]
    assert len(left) == 72 and min(sure) >= max(left)
    wrong = [
        (each["judge_score"] > 0.5) != (each["right"] > 0) for each in flat if each["judge_score_certain"]
    ]
    assert own["error"] == pytest.approx(np.mean(wrong))
    assert json.loads((folders["most"] / "out" / "judged.json").read_text())["abstained"] == own
    assert lines(folders["most"] / "out" / "candidates.jsonl") == rows


def test_what_is_asked_of_a_recipe(tmp_path):
    for fields, why in (
        ({}, "name either the coverage or the distance"),
        ({"coverage": 0.5, "distance": 0.1}, "name either the coverage or the distance"),
        ({"coverage": 0.0}, "coverage must be above 0 and at most 1, got 0"),
        ({"distance": 0.6}, "distance must be between 0 and 0.5, got 0.6"),
    ):
        with pytest.raises(ValueError, match=why):
            Abstention(**fields)
    with pytest.raises(RecipeError, match="a calibrated probability tells; set calibrate"):
        made(tmp_path, 0.0, judges=[], calibrate=None, abstain={"coverage": 0.5})
    for fields, name in (
        ({"known": "judge_score_certain", "abstain": {"coverage": 0.5}}, "judge_score_certain"),
        ({"known": "judge_score"}, "judge_score"),
    ):
        with pytest.raises(RecipeError, match=f"must be a new name, and '{name}' is another number's"):
            made(tmp_path, 0.0, judges=[], **fields)
