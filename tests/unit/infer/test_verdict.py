"""Whether a judge is worth more than its baselines, and what it finds that is not labelled."""

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from tests.unit.infer.mined import lines, write
from vlalign.data.overlap import word_overlap
from vlalign.infer.calibrate import calibrated, concepts
from vlalign.infer.judge import judge
from vlalign.recipe.decode import load_recipe
from vlalign.types import RecipeError

QUERIES, CANDIDATES = 40, 6


def made(folder, knows: float, **fields):
    """Rows whose number `model` tells right candidates so well, and a recipe that judges by it."""
    random = np.random.default_rng(0)
    rows = []
    for query in range(QUERIES):
        candidates = []
        for at in range(CANDIDATES):
            right = at in (1, 4)
            number = random.normal() + knows * right
            own = {
                "id": f"d{query}-{at}",
                "text": f"thing {query} {at}",
                "right": int(right),
                "model": number,
            }
            candidates.append(own | {"label": int(at == 1), "first": random.normal() + right})
        rows.append({"id": f"q{query}", "query": {"text": f"what is {query}"}, "candidates": candidates})
    told = {"verb": "judge", "out": str(folder / "out"), "label": "right", "judges": ["overlap"]}
    told |= {"data": {"name": "candidates", "path": str(write(folder / "rows.jsonl", rows))}}
    told |= {"numbers": ["first"], "calibrate": {"folds": 2}, "store": str(folder / "s.sqlite")}
    (folder / "r.yaml").write_text(json.dumps(told | fields))
    return load_recipe(folder / "r.yaml")


def found(recipe):
    out = judge(recipe)
    return json.loads((out / "judged.json").read_text()), lines(out / "candidates.jsonl")


class Knows:
    """A judge that is given its numbers."""

    width, digest = 1, "knows"

    def __init__(self, numbers: dict[str, float]) -> None:
        self.numbers = numbers

    def measure(self, query, candidates):
        yield {at: [self.numbers[each.text]] for at, each in enumerate(candidates)}


def judged_by_numbers(monkeypatch, recipe):
    from vlalign.infer.judges.overlap import Overlap

    told = lines(Path(recipe.data.path))
    numbers = {each["text"]: each["model"] for row in told for each in row["candidates"]}
    monkeypatch.setattr(Overlap, "build", lambda self: Knows(numbers))
    monkeypatch.setattr("vlalign.infer.measured.name_of", lambda kind: "knows")


@pytest.mark.parametrize(("knows", "informative"), [(3.0, True), (0.0, False)])
def test_informative_is_what_beats_all_baselines_and_these_in_one_regression(
    tmp_path, monkeypatch, knows, informative
):
    recipe = made(tmp_path, knows)
    judged_by_numbers(monkeypatch, recipe)
    told, rows = found(recipe)
    assert told["informative"] is informative and told["baselines"] == ["first", "overlap", "baselines"]
    right = np.array([each["right"] > 0 for row in rows for each in row["candidates"]])
    flat = [
        [e["first"], word_overlap(row["query"]["text"], e["text"])] for row in rows for e in row["candidates"]
    ]
    same = [[row["query"]["text"], *(e["text"] for e in row["candidates"] if e["right"])] for row in rows]
    odds = calibrated(np.array(flat), right, np.repeat(concepts(same), CANDIDATES), 2).reshape(-1, CANDIDATES)
    best = [1 + min((-own).argsort().tolist().index(at) for at in (1, 4)) for own in odds]
    assert told["alone"]["baselines"]["mrr"] == pytest.approx(np.mean([1 / each for each in best]))


def test_a_candidate_that_says_the_querys_words_tells_nothing_of_a_judge(tmp_path):
    recipe = made(tmp_path, 0.0)
    plain, _ = found(recipe)
    rows = lines(Path(recipe.data.path))
    for row in rows:
        row["candidates"].append(
            {"id": f"same {row['id']}", "text": f" What is  {row['id'][1:]}", "right": 1, "first": 9.0}
        )
    write(tmp_path / "rows.jsonl", rows)
    (tmp_path / "r.yaml").write_text((tmp_path / "r.yaml").read_text().replace('/out"', '/with"'))
    told, judged = found(load_recipe(tmp_path / "r.yaml"))
    assert told["counted"] == plain["counted"] == plain["pairs"] and told["pairs"] == plain["pairs"] + QUERIES
    assert told["alone"]["first"] == pytest.approx(plain["alone"]["first"])
    assert all(len(row["candidates"]) == CANDIDATES + 1 for row in judged)  # each has its score


