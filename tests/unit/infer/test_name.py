"""Names by a tiny dual encoder: those of the algorithm alone, the same again, without a look at captions."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import vlalign
from vlalign.cli.name import name as command
from vlalign.infer.name import name
from vlalign.models.weights import save
from vlalign.recipe.decode import load_recipe
from vlalign.recipe.naming import NameRecipe
from vlalign.recipe.schemas import VERBS
from vlalign.registry import SOURCES
from vlalign.supervision.structural_names import named
from vlalign.types import DataError, RecipeError, UserError

NAMES = {
    f"{colour} {thing}": [f"a {thing} that is {colour}"] * (colour != "blue")
    for colour in ("red", "green", "blue", "grey")
    for thing in ("cat", "dog", "car", "tree", "house")
}


@pytest.fixture(autouse=True)
def verb(monkeypatch, tmp_path):
    monkeypatch.setitem(VERBS, "name", NameRecipe)
    monkeypatch.setenv("VLALIGN_CACHE", str(tmp_path / "cache"))


def write(path, *rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """30 little pictures of 5 kinds, a damaged one, a vocabulary, and a tiny dual encoder."""
    place, noise = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    kinds = noise.integers(0, 256, (5, 4, 4, 3))
    rows = []
    for row in range(30):
        near = (kinds[row % 5] + noise.integers(-40, 40, (4, 4, 3))).clip(0, 255)
        Image.fromarray(near.astype(np.uint8)).resize((40, 40)).save(place / f"{row}.png")
        rows.append({"id": f"r{row}", "image": f"{row}.png", "caption": f"kind {row % 5}"})
    (place / "damaged.png").write_bytes((place / "0.png").read_bytes()[:60])
    rows.insert(3, {"id": "damaged", "image": "damaged.png", "caption": "nothing"})
    rows.append({"id": "gone", "image": "gone.png", "caption": "nothing"})
    write(place / "rows.jsonl", *rows, {"id": "odd", "image": "0.png", "caption": " "})
    write(place / "names.jsonl", *({"name": each, "descriptions": told} for each, told in NAMES.items()))
    torch.manual_seed(0)
    save(vlalign.load("recipes/tiny/open_clip").model, place / "model")
    return place


def recipe(folder, out, *overrides):
    told = {"verb": "name", "out": str(out), "model": str(folder / "model"), "clusters": 5, "rounds": 2}
    told["data"] = {"name": "jsonl", "path": str(folder / "rows.jsonl"), "id": "id"}
    told["vocabulary"] = str(folder / "names.jsonl")
    path = out.parent / f"{out.name}.yaml"
    path.write_text(json.dumps(told))
    return load_recipe(path, list(overrides))


@pytest.mark.parametrize("describe", [True, False])
def test_names_are_those_of_the_algorithm_alone(describe, folder, tmp_path):
    seen = []
    told = recipe(folder, tmp_path / "out", f"describe={describe}", "template='an icon of {name}.'", "seed=3")
    out = name(told, seen.append)
    model = vlalign.load(folder / "model")
    features = model.encode_image([folder / f"{row}.png" for row in range(30)])
    names = [*NAMES]
    found = named(
        features,
        model.encode_text([f"an icon of {each}." for each in names]),
        5,
        2,
        (lambda places: [model.encode_text(NAMES[names[place]]) for place in places]) if describe else None,
        seed=3,
    )
    rows = lines(out / "captions.jsonl")
    assert sum(seen) == 32 and [row["id"] for row in rows] == [f"r{row}" for row in range(30)]
    assert [row["caption"] for row in rows] == [names[place] for place in found.name.tolist()]
    assert [row["cluster"] for row in rows] == [str(each) for each in found.cluster.tolist()]
    assert all(row["prompt"] == f"an icon of {row['caption']}." for row in rows)
    report = json.loads((out / "named.json").read_text())
    assert report["changed"] == list(found.changed) and len(found.changed) == 2 + describe
    assert report["vocabulary"] == {"names": 20, "skipped": {}}
    sizes = {each: [row["caption"] for row in rows].count(each) for each in {row["caption"] for row in rows}}
    assert {each["name"]: each["size"] for each in report["clusters"]} == sizes
    assert [each["size"] for each in report["clusters"]] == sorted(sizes.values(), reverse=True)
    votes = found.votes.to_dense()
    for each in report["clusters"]:
        place = names.index(each["name"])
        own = votes[found.names.tolist().index(place)]
        assert (
            each["share"] == own[place]
            and [*each["votes"].values()] == own[own > 0].sort(descending=True).values.tolist()[:3]
        )
        assert all(own[names.index(other)] == share for other, share in each["votes"].items())


def test_what_is_written_is_read_by_the_source_jsonl_wherever_it_lies(folder, tmp_path):
    name(recipe(folder, tmp_path / "out")).rename(tmp_path / "moved")
    rows = lines(tmp_path / "moved" / "captions.jsonl")
    told = load_recipe("recipes/align/s3a.yaml").data.train
    assert (told.caption, told.id) == ("prompt", "id")
    source = SOURCES.decode(
        {
            "name": "jsonl",
            "path": str(tmp_path / "moved" / "captions.jsonl"),
            "caption": told.caption,
            "id": told.id,
            "label": "cluster",
        }
    ).build()
    assert len(source) == 30 and not source.skipped
    for index in range(30):
        sample = source[index]
        assert sample["captions"] == (f"a picture of {rows[index]['caption']}",)
        assert (sample["id"], sample["label"]) == (f"r{index}", rows[index]["cluster"])
        with Image.open(folder / f"{index}.png") as image:
            assert np.array_equal(sample["image"], image)


def test_what_cannot_be_read_is_counted(folder, tmp_path):
    report = json.loads((name(recipe(folder, tmp_path / "out")) / "named.json").read_text())
    assert report["used"] == sum(each["size"] for each in report["clusters"]) == 30
    assert report["skipped"] == {"empty_caption": 1, "truncated": 1, "missing_file": 1}
    assert report["licences"] == [
        {"name": "rows.jsonl", "licence": "not stated", "source": str(folder / "rows.jsonl")}
    ]


def test_captions_do_not_matter_and_the_same_comes_again(folder, tmp_path):
    out = name(recipe(folder, tmp_path / "out"))
    before = {each: (out / each).read_bytes() for each in ("captions.jsonl", "named.json", "recipe.yaml")}
    (out / "captions.jsonl").write_text("torn")
    assert name(recipe(folder, tmp_path / "out")) == out
    assert all((out / each).read_bytes() == content for each, content in before.items())
    rows = [row | {"caption": f"{row['id']} says nothing"} for row in lines(folder / "rows.jsonl")[:-1]]
    for row in rows:
        row["image"] = str(folder / row["image"])
    write(tmp_path / "rows.jsonl", *rows)
    other = name(recipe(folder, tmp_path / "other", f"data.path={tmp_path / 'rows.jsonl'}"))
    assert (other / "captions.jsonl").read_bytes() == before["captions.jsonl"]
    with pytest.raises(RecipeError, match="holds a run of another recipe"):
        name(recipe(folder, tmp_path / "out", "clusters=4"))


def test_the_command_shows_the_largest_clusters(folder, tmp_path, capsys):
    recipe(folder, tmp_path / "out")
    command(tmp_path / "out.yaml", ["clusters=4"])
    told = capsys.readouterr().out
    first = json.loads((tmp_path / "out" / "named.json").read_text())["clusters"][0]
    assert first["name"] in told and f"{first['share']:.0%}" in told
    assert "30 pictures, 1 empty_caption, 1 truncated, 1 missing_file" in told.replace("\n", " ")
    assert f"rows: {tmp_path / 'out' / 'captions.jsonl'}" in told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("clusters=31", "clusters: 31, and 30 pictures could be read; use fewer"),
        ("vocabulary=nowhere.txt", "nowhere.txt is no file; a path is relative to where"),
        ("model=nowhere/model", "nowhere/model"),
    ],
)
def test_what_cannot_be_done_is_told(folder, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        name(recipe(folder, tmp_path / "out", change))


def test_several_processes_and_a_vocabulary_without_names_are_refused(folder, tmp_path, monkeypatch):
    (tmp_path / "names.txt").write_text("\n\n")
    with pytest.raises(DataError, match="has no name; expected one a line; skipped: none"):
        name(recipe(folder, tmp_path / "out", f"vocabulary={tmp_path / 'names.txt'}"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were launched, and naming is one's work"):
        name(recipe(folder, tmp_path / "out"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("clusters=0", "clusters: must be >= 1, got 0"),
        ("rounds=0", "rounds: must be >= 1, got 0"),
        ("template='a picture'", "template: must have the place {name} once, got 'a picture'"),
        ("template='{name} {name}'", "template: must have the place {name} once"),
        ("vocabulary=' '", "vocabulary: must not be empty"),
        ("seed=-1", "seed: must be >= 0 and below 2**32, got -1"),
        ("data={name: candidates, path: x}", "data: must be pictures, as the source `jsonl` reads them"),
    ],
)
def test_recipes_that_cannot_run_are_refused(folder, tmp_path, change, message):
    with pytest.raises(RecipeError) as error:
        recipe(folder, tmp_path / "out", change)
    assert message in str(error.value)
