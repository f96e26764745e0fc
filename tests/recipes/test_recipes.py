"""Every shipped recipe loads; every training recipe takes real steps through its tiny twin."""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vlalign
from tests.recipes.outside import Hinge, Labelled
from vlalign.cli.recipes import shipped
from vlalign.infer.judge import judge
from vlalign.infer.mine import mine
from vlalign.recipe.decode import load_recipe
from vlalign.recipe.read import read
from vlalign.recipe.schemas import VERBS
from vlalign.registry import MODELS, REGISTRIES, encode, name_of
from vlalign.train.loop import train

RECIPES = [path for path in shipped() if "verb" in read(path).value]
TINY = sorted(path for path in Path("recipes/tiny").glob("*.yaml") if load_recipe(path).verb == "train")
FOLDERS = ("align", "rerank", "generate", "retrieve")
WHOLE = {path.stem: path for folder in FOLDERS for path in Path("recipes", folder).glob("*.yaml")}
OF_PAIRS, OF_CANDIDATES, OF_CAPTIONS, OF_KEYS = (
    [path for path in TINY if WHOLE[path.stem].parent.name == folder] for folder in FOLDERS
)
SEEING = [path for path in OF_CAPTIONS if path.stem != "caption_lm"]
WORDS = ["red", "green", "blue", "cat", "dog", "car", "tree", "house"]
METHODS = ("vlalign.objectives", "vlalign.weighters", "vlalign.supervision", "vlalign.data.samplers")
METHODS += ("vlalign.infer.judges",)


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """A jsonl of 40 little pictures with two captions each, and the labels that emoji have.

    Concepts are some of many rows, and some of one; the last label is a number.
    """
    folder = tmp_path_factory.mktemp("rows")
    random = np.random.default_rng(0)
    lines = []
    for row in range(40):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{row}.png")
        captions = [f"{' '.join(random.choice(WORDS, 3))} {row}" for _ in range(2)]
        labels = {"concept": row % 3 if row < 30 else row, "label": row, "subcategory": row % 6}
        labels |= {"category": row % 3, "added_in": row / 4, "collage": row // 2}
        labels = {name: str(value) for name, value in labels.items()}
        lines.append(json.dumps({"id": f"r{row}", "image": f"{row}.png", "caption": captions, **labels}))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "rows.jsonl"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLALIGN_CACHE", str(tmp_path / "cache"))


def run(recipe: Path | str, rows: Path, out: Path, *overrides: str) -> tuple[Path, list[dict]]:
    """Train on the little pictures; the folder, and its log without what depends on the clock."""
    data = f"{{name: '{name_of(Labelled)}', path: {rows}, id: id}}"
    evals = f"[{{name: retrieval, dataset: own, data: {data}}}]"
    changes = [f"out={out}", f"data.train={data}", f"evals={evals}", "log.trackers=[]", *overrides]
    assert train(load_recipe(recipe, changes)) == out
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("time", None)
    return out, lines


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_a_shipped_recipe_loads_and_survives_being_written(path):
    recipe = load_recipe(path)
    assert recipe.verb in VERBS and encode(recipe)["verb"] == recipe.verb
    head = path.read_text(encoding="utf-8").splitlines()[:2]
    assert all(line.startswith("# ") for line in head) and "vlalign" in head[1] + head[0], (
        "no command at its head"
    )


def without_numbers(value):
    """Of plain values: sizes may be others in a twin, and where a direction lies; names may not."""
    if isinstance(value, dict):
        return {key: without_numbers(item) for key, item in value.items()}
    if isinstance(value, list) and any(isinstance(item, dict | str) for item in value):
        return [without_numbers(item) for item in value]
    if isinstance(value, str) and value.endswith(".safetensors"):
        return Path(value).name
    return value if isinstance(value, str | bool) else None


def test_every_training_recipe_has_a_tiny_twin():
    assert {path.stem for path in TINY} == WHOLE.keys()
    for path in TINY:
        own, other = (encode(load_recipe(each)) for each in (path, WHOLE[path.stem]))
        assert without_numbers(own["task"]) == without_numbers(other["task"])


def components(value):
    """The classes of all that a recipe names, at any depth."""
    if is_dataclass(value):
        yield type(value)
        for field in fields(value):
            yield from components(getattr(value, field.name))
    elif isinstance(value, Mapping | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from components(item)


def test_every_method_is_shown_by_a_recipe():
    shown = {component for path in RECIPES for component in components(load_recipe(path))}
    for registry in REGISTRIES.values():
        if registry.packages[0].startswith(METHODS):
            missing = [name for name in registry.names() if registry.get(name) not in shown]
            assert not missing, f"no recipe shows the {registry.kind} {', '.join(missing)}"


@pytest.mark.parametrize("path", OF_CANDIDATES, ids=lambda path: path.stem)
def test_a_tiny_reranker_trains_saves_and_scores(path, tmp_path):
    out = train(load_recipe(path, [f"out={tmp_path / 'out'}", "log.trackers=[]"]))
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines[1:]] == [1, 2, 3]
    assert all(np.isfinite(line["loss"]) and line["norm"] > 0 for line in lines[1:])
    [scores] = vlalign.load(out).score(["a red cat"], [["a red cat in the rain", "a blue cup"]])
    assert scores.shape == (2,) and scores[0] != scores[1]


def test_a_tiny_reranker_learns_from_what_a_tiny_dual_encoder_mines(tmp_path):
    changes = [f"out={tmp_path / 'mined'}", "model=recipes/tiny/open_clip", "relative_margin=null"]
    changes += ["data.path=recipes/tiny/candidates.jsonl", "corpus=null"]
    mined = mine(load_recipe("recipes/mine/mine.yaml", changes))
    rows = [json.loads(line) for line in (mined / "candidates.jsonl").read_text().splitlines()]
    assert [sum(each["label"] == 0 for each in row["candidates"]) for row in rows] == [8] * 40
    changes = [f"out={tmp_path / 'out'}", f"data.train.path={mined / 'candidates.jsonl'}", "log.trackers=[]"]
    out = train(load_recipe("recipes/tiny/smollm_sft.yaml", changes))
    assert len((out / "log.jsonl").read_text().splitlines()) == 4


def test_a_tiny_judge_judges_and_a_tiny_reranker_learns_from_it(tmp_path):
    out = judge(load_recipe("recipes/tiny/probe.yaml", [f"out={tmp_path / 'judged'}"]))
    told = json.loads((out / "judged.json").read_text())
    assert told["queries"] == 40 and told["score"]["auc"] > 0.95  # overlap tells these texts apart
    changes = [f"out={tmp_path / 'out'}", f"data.train.path={out / 'candidates.jsonl'}", "log.trackers=[]"]
    out = train(load_recipe("recipes/tiny/cprd.yaml", changes))
    assert len((out / "log.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("path", OF_PAIRS, ids=lambda path: path.stem)
def test_a_tiny_twin_trains_evaluates_explains_and_saves(path, rows, tmp_path):
    out, lines = run(path, rows, tmp_path / "out")
    assert [line["step"] for line in lines[1:]] == [1, 2, 3]
    assert all(np.isfinite(line["loss"]) and line["norm"] > 0 for line in lines[1:])
    assert (out / "report.html").stat().st_size > 10_000 and list((out / "model").glob("*.safetensors"))
    (row,) = json.loads((out / "metrics.json").read_text())
    assert row["dataset"] == "own" and 0 <= row["metrics"]["text_to_image_R@10"] <= 1
    assert load_recipe(out / "recipe.yaml") == load_recipe(out / "recipe.yaml", verb="train")


@pytest.mark.parametrize("path", OF_KEYS, ids=lambda path: path.stem)
def test_a_tiny_retriever_learns_from_candidates_and_is_measured_by_them(path, tmp_path):
    data = f"{{name: candidates, path: {load_recipe(path).data.train.path}}}"
    evals = f"[{{name: reranking, dataset: own, data: {data}}}]"
    changes = [f"out={tmp_path / 'out'}", "log.trackers=[]", f"evals={evals}"]
    if (teacher := load_recipe(path).data.teacher) is not None:  # a run of another twin
        told = [f"out={tmp_path / 'teacher'}", "log.trackers=[]", "steps=1"]
        train(load_recipe(f"recipes/tiny/{Path(teacher.model).name}.yaml", told))
        changes.append(f"data.teacher.model={tmp_path / 'teacher'}")
    out = train(load_recipe(path, changes))
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines[1:]] == [1, 2, 3]
    assert all(np.isfinite(line["loss"]) and line["norm"] > 0 for line in lines[1:])
    (row,) = json.loads((out / "metrics.json").read_text())
    assert row["dataset"] == "own" and 0 <= row["metrics"]["R@1"] <= 1


@pytest.mark.parametrize("path", SEEING, ids=lambda path: path.stem)
def test_a_tiny_captioner_trains_is_measured_writes_and_starts_a_reranker(path, rows, tmp_path):
    data = f"{{name: joined, of: [{{name: jsonl, path: {rows}, id: id}}]}}"
    evals = f"[{{name: caption_loss, dataset: own, data: {data}, samples: 6, every: 2}}]"
    out, lines = run(path, rows, tmp_path / "out", f"evals={evals}", f"data.train={data}", "data.workers=1")
    learned = [line for line in lines[1:] if "loss" in line]
    assert [line["step"] for line in learned] == [1, 2, 3]
    assert all(np.isfinite(line["loss"]) and line["norm"] > 0 for line in learned)
    assert [line["samples_seen"] for line in learned] == [8, 16, 24]  # pictures, not tokens
    (row,) = json.loads((out / "metrics.json").read_text())
    assert row["dataset"] == "own" and row["chance"]["loss"] == row["metrics"]["permuted_loss"] > 0
    assert (out / "report.html").stat().st_size > 10_000
    model, pictures = vlalign.load(out), [rows.parent / f"{index}.png" for index in range(3)]
    assert [type(each) for each in model.caption(pictures, tokens=2)] == [str] * 3
    [scores] = model.score(pictures[:1], [["a red cat", "a blue car"]])
    assert scores.shape == (2,) and scores[0] != scores[1]
    told = {"name": "mllm_reranker", "id": str(out / "model"), "prompt": "qwen3_vl_reranker"}
    assert MODELS.decode(told).build().net.config.model_type == "llava"


def test_a_tiny_language_model_of_captions_is_measured_and_what_tokens_are_weighed_by(rows, tmp_path):
    data = f"{{name: jsonl, path: {rows}, id: id}}"
    evals = f"[{{name: caption_loss, dataset: own, data: {data}, samples: 6}}]"
    changes = [f"evals={evals}", f"data.train={data}"]
    lm, _ = run("recipes/tiny/caption_lm.yaml", rows, tmp_path / "lm", *changes)
    (row,) = json.loads((lm / "metrics.json").read_text())
    assert row["metrics"]["permuted_loss"] == pytest.approx(row["metrics"]["loss"], rel=1e-5)  # it is blind
    changes += [f"data.reference.model={lm}", "data.reference.pretrained=true"]
    for each in ("prior", "token_importance"):
        _, lines = run(f"recipes/tiny/{each}.yaml", rows, tmp_path / each, *changes)
        assert [line["step"] for line in lines[1:]] == [1, 2, 3]


def test_an_objective_from_outside_the_package_trains(rows, tmp_path):
    name = f"{Hinge.__module__}:Hinge"
    term = f"task.terms=[{{objective: {{name: '{name}', margin: 0.3}}}}]"
    out, lines = run("recipes/tiny/clip.yaml", rows, tmp_path / "out", term, "model.scale={learn: false}")
    assert list(lines[1]["parts"]) == [name] and lines[-1]["loss"] > 0
    assert load_recipe(out / "recipe.yaml").task.terms[0].objective == Hinge(margin=0.3)


@pytest.mark.parametrize("recipe", ["recipes/tiny/clip.yaml", "recipes/tiny/lora.yaml"])
def test_two_runs_of_one_seed_have_equal_logs_with_0_and_2_workers(recipe, rows, tmp_path):
    logs = [
        run(recipe, rows, tmp_path / str(workers), f"data.workers={workers}", "data.augment.scale=[0.5, 1.0]")
        for workers in (0, 2)
    ]
    assert logs[0][1] == logs[1][1]
    metrics = [(out / "metrics.json").read_text() for out, _ in logs]
    assert metrics[0] == metrics[1]
    other = run(recipe, rows, tmp_path / "other", "data.augment.scale=[0.5, 1.0]", "seed=1")[1]
    assert other[1:] != logs[0][1][1:]
