"""Several judges' ratings of several items as one score: what is rated, what is told, what is refused."""

import json
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest

from tests.unit.infer.mined import lines, write
from vlalign.evals.metrics.judging import interval_alpha
from vlalign.evals.metrics.rasch import rasch
from vlalign.infer.calibrate import calibrated, concepts
from vlalign.infer.facets import check_design, ordinal, rated
from vlalign.infer.judge import judge
from vlalign.infer.judges.likert import Likert
from vlalign.infer.judges.overlap import Overlap
from vlalign.infer.measured import Measured
from vlalign.recipe.decode import load_recipe
from vlalign.recipe.facets import Facets, Rating
from vlalign.types import RecipeError, UserError

QUERIES, CANDIDATES = 40, 6
SEVERITY = {"anna": -1.0, "bert": 0.0, "carl": 1.0}
DIFFICULTY = {"objects": -0.5, "attributes": 0.5}
STEPS = np.array([-1.5, -0.5, 0.5, 1.5])
CROSSED = {
    f"{rater}_{item}": {"rater": rater, "item": item} for rater in SEVERITY for item in DIFFICULTY
}  # all rate everything, from 1 to 5


def draw(generator, location):
    """A rating of 1 to 5, category after category."""
    odds = [1.0]
    for step in STEPS:
        odds.append(odds[-1] * np.exp(location - step))
    return 1 + int(generator.choice(5, p=np.array(odds) / sum(odds)))


def made(folder, noise=(), **fields):
    """Rows that three people rated, of two right candidates among six; and a recipe."""
    generator = np.random.default_rng(0)
    rows = []
    for query in range(QUERIES):
        candidates = []
        for at in range(CANDIDATES):
            right = at in (1, 4)
            ability = generator.normal() + 2 * right
            own = {"id": f"d{query}-{at}", "text": f"thing {query} {at}", "label": int(right)}
            for name, facet in CROSSED.items():
                place = ability - SEVERITY[facet["rater"]] - DIFFICULTY[facet["item"]]
                chance = facet["rater"] in noise
                own[name] = int(generator.integers(1, 6)) if chance else draw(generator, place)
            candidates.append(own | {"ability": ability, "first": generator.normal() + right})
        rows.append({"id": f"q{query}", "query": {"text": f"what is {query}"}, "candidates": candidates})
    told = {"verb": "judge", "out": str(folder / "out"), "store": str(folder / "s.sqlite")}
    told |= {"data": {"name": "candidates", "path": str(write(folder / "rows.jsonl", rows))}}
    told |= {"numbers": list(CROSSED), "rasch": {"ratings": CROSSED}}
    (folder / "r.yaml").write_text(json.dumps(told | fields))
    return load_recipe(folder / "r.yaml")


def found(recipe):
    out = judge(recipe)
    return json.loads((out / "judged.json").read_text()), lines(out / "candidates.jsonl")


def every(rows, name):
    return [each[name] for row in rows for each in row["candidates"]]


def abilities(rows, names=tuple(CROSSED)):
    """One rating after another, and the model on them."""
    raters, items = [*SEVERITY], [*DIFFICULTY]
    told = [
        (at, items.index(CROSSED[name]["item"]), raters.index(CROSSED[name]["rater"]), int(value) - 1)
        for name in names
        for at, value in enumerate(every(rows, name))
    ]
    return rasch(*(np.array(column) for column in zip(*told, strict=True)), categories=5)


def test_the_score_is_the_ability_and_severities_are_told_by_name(tmp_path):
    told, rows = found(made(tmp_path))
    wanted = abilities(rows)
    assert every(rows, "judge_score") == pytest.approx(wanted.ability.tolist())
    raters, items = told["rasch"]["raters"], told["rasch"]["items"]
    assert [*raters] == [*SEVERITY] and [*items] == [*DIFFICULTY]
    for at, (name, severity) in enumerate(SEVERITY.items()):
        assert raters[name]["severity"] == pytest.approx(wanted.severity[at])
        assert raters[name]["error"] == pytest.approx(wanted.severity_error[at])
        assert raters[name]["infit"] == pytest.approx(wanted.rater_infit[at])
        assert abs(raters[name]["severity"] - 1.2 * severity) < 0.3  # too wide by 6 / 5
    assert items["objects"]["difficulty"] < 0 < items["attributes"]["difficulty"]
    assert told["rasch"]["misfits"] == [] and set(told["rasch"]["beyond_scale"].values()) == {0}
    agreement = told["rasch"]["agreement"]
    assert 0.2 < agreement["ratings"] < agreement["without_severity"] - 0.05 < 0.95
    assert set(told["alone"]) == {*CROSSED, "overlap"} == set(told["baselines"])
    assert told["score"]["auc"] > max(told["alone"][name]["auc"] for name in CROSSED)
    truth = np.corrcoef(every(rows, "ability"), every(rows, "judge_score"))[0, 1]
    assert truth > max(np.corrcoef(every(rows, "ability"), every(rows, name))[0, 1] for name in CROSSED)


