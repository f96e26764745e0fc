"""Checkpoints that are cut, flipped, half written or half removed."""

import json
import os
from contextlib import contextmanager

import pytest

from vlalign.train.checkpoint import Checkpoints, Damaged, verify
from vlalign.types import UserError


class Kept(Checkpoints):
    """Checkpoints that remember what they said."""

    def __init__(self, out, keep=3):
        self.told = []
        super().__init__(out, keep, self.told.append)

    def put(self, step):
        with self.writing(step) as folder:
            (folder / "model.safetensors").write_bytes(bytes(range(200)) + step.to_bytes(4, "big"))
            (folder / "shards").mkdir()
            (folder / "shards" / "rank0.pt").write_bytes(b"shard" * 20)


@pytest.fixture
def kept(tmp_path):
    checkpoints = Kept(tmp_path)
    for step in (10, 20):
        checkpoints.put(step)
    return checkpoints


def test_the_newest_whole_one_is_found(kept):
    assert kept.newest().name == "step_00000020"
    assert kept.told == []


def test_keeps_the_newest(kept, tmp_path):
    for step in (30, 40):
        kept.put(step)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step_{step:08d}" for step in (20, 30, 40)]


def damage_cases():
    def cut(path):
        os.truncate(path, path.stat().st_size - 1)

    def flip(path):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    def empty(path):
        path.write_bytes(b"")

    def remove(path):
        path.unlink()

    return [cut, flip, empty, remove]


@pytest.mark.parametrize("damage", damage_cases(), ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", ["model.safetensors", "shards/rank0.pt", "manifest.json"])
def test_a_damaged_one_is_refused_by_name(kept, tmp_path, damage, name):
    damage(tmp_path / "step_00000020" / name)
    assert kept.newest().name == "step_00000010"
    assert len(kept.told) == 1 and name in kept.told[0] and "step_00000020" in kept.told[0]
    assert (tmp_path / "step_00000020.damaged").is_dir()
    kept.put(20)  # the run comes by again
    assert kept.newest().name == "step_00000020" and len(kept.told) == 1


def test_every_single_flipped_bit_of_the_manifest_is_seen(kept, tmp_path):
    path = tmp_path / "step_00000020" / "manifest.json"
    whole = path.read_bytes()
    folder = path.parent
    for place in range(len(whole)):
        for bit in (0, 5):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            try:
                same = json.loads(flipped) == json.loads(whole)
            except ValueError:
                same = False
            if not same:  # a space that became another space says the same
                with pytest.raises(Damaged, match="manifest.json"):
                    verify(folder)


def test_all_damaged_means_none(kept, tmp_path):
    for folder in kept.all():
        (folder / "model.safetensors").unlink()
    assert kept.newest() is None and len(kept.told) == 2


def test_a_kill_while_writing_leaves_the_one_before(kept, tmp_path):
    with pytest.raises(KeyboardInterrupt), kept.writing(30) as folder:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt
    assert kept.newest().name == "step_00000020"
    kept.sweep()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000010", "step_00000020"]


def test_what_one_process_could_not_write_is_not_sealed_and_leaves_no_half(kept, tmp_path):
    acts = []

    @contextmanager
    def alone():  # what the others do is known after each act
        yield
        acts.append(1)
        if len(acts) == 2:
            raise UserError("another process has no room")

    with pytest.raises(UserError, match="no room"), kept.writing(30, alone=alone) as folder:
        (folder / "model.safetensors").write_bytes(b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000010", "step_00000020"]


def test_writing_a_step_again_replaces_it(kept, tmp_path):
    kept.put(20)
    assert kept.newest().name == "step_00000020" and len(kept.all()) == 2


def test_one_damaged_folder_stays(kept, tmp_path):
    for step in (20, 30, 40):
        kept.put(step)
        (tmp_path / f"step_{step:08d}" / "model.safetensors").unlink()
        assert kept.newest().name == "step_00000010"
        kept.sweep()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000010", "step_00000040.damaged"]
