"""Which models a soup keeps, what its folder holds, and what is refused."""

import errno
import itertools
import json
import os
import random
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

import vlalign
from tests.unit.models.conftest import open_clip_folder
from vlalign.infer import soup as module
from vlalign.infer.evaluate import evaluate
from vlalign.infer.soup import equal, finished, greedy, read, soup
from vlalign.models.weights import save
from vlalign.recipe.decode import load_recipe
from vlalign.recipe.offline import EvalRecipe, SoupRecipe
from vlalign.specs import EvalRow
from vlalign.types import RecipeError, UserError


@dataclass(frozen=True, kw_only=True)
class Near:
    """Measures how near a model's scale lies to `goal`, as a score and as a distance."""

    goal: float = 0.0
    every: int = 0

    def __call__(self, model, limits):
        away = abs(model.model.scale.item() - self.goal)
        metrics = {"score": -away, "distance": away}
        return [EvalRow(dataset="toy", task="toy", metrics=metrics, chance={})]


@pytest.fixture
def models(tmp_path):
    """Folders of models whose scales are 0, 3, -1, 4."""
    torch.manual_seed(0)
    model = vlalign.load(open_clip_folder(tmp_path / "config"), device="cpu").model
    folders = []
    for place, scale in enumerate((0.0, 3.0, -1.0, 4.0)):
        model.scale.data.fill_(scale)
        save(model, tmp_path / f"model{place}")
        folders.append(str(tmp_path / f"model{place}"))
    return tuple(folders)


@pytest.fixture
def recipe(models, tmp_path):
    return SoupRecipe(verb="soup", out=str(tmp_path / "out"), models=models)


def scale(out: Path) -> float:
    return vlalign.load(out, device="cpu").model.scale.item()


def value_of(table):
    """A value for each set of models that have a weight."""
    return lambda weights: table[tuple(place for place, weight in enumerate(weights) if weight)]


def tables(count, seed):
    draw = random.Random(seed)
    sets = [s for size in range(1, count + 1) for s in itertools.combinations(range(count), size)]
    return {chosen: draw.choice([0.1, 0.2, 0.3, 0.4]) for chosen in sets}  # with ties