def test_who_rates_at_random_is_told_by_name(tmp_path):
    told, _ = found(made(tmp_path, noise=("bert",)))
    assert told["rasch"]["misfits"] == ["bert"] and told["rasch"]["raters"]["bert"]["infit"] > 1.5


def test_with_calibrate_it_is_the_probability_of_the_ability_and_of_what_is_not_rated(tmp_path):
    numbers = [*CROSSED, "first"]
    told, rows = found(made(tmp_path, numbers=numbers, calibrate={"folds": 2}))
    flat = np.array([abilities(rows).ability, every(rows, "first")]).T
    right = np.array(every(rows, "label")) > 0
    same = [[row["query"]["text"], *(e["text"] for e in row["candidates"] if e["label"])] for row in rows]
    odds = calibrated(flat, right, np.repeat(concepts(same), CANDIDATES), 2)
    assert every(rows, "judge_score") == pytest.approx((1 / (1 + np.exp(-odds))).tolist(), abs=1e-9)
    assert told["baselines"] == [*numbers, "overlap"] and 0 <= told["score"]["calibration_error"] <= 1


def test_a_judge_rates_beside_people(tmp_path, monkeypatch):
    """Who knows all to the digit is in no category's way: 0 to 1 in five widths."""
    recipe = made(
        tmp_path,
        judges=["overlap"],
        numbers=["anna_objects", "carl_objects"],
        rasch={
            "ratings": {
                "anna_objects": {"rater": "anna"},
                "carl_objects": {"rater": "carl"},
                "machine": {"rater": "machine", "scale": [0, 1]},
            }
        },
    )
    ratings = {e["text"]: e["ability"] for row in lines(tmp_path / "rows.jsonl") for e in row["candidates"]}

    def measure(self, query, candidates):
        yield {at: [1 / (1 + np.exp(-ratings[each.text]))] for at, each in enumerate(candidates)}

    monkeypatch.setattr("vlalign.infer.measured.name_of", lambda kind: "machine")
    monkeypatch.setattr(Overlap, "measure", measure)
    told, rows = found(recipe)
    x = [min(int(5 / (1 + np.exp(-each))), 4) for each in every(rows, "ability")]
    columns = [np.array(every(rows, f"{name}_objects"), int) - 1 for name in ("anna", "carl")] + [np.array(x)]
    pairs = QUERIES * CANDIDATES
    wanted = rasch(
        np.tile(np.arange(pairs), 3),
        np.zeros(3 * pairs, int),
        np.arange(3).repeat(pairs),
        np.concatenate(columns),
        categories=5,
    )
    assert every(rows, "judge_score") == pytest.approx(wanted.ability.tolist())
    assert [*told["rasch"]["raters"]] == ["anna", "carl", "machine"] and [*told["rasch"]["items"]] == ["all"]


def test_numbers_become_categories():
    def of(numbers, scale, categories=5):
        return ordinal(np.array(numbers, float), Rating(rater="a", scale=scale), categories).tolist()

    assert of([1, 1.49, 1.5, 2.5, 3.2, 4.51, 5], (1.0, 5.0)) == [0, 0, 1, 2, 2, 4, 4]  # rounded
    assert of([1, 2, 3], (1.0, 3.0), 3) == of([0, 1, 2], (0.0, 2.0), 3) == [0, 1, 2]
    assert of([0, 0.19, 0.21, 0.5, 0.79, 0.81, 1], (0.0, 1.0)) == [0, 0, 1, 2, 3, 4, 4]  # equal widths
    assert of([0.5, 1, 2, 3, 4, 4.5], (0.5, 4.5)) == [0, 0, 1, 3, 4, 4]  # it has four whole numbers
    assert of([-100, -2, 0, 2, 1e4], "log_odds") == [0, 0, 2, 4, 4]
    assert of([-7, 99], (1.0, 5.0)) == [0, 4]  # beyond it
    one = Facets(ratings={"a": Rating(rater="x"), "b": Rating(rater="y", scale=(2.0, 4.0))}, categories=3)
    _, told = rated(one, {"a": [[1, 2, 9], [4, 5]], "b": [[1, 2, 5], [3, 3]]})
    assert told["beyond_scale"] == {"a": 1, "b": 2}