def test_what_is_known_chooses_and_what_is_right_tells_how_well(tmp_path):
    choose = {"margin": 0.5, "treat": "relabel", "k": 9, "stride": 1}
    known = {"known": "label", "choose": choose}
    told, rows = found(
        made(tmp_path, 0.0, judges=[], numbers=[], calibrate=None, oracle={"flip": 0.0}, **known)
    )
    assert told["treated"]["suspected"] == QUERIES  # the right one without a label
    assert told["treated"]["precision"] == told["treated"]["recall"] == 1.0
    for row in rows:
        assert [each["label"] for each in row["candidates"]] == [0, 1, 0, 0, 1, 0]
    oracle = {"flip": 0.3, "seed": 1}
    folder = tmp_path / "flipped"
    folder.mkdir()
    told, rows = found(made(folder, 0.0, judges=[], numbers=[], calibrate=None, oracle=oracle, **known))
    assert all(row["candidates"][1]["judge_score"] == 1 for row in rows)  # what is known is not flipped
    labelled = [each for row in rows for each in row["candidates"] if each["label"]]
    new = [each for each in labelled if not each["id"].endswith("-1")]
    assert told["treated"]["precision"] == pytest.approx(np.mean([each["right"] for each in new]))
    assert told["treated"]["recall"] == pytest.approx(sum(each["right"] for each in new) / QUERIES)


def test_a_number_that_tells_what_is_known_must_be_there(tmp_path):
    with pytest.raises(RecipeError, match="not every candidate has the number 'labels'"):
        judge(made(tmp_path, 0.0, known="labels"))


def test_permuted_scores_are_those_of_the_same_query_dealt_anew_before_anything_reads_them(tmp_path):
    plain, rows = found(made(tmp_path, 0.0, judges=[], numbers=["model"], calibrate=None))
    other = tmp_path / "other"
    other.mkdir()
    choose = {"margin": 0.0, "treat": "drop", "k": 9, "stride": 1}
    fields = {"judges": [], "numbers": ["model"], "calibrate": None, "permute": 3}
    told, dealt = found(made(other, 0.0, **fields))
    before, after = (
        [[each["judge_score"] for each in row["candidates"]] for row in each] for each in (rows, dealt)
    )
    assert [sorted(own) for own in before] == [sorted(own) for own in after]
    assert sum(a != b for a, b in zip(before, after, strict=True)) > QUERIES // 2
    assert told["alone"]["model"] == plain["alone"]["model"] and told["score"] != plain["score"]
    again = tmp_path / "again"
    again.mkdir()
    told, stay = found(
        made(again, 0.0, **fields, choose=choose, known="label")
    )  # what is known keeps its own
    assert told["treated"]["suspected"] == sum(own[at] > own[1] for own in before for at in (0, 2, 3, 4, 5))
    ids = [{each["id"] for each in row["candidates"]} for row in stay]
    assert all(f"d{query}-1" in own for query, own in enumerate(ids))


def test_a_gain_is_over_concepts_whose_queries_are_one(tmp_path):
    """Every query is asked twice, once with other numbers; alone each would be a concept of its own."""
    told, rows = found(made(tmp_path, 1.0, judges=[], numbers=["model"], calibrate=None))
    alone = {name: own["mrr"] for name, own in told["alone"].items()}
    assert told["gain"]["overlap"]["difference"] == pytest.approx(told["score"]["mrr"] - alone["overlap"])
    twice = tmp_path / "twice"
    twice.mkdir()
    recipe = made(twice, 1.0, judges=[], numbers=["model"], calibrate=None)
    again = [
        {**row, "id": f"again {row['id']}", "candidates": row["candidates"][:3]}
        for row in lines(Path(recipe.data.path))[:20]
    ]
    write(twice / "rows.jsonl", lines(Path(recipe.data.path)) + again)
    told, rows = found(recipe)
    gains = {}
    for row in rows:
        each = row["candidates"]
        overlap = [word_overlap(row["query"]["text"], e["text"]) for e in each]
        assert len(set(overlap)) == 1  # whose order is chance's
        right = [at for at, e in enumerate(each) if e["right"]]
        best = 1 + min(sum(e["model"] > each[at]["model"] for e in each) for at in right)
        firsts = [min(order.index(at) for at in right) for order in permutations(range(len(each)))]
        chance = np.mean([1 / (1 + first) for first in firsts])
        gains.setdefault(row["query"]["text"], []).append(1 / best - chance)
    assert len(gains) == QUERIES and len(rows) == QUERIES + 20
    expected = np.mean([np.mean(own) for own in gains.values()])
    assert told["gain"]["overlap"]["difference"] == pytest.approx(expected)


def test_what_is_known_calibrates_nothing_and_tells_nothing_of_a_judge(tmp_path):
    """A number that is sure of what is labelled, as that of who has learnt it, gains nothing by it."""
    plain, rows = found(made(tmp_path, 0.0, known="label"))
    sure = tmp_path / "sure"
    sure.mkdir()
    recipe = made(sure, 0.0, known="label")
    told = lines(Path(recipe.data.path))
    for row in told:
        row["candidates"][1]["first"] = 1000.0
    write(sure / "rows.jsonl", told)
    other, judged = found(recipe)
    assert other["counted"] == QUERIES * (CANDIDATES - 1) and other["pairs"] == QUERIES * CANDIDATES
    for name in ("score", "alone", "gain"):
        assert other[name] == plain[name]
    unknown = [
        [[e["judge_score"] for e in row["candidates"] if not e["label"]] for row in each]
        for each in (rows, judged)
    ]
    assert unknown[0] == unknown[1]
    assert {e["judge_score"] for row in rows for e in row["candidates"] if e["label"]} == {1.0}
    one, two = (
        [e["judge_score"] for row in each for e in row["candidates"] if not e["label"]]
        for each in (rows, judged)
    )
    assert one == two
