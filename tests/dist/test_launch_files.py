"""Every launch file is what accelerate reads, and starts a training that ends with a model to load."""

import json
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file

import vlalign
from tests.dist.launch import ROOT, STRATEGIES, command, forked, run
from tests.unit.train.tiny import pictures
from vlalign.recipe.decode import load_recipe
from vlalign.train.loop import train

FILES = sorted((ROOT / "recipes" / "launch").glob("*.yaml"))
RECIPE = "recipes/tiny/clip.yaml"


def overrides(folder: Path, *more: str) -> list[str]:
    rows = folder / "data" / "rows.jsonl"
    path = str(rows) if rows.exists() else pictures(folder / "data")
    source = f"data.train={{name: jsonl, path: {path}, id: id}}"
    return [source, f"out={folder / 'out'}", "log.trackers=[]", "data.batch=8", "data.chunk=2", *more]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_launch_file_says_how_it_is_used_and_what_it_starts(path):
    config = load_config_from_file(str(path))
    head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert f"accelerate launch --config_file recipes/launch/{path.name}" in "\n".join(head)
    assert config.num_machines == (2 if path.stem == "multi_node" else 1)
    stage = config.deepspeed_config.get("zero_stage")
    assert path.stem in {"cpu", "ddp", "multi_node", f"zero{stage}", f"zero{stage}_offload"}
    kind = "DEEPSPEED" if stage else "NO" if path.stem == "cpu" else "MULTI_GPU"
    assert config.distributed_type == kind and config.use_cpu == (path.stem == "cpu")
    assert "mixed_precision" not in path.read_text(encoding="utf-8")  # the recipe's


def test_each_strategy_has_a_launch_file():
    assert {path.stem for path in FILES} == {
        *STRATEGIES,
        "cpu",
        "multi_node",
        "zero2_offload",
        "zero3_offload",
    }


@pytest.mark.slow
def test_zero3_trains_in_bf16_evaluates_behind_a_locked_tower_and_resumes(tmp_path):
    changes = overrides(tmp_path, "checkpoint.every=2", "steps=3", "precision=bf16", "feature_cache=true")
    rows = f"{{name: jsonl, path: {tmp_path / 'data' / 'rows.jsonl'}, id: id}}"
    changes += [f"evals=[{{name: retrieval, dataset: rows, every: 2, data: {rows}}}]"]
    changes += ["model={name: open_clip, id: 'local-dir:recipes/tiny/open_clip', image: {lock: true}}"]
    forked(2, "vlalign", "train", RECIPE, *changes, by="zero3")
    out = tmp_path / "out"
    before = vlalign.load(out).encode_text(["a red cat"])
    measured = (out / "metrics.json").read_text(encoding="utf-8")
    for name in ("model", "step_00000003"):
        shutil.rmtree(out / name)
    (out / "metrics.json").unlink()
    assert "2 of 3 steps done" in forked(2, "vlalign", "train", RECIPE, *changes, by="zero3")
    assert torch.equal(vlalign.load(out).encode_text(["a red cat"]), before)
    assert (out / "metrics.json").read_text(encoding="utf-8") == measured


@pytest.mark.slow
def test_what_one_process_cannot_evaluate_is_told_under_zero3(tmp_path):
    evals = 'evals=[{name: "tests.dist.stumbling:Stumbles"}]'
    said = run(2, "vlalign", "train", RECIPE, *overrides(tmp_path, evals), by="zero3", code=1)
    assert said.count("the second process cannot read its data") == 1


@pytest.mark.slow
def test_two_machines_train_together(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    both = command(2, "vlalign", "train", RECIPE, *overrides(tmp_path, "steps=1"), by="multi_node")
    both[both.index("--main_process_port") + 1] = port
    place = both.index("--num_processes")
    machines = [
        subprocess.Popen([*both[:place], "--machine_rank", rank, *both[place:]], cwd=ROOT) for rank in "01"
    ]
    assert [machine.wait(240) for machine in machines] == [0, 0]
    assert '"processes": 2' in (tmp_path / "out" / "log.jsonl").read_text(encoding="utf-8")
    assert vlalign.load(tmp_path / "out").encode_text(["a red cat"]).isfinite().all()


@pytest.mark.slow
def test_one_process_on_the_cpu_and_several_that_are_not_started(tmp_path):
    launch = command(2, "vlalign", "train", RECIPE, *overrides(tmp_path, "steps=1"), by="cpu")
    said = subprocess.run(launch, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert said.returncode != 0 and "several processes, and accelerate started one" in said.stderr
    launch[launch.index("--num_processes") + 1] = "1"
    assert subprocess.run(launch, cwd=ROOT, timeout=240).returncode == 0
    assert vlalign.load(tmp_path / "out").encode_text(["a red cat"]).isfinite().all()


@pytest.mark.slow
def test_a_retriever_learns_from_candidates_alike_on_two_processes(tmp_path):
    """Of texts alone: what would see pictures has no gradient, which neither may wait for."""
    recipe = "recipes/tiny/unime_v2.yaml"
    train(load_recipe(recipe, [f"out={tmp_path / 'one'}", "log.trackers=[]"]))
    forked(2, "vlalign", "train", recipe, f"out={tmp_path / 'two'}", "log.trackers=[]", by="ddp")
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()[1:]]
        for name in ("one", "two")
    )
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-5)
