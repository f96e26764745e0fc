"""Machines that fail under real runs: the short form of `scripts/stress_faults.py`."""

import subprocess
import sys

import pytest

from tests.dist.launch import ROOT

SCRIPT = ROOT / "scripts" / "stress_faults.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "faults"),
    [
        ("one", ["exchanged_shard", "vanished_strict", "dead_worker"]),
        ("ddp", ["vanished_to_workers", "dead_rank"]),
        ("zero2", ["one_cannot_write"]),
    ],
)
def test_a_fault_is_told_in_one_sentence_or_counted_and_the_run_ends_as_if_there_had_been_none(how, faults):
    command = [sys.executable, str(SCRIPT), "--how", how, "--only", *faults]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(faults)} of {len(faults)} faults were met" in done.stdout