@pytest.mark.parametrize("less", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_a_greedy_soup_is_the_loop_of_the_paper_and_never_below_its_best(seed, less):
    table = tables(5, seed)
    sign = -1 if less else 1
    order = sorted(range(5), key=lambda place: (-sign * table[(place,)], place))
    kept: tuple[int, ...] = ()
    for place in order:
        tried = tuple(sorted((*kept, place)))
        if not kept or sign * table[tried] >= sign * table[kept]:
            kept = tried
    weights, seen = greedy(5, value_of(table), less)
    assert weights == equal(kept, 5) and sum(weights) == pytest.approx(1)
    assert sign * value_of(table)(weights) >= max(sign * row["alone"] for row in seen)
    assert [row["alone"] for row in seen] == [table[(place,)] for place in range(5)]
    assert "with" not in seen[order[0]] and sum("with" in row for row in seen) == 4


def test_a_model_that_changes_nothing_stays_and_one_that_harms_does_not():
    table = {(0,): 0.5, (1,): 0.4, (2,): 0.3, (0, 1): 0.5, (0, 1, 2): 0.49}
    assert greedy(3, value_of(table))[0] == [0.5, 0.5, 0.0]


def test_a_uniform_soup_is_written_once_with_what_it_was_made_of(recipe):
    out = soup(recipe)
    assert scale(out) == pytest.approx(1.5) and finished(recipe)
    assert sorted(path.name for path in out.iterdir()) == ["model", "recipe.yaml"]
    assert read(out) == [{"model": f"model{place}", "weight": 0.25} for place in range(4)]  # no path of ours
    assert load_recipe(out / "recipe.yaml") == recipe
    before = (out / "model").stat().st_mtime_ns
    assert soup(recipe) == out and (out / "model").stat().st_mtime_ns == before


def test_alpha_is_the_share_of_the_second(recipe, models):
    for alpha, wanted in ((0.0, 0.0), (0.25, 0.75), (1.0, 3.0)):
        out = soup(replace(recipe, models=models[:2], alpha=alpha, out=f"{recipe.out}{alpha}"))
        assert scale(out) == wanted


def test_a_greedy_soup_measures_keeps_and_tells(recipe):
    chosen = replace(recipe, greedy="score", evals=(Near(goal=1.4), Near()))
    out = soup(chosen)
    # 0 comes first, 1.4 away; with 3 it is 1.5; -1 would be worse than that, and so would 4.
    rows = read(out)
    assert [row["weight"] for row in rows] == [0.5, 0.5, 0.0, 0.0] and scale(out) == 1.5
    assert [row["alone"] for row in rows] == pytest.approx([-1.4, -1.6, -2.4, -2.6])
    assert [row.get("with") for row in rows] == [
        None,
        pytest.approx(-0.1),
        pytest.approx(-11 / 15),
        pytest.approx(-14 / 15),
    ]
    found = json.loads((out / "metrics.json").read_text())
    assert [row["metrics"]["score"] for row in found] == pytest.approx([-0.1, -1.5])
    assert (out / "report.html").exists() and finished(chosen)
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []
    nearer = replace(chosen, models=chosen.models[:2], greedy="-distance", out=f"{recipe.out}2")
    assert scale(soup(nearer)) == 1.5  # more distance would have kept the second alone


def test_a_model_and_itself_is_that_model(recipe, models):
    again = replace(recipe, models=(models[1], models[1]), greedy="score", evals=(Near(goal=3.0),))
    out = soup(again)
    (file,) = (out / "model").glob("*.safetensors")
    assert file.read_bytes() == (Path(models[1]) / file.name).read_bytes()
    assert [row["weight"] for row in read(out)] == [0.5, 0.5]


def test_only_what_is_missing_is_made_again(recipe):
    measured = replace(recipe, evals=(Near(),))
    out = soup(measured)
    (out / "metrics.json").unlink()
    assert not finished(measured)
    before = (out / "model").stat().st_mtime_ns
    soup(measured)
    assert finished(measured) and (out / "model").stat().st_mtime_ns == before
    shutil.rmtree(out / "model")
    soup(measured)
    assert finished(measured)


def test_another_recipes_folder_is_refused(recipe, models):
    soup(recipe)
    with pytest.raises(RecipeError, match=r"holds a run of another recipe(.|\n)*models.3: .* nothing here"):
        soup(replace(recipe, models=models[:3]))
    shutil.rmtree(recipe.out)
    evaluate(EvalRecipe(verb="eval", out=recipe.out, model=models[0], evals=(Near(),), feature_cache=False))
    with pytest.raises(RecipeError, match=r"verb: 'eval' there, 'soup' here"):
        soup(recipe)


def test_a_refused_soup_leaves_nothing_that_stops_the_mended_one(recipe, models):
    with pytest.raises(UserError, match="there is no such folder, and it is no Hub id either"):
        soup(replace(recipe, models=(*models, "/nowhere/at/all")))
    wrong = replace(recipe, greedy="scor", evals=(Near(),))
    told = r"greedy: \S*test_soup:Near has no metric 'scor'. Did you mean 'score'\? It has: score, distance"
    with pytest.raises(UserError, match=told):
        soup(wrong)
    assert [path.name for path in Path(recipe.out).iterdir()] == ["recipe.yaml"]
    assert finished(replace(recipe, out=str(soup(recipe))))


def test_a_full_disk_is_told_by_the_folder(recipe, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "mix", refuse)
    with pytest.raises(UserError, match="^out: .*/out cannot be written: No space left on device; put that"):
        soup(recipe)
    assert [path.name for path in Path(recipe.out).iterdir()] == ["recipe.yaml"]


def test_a_model_that_is_no_soup_is_not_taken_for_one(recipe, models):
    shutil.copytree(models[0], Path(recipe.out) / "model")
    assert not finished(recipe)
    with pytest.raises(UserError, match="^out: .*/out/model is there and is no soup; name another folder"):
        soup(recipe)
    assert [path.name for path in Path(recipe.out).iterdir()] == ["model"]


def test_an_ingredient_that_cannot_be_read_is_told_as_such(recipe, models, monkeypatch):
    (file,) = Path(models[2]).glob("*.safetensors")
    content = file.read_bytes()
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match=f"^models: .*{file.name} cannot be read: "):
        soup(recipe)
    file.rmdir()
    file.write_bytes(content)

    def refuse(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=r"^models: .*model0/.*.json cannot be read: Permission denied"):
        soup(recipe)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_not_finite_chooses_nothing(recipe, models, monkeypatch, value):
    measured = Near.__call__

    def strange(self, model, limits):
        (row,) = measured(self, model, limits)
        return [replace(row, metrics=row.metrics | {"score": value})] if model.model.scale == 3 else [row]

    monkeypatch.setattr(Near, "__call__", strange)
    with pytest.raises(UserError, match=f"^greedy: score of {models[1]} is {value}, by which nothing can be"):
        soup(replace(recipe, greedy="score", evals=(Near(),)))


@pytest.mark.parametrize("name", ["uniform", "greedy", "wise_ft"])
def test_the_shipped_recipes_run(models, tmp_path, name):
    own = "tests.unit.infer.test_soup:Near"
    changes = [f"models={list(models[:2])}", f"out={tmp_path / 'out'}", f"evals=[{{name: '{own}'}}]"]
    shipped = load_recipe(f"recipes/soup/{name}.yaml", changes + ["greedy=score"] * (name == "greedy"))
    out = soup(shipped)
    assert scale(out) == {"uniform": 1.5, "greedy": 0.0, "wise_ft": 1.5}[name] and finished(shipped)
