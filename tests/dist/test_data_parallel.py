"""Two gloo processes against one: gradients of every parameter, and the logged loss."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.train.tiny import pictures

ROOT = Path(__file__).parents[2]


def run(processes: int, module: str, *arguments: str, zero: int | None = None) -> str:
    """Start a module on so many processes, under DeepSpeed at stage `zero`; returns what it said."""
    launch, environment = [], os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if zero:
        launch = ["-m", "accelerate.commands.launch", "--use_deepspeed", "--zero_stage", str(zero)]
        launch += ["--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no"]
        launch += ["--main_process_port", "0"]
    elif processes > 1:
        environment |= {"ACCELERATE_USE_CPU": "true"}
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *launch, "-m", module, *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [0, 4, 1])
def test_gradients_of_two_processes_are_those_of_one(tmp_path, chunk):
    pictures(tmp_path / "data")
    run(
        1, "tests.dist.two_processes", str(tmp_path), str(chunk), "one"
    )  # cut alike, to see the processes alone
    said = run(2, "tests.dist.two_processes", str(tmp_path), str(chunk), "two")
    assert "rank 1 of 2" in said
    one, two = load_file(tmp_path / "one.safetensors"), load_file(tmp_path / "two.safetensors")
    assert one.keys() - {"bias"} == two.keys() - {"bias"}
    for name, wanted in one.items():
        worst = (two[name].float() - wanted.float()).abs().max()
        assert worst <= 1e-6 * max(1.0, float(wanted.abs().max())), (name, worst)
    assert torch.equal(one["rows"], two["rows"])