def test_alpha_is_one_less_observed_over_expected_disagreement():
    generator = np.random.default_rng(0)
    units, values = generator.integers(0, 12, 40), generator.integers(0, 5, 40).astype(float)
    units[0], values[0] = 50, 99.0  # of one rating, which pairs with none
    kept = [at for at in range(40) if (units == units[at]).sum() > 1]
    within = sum(
        (values[a] - values[b]) ** 2 / ((units == units[a]).sum() - 1)
        for a, b in permutations(kept, 2)
        if units[a] == units[b]
    ) / len(kept)
    among = sum((values[a] - values[b]) ** 2 for a, b in permutations(kept, 2))
    among /= len(kept) * (len(kept) - 1)
    assert interval_alpha(units, values) == pytest.approx(1 - within / among)
    assert interval_alpha(np.array([0, 0, 1, 1]), np.array([1.0, 1, 3, 3])) == 1
    assert interval_alpha(np.array([0, 1, 2]), np.array([1.0, 2, 3])) is None
    assert interval_alpha(np.array([0, 0, 1, 1]), np.ones(4)) is None


def test_what_falls_into_parts_is_refused_before_a_judge_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(Overlap, "measure", lambda *given: pytest.fail("asked"))
    apart = {
        "anna_objects": {"rater": "anna", "item": "objects"},
        "overlap": {"rater": "machine", "item": "words", "scale": [0, 1]},
    }
    fields = {"judges": ["overlap"], "numbers": ["anna_objects"]}
    with pytest.raises(
        UserError, match="rasch: with raters 0 anna, 1 machine, and items 0 objects, 1 words: no rating joins"
    ):
        judge(made(tmp_path, rasch={"ratings": apart}, **fields))
    assert not (tmp_path / "out").exists()
    one = {name: {"rater": name} for name in ("anna_objects", "carl_objects")}
    monkeypatch.setattr("vlalign.infer.measured.name_of", lambda kind: "anna_objects")
    with pytest.raises(RecipeError, match="'anna_objects' is a judge and a number of the rows"):
        judge(made(tmp_path, rasch={"ratings": one}, judges=["overlap"], numbers=[*one], calibrate={}))
    monkeypatch.undo()
    monkeypatch.setattr(Overlap, "measure", lambda *given: pytest.fail("asked"))
    apart["overlap 2"] = apart.pop("overlap")
    with pytest.raises(RecipeError, match="nothing measures 'overlap 2'; what is measured is called overlap"):
        judge(made(tmp_path, rasch={"ratings": apart}, **fields))


def test_categories_that_nobody_uses_are_told(tmp_path):
    wide = {name: own | {"scale": [1, 7]} for name, own in CROSSED.items()}
    with pytest.raises(UserError, match="rasch: with raters 0 anna, .*no rating is 5, 6.*merge categories"):
        judge(made(tmp_path, rasch={"ratings": wide, "categories": 7}))


def test_what_is_asked_of_a_recipe(tmp_path):
    one = {"anna_objects": {"rater": "anna"}}
    for fields, why in (
        ({"numbers": [*CROSSED, "first"]}, "2 measurements are one score only when it is there"),
        ({"rasch": {"ratings": one}}, "ratings: must be at least two, got anna_objects"),
        ({"rasch": {"ratings": CROSSED, "categories": 1}}, "categories: must be >= 2"),
        ({"numbers": [], "oracle": {}}, "an oracle needs none"),
        ({"rasch": {"ratings": {**CROSSED, "carl_objects": {"rater": " "}}}}, "rater: must not be empty"),
        (
            {"rasch": {"ratings": {**CROSSED, "carl_objects": {"rater": "a", "scale": [5, 1]}}}},
            "scale: must be finite, lowest < highest",
        ),
    ):
        with pytest.raises(RecipeError, match=why):
            made(tmp_path, **fields)


def test_the_shipped_design_names_its_judges_as_they_are_told(tmp_path, monkeypatch):
    recipe = load_recipe("recipes/judge/rasch.yaml", [f"store={tmp_path / 's.sqlite'}"])
    monkeypatch.setattr(Likert, "build", lambda self: SimpleNamespace(width=1))
    measured = Measured(recipe)
    assert measured.names == [*recipe.rasch.ratings]
    check_design(recipe.rasch, dict(zip(measured.names, measured.judges, strict=True)), recipe.numbers)
