"""Directions by a tiny dual encoder: those of the maths alone, what they tell apart, what they refuse."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity, normalize

import vlalign
from vlalign.cli.direction import direction as command
from vlalign.infer.direction import direction
from vlalign.infer.poles import learnt, of_pair
from vlalign.models.weights import save
from vlalign.ops.direction import fit, pole, read, removed, score
from vlalign.recipe.decode import load_recipe
from vlalign.recipe.directing import DirectionRecipe
from vlalign.types import RecipeError, UserError

BRIGHT = ["a bright picture", "daylight", "a white wall"]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("VLALIGN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Noise in folders of 12 bright and 9 dark pictures, some unseen of both, and a tiny dual encoder."""
    place, noise = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, count, level in (
        ("bright", 12, 150),
        ("dark", 9, 40),
        ("new_bright", 6, 150),
        ("new_dark", 5, 40),
    ):
        (place / name).mkdir()
        for row in range(count):
            pixels = (level + noise.integers(-40, 60, (32, 32, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / name / f"{row:02}.png")
    whole = place / "bright" / "00.png"
    (place / "bright" / "damaged.png").write_bytes(whole.read_bytes()[:60])
    (place / "names.txt").write_text("night\nday\nsnow\ncoal\n")
    (place / "dark.txt").write_text("a dark picture\nthe night\n")
    for seed in (0, 1):
        torch.manual_seed(seed)
        save(vlalign.load("recipes/tiny/open_clip").model, place / f"model{seed}")
    return place


def pictures(folder, name):
    return {"name": "folder", "path": str(folder / name)}


def recipe(folder, out, *overrides):
    told = {"verb": "direction", "out": str(out), "model": str(folder / "model0")}
    told |= {"positive": pictures(folder, "bright"), "negative": pictures(folder, "dark")}
    path = out.parent / f"{out.name}.yaml"
    path.write_text(json.dumps(told))
    return load_recipe(path, list(overrides))


def rows(folder, name):
    paths = [path for path in sorted((folder / name).glob("*.png")) if path.stem != "damaged"]
    return vlalign.load(folder / "model0").encode_image(paths)


def test_it_is_that_of_the_maths_alone_and_the_same_again(folder, tmp_path):
    seen = []
    out = direction(recipe(folder, tmp_path / "out"), seen.append)
    found, wanted = read(out / "direction.safetensors"), fit(rows(folder, "bright"), rows(folder, "dark"))
    assert torch.equal(found.vector, wanted.vector) and found.vector.shape == (32,)
    assert found.target == pytest.approx(wanted.target) and found.steepness is None
    told = json.loads((out / "direction.json").read_text())
    assert told["target"] == pytest.approx(found.target) and sum(seen) == 22
    assert (told["positive"]["used"], told["positive"]["skipped"]) == (12, {"truncated": 1})
    mean = score(rows(folder, "dark"), found.vector).mean().item()
    assert told["negative"]["score"] == pytest.approx(mean) and mean < 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert direction(recipe(folder, tmp_path / "out")) == out
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    with pytest.raises(RecipeError, match="holds a run of another recipe"):
        direction(recipe(folder, tmp_path / "out", "fit=pair"))


def test_a_pair_is_learnt_until_it_tells_the_examples_apart(folder, tmp_path):
    positive, negative = rows(folder, "bright"), rows(folder, "dark")
    losses = []
    for steps in (1, 20, 400):
        poles = learnt(positive, negative, steps, 5e-3, seed=3)
        found = of_pair(*poles)
        odds = torch.cat([100 * (x @ poles[0] - x @ poles[1]) for x in (positive, negative)])
        torch.testing.assert_close(
            found.steepness * score(torch.cat([positive, negative]), found.vector), odds, atol=1e-3, rtol=1e-4
        )
        losses.append(binary_cross_entropy_with_logits(odds, torch.tensor([1.0] * 12 + [0.0] * 9)).item())
    assert losses[0] > losses[1] > losses[2] and losses[2] < 0.1
    told = ["fit=pair", "steps=400", "lr=0.005", "seed=3"]
    kept = read(direction(recipe(folder, tmp_path / "out", *told)) / "direction.safetensors")
    torch.testing.assert_close(kept.vector, found.vector)
    assert kept.steepness == pytest.approx(found.steepness)
    assert kept.target == pytest.approx(float(poles[0] @ found.vector), rel=1e-5)


def test_texts_of_a_list_and_of_a_file_are_examples_too(folder, tmp_path):
    told = [f"positive={json.dumps(BRIGHT)}", f"negative={folder / 'dark.txt'}"]
    out = direction(recipe(folder, tmp_path / "out", *told))
    model = vlalign.load(folder / "model0")
    wanted = fit(model.encode_text(BRIGHT), model.encode_text(["a dark picture", "the night"]))
    torch.testing.assert_close(read(out / "direction.safetensors").vector, wanted.vector)
    assert json.loads((out / "direction.json").read_text())["negative"]["used"] == 2


def test_it_is_orthogonal_to_what_it_is_against(folder, tmp_path):
    other = direction(recipe(folder, tmp_path / "other", f"negative={json.dumps(BRIGHT)}"))
    file = other / "direction.safetensors"
    for kind in ("residual", "pair"):
        told = [f"fit={kind}", f"against=['{file}']"]
        found = read(direction(recipe(folder, tmp_path / kind, *told)) / "direction.safetensors")
        assert abs(float(found.vector @ read(file).vector)) < 1e-6
    plain = read(direction(recipe(folder, tmp_path / "plain")) / "direction.safetensors")
    debiased = read(tmp_path / "residual" / "direction.safetensors")
    assert debiased.target == pytest.approx(float(pole(rows(folder, "bright")) @ debiased.vector), rel=1e-5)
    assert debiased.target < plain.target
    with pytest.raises(UserError, match=f"against: {file} is of another model; fit it again with this one"):
        direction(recipe(folder, tmp_path / "moved", f"model={folder / 'model1'}", f"against=['{file}']"))


def test_what_it_tells_apart_is_measured_beside_brightness_and_colours(folder, tmp_path, capsys):
    held = {f"held_out.{end}": pictures(folder, f"new_{kind}") for end, kind in ENDS}
    words = {"vocabulary": str(folder / "names.txt"), "template": "a picture of {name}"}
    told = [f"{key}={json.dumps(value)}" for key, value in (held | {"words": words}).items()]
    recipe(folder, tmp_path / "out")
    command(tmp_path / "out.yaml", told)
    found = json.loads((tmp_path / "out" / "direction.json").read_text())
    vector = read(tmp_path / "out" / "direction.safetensors").vector
    bright, dark = (score(rows(folder, f"new_{kind}"), vector).tolist() for _, kind in ENDS)
    pairs = [float(b > d) + (b == d) / 2 for b in bright for d in dark]
    assert found["held_out"]["direction"]["auc"] == pytest.approx(sum(pairs) / len(pairs))
    right = (np.mean([b > 0 for b in bright]) + np.mean([d < 0 for d in dark])) / 2
    assert found["held_out"]["direction"]["accuracy"] == pytest.approx(right)
    assert found["held_out"]["luminance"] == {"auc": 1.0, "accuracy": 1.0}
    model, names = vlalign.load(folder / "model0"), ["night", "day", "snow", "coal"]
    scores = model.encode_text([f"a picture of {name}" for name in names]) @ vector
    order = [names[at] for at in scores.argsort(descending=True)]
    assert [each["name"] for each in found["words"]["positive"]] == order
    assert [each["name"] for each in found["words"]["negative"]] == order[::-1]
    shown = capsys.readouterr().out
    assert f"positive: {order[0]} " in shown and "luminance" in shown and "100.0%" in shown


ENDS = (("positive", "bright"), ("negative", "dark"))


def test_pictures_are_ranked_and_their_embeddings_rid_of_it(folder, tmp_path):
    told = [f"rank={json.dumps(pictures(folder, '.'))}", "remove=true"]
    out = direction(recipe(folder, tmp_path / "out", *told))
    lines = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    scores, vector = [line["score"] for line in lines], read(out / "direction.safetensors").vector
    assert len(lines) == 32 and scores == sorted(scores, reverse=True)
    left = load_file(out / "removed.safetensors")["embeddings"]
    own = vlalign.load(folder / "model0").encode_image([folder / line["id"] for line in lines])
    torch.testing.assert_close(own @ vector, torch.tensor(scores))
    torch.testing.assert_close(left, removed(own, vector))
    assert (left @ vector).abs().max() < 1e-6
    assert cosine_similarity(left, normalize(own - (own @ vector)[:, None] * vector, dim=1)).min() > 0.9999


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("positive=[]", "positive: must not be empty"),
        ("negative=[' ']", "negative: must not be empty"),
        ("rank={name: candidates, path: x}", "rank: must be pictures, as the source `folder` reads them"),
        ("steps=0", "steps: must be >= 1, got 0"),
        ("lr=0.0", "lr: must be > 0 and finite, got 0.0"),
        ("seed=-1", "seed: must be >= 0 and below 2**32, got -1"),
        ("remove=true", "remove: is of the pictures of rank; name some there"),
        ("words={vocabulary: x, template: y}", "template: must have the place {name} once, got 'y'"),
        ("positive={name: fodler, path: x}", "Did you mean 'folder'?"),
    ],
)
def test_recipes_that_cannot_run_are_refused(folder, tmp_path, change, message):
    with pytest.raises(RecipeError) as error:
        recipe(folder, tmp_path / "out", change)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("positive=nowhere.txt", "nowhere.txt is no file"),
        ("negative={name: folder, path: nowhere}", "nowhere is no folder; a path is relative to where"),
        ("against=[nowhere.safetensors]", "nowhere.safetensors: this is no direction that"),
        ("model=nowhere/model", "nowhere/model"),
    ],
)
def test_what_cannot_be_done_is_told(folder, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        direction(recipe(folder, tmp_path / "out", change))


def test_the_same_examples_twice_and_several_processes_are_refused(folder, tmp_path, monkeypatch):
    told = f"negative={json.dumps(pictures(folder, 'bright'))}"
    with pytest.raises(UserError, match="positive and negative have the same mean embedding; give examples"):
        direction(recipe(folder, tmp_path / "out", told))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were launched, and a direction is one's work"):
        direction(recipe(folder, tmp_path / "out", told))


def test_a_recipe_survives_being_written(folder, tmp_path):
    from vlalign.recipe.decode import write

    told = recipe(folder, tmp_path / "out", f"positive={json.dumps(BRIGHT)}", "negative=dark.txt")
    assert isinstance(told, DirectionRecipe)
    write(told, tmp_path / "out")
    assert load_recipe(tmp_path / "out" / "recipe.yaml") == told
