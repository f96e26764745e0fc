"""Machines that fail under real runs: the short form of `scripts/stress_faults.py`."""

import pytest
import stress_faults

from tests.dist.stress import stressed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "faults"),
    [
        ("one", ["exchanged_shard", "vanished_strict", "dead_worker"]),
        ("ddp", ["vanished_to_workers", "dead_rank"]),
        ("zero2", ["one_cannot_write"]),
    ],
)
def test_a_fault_is_told_in_one_sentence_or_counted_and_the_run_ends_as_if_there_had_been_none(
    how, faults, capsys
):
    code = stressed(stress_faults, "--how", how, "--only", *faults)
    said = capsys.readouterr().out
    assert code == 0, said
    assert f"{len(faults)} of {len(faults)} faults were met" in said
