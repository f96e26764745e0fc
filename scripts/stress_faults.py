"""Let machines fail under training runs, and see what is said, what is kept, and whether the run goes on.

python scripts/stress_faults.py
python scripts/stress_faults.py --only full_disk dead_rank --how ddp

Runs of one process, of two under DDP, and of two under ZeRO-2. A fault comes after step 10. The run must go
on, or end within seconds with one sentence and no traceback of ours; its newest checkpoint must be whole; and
once the fault is mended it must end, to the bit, like the run that met none. Exits 1 where that is not so.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from stress_resume import PATIENCE, Launch, Running, Stress, differs, logged, outcome, prepare

from vlalign.train.checkpoint import verify

WHEN = 10  # steps before the fault; checkpoints are written at 8 and 16
SHARDS = 4
DISK = "200m"  # larger than the checkpoints of a run
ROOM = 2**20  # bytes that are left to a process, or on a disk: enough for logs, too little for a checkpoint


@dataclass(frozen=True)
class Scene:
    """A run that has done some steps. `shard`: one of those it reads; `kept`: the same, out of its sight."""

    running: Running
    out: Path
    shard: Path
    kept: Path

    @property
    def victim(self) -> psutil.Process:
        """The process that things happen to: not the one that speaks, where there are several."""
        return self.running.rank(self.running.processes - 1)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens, and the sentence that is to be said, once, as a regular expression.

    `counts`: the reason of the rows that are lost in a run which is to go on, and end well all the same.
    """

    act: Callable[[Scene], object]
    says: str = ""
    counts: str = ""
    overrides: tuple[str, ...] = ()
    hows: tuple[str, ...] = ("one", "ddp", "zero2")


def exchange(scene: Scene) -> None:
    """Another file of the name, as large, so that offsets would meet other bytes."""
    scene.shard.unlink()
    scene.shard.write_bytes(scene.kept.read_bytes()[::-1])


def fill(scene: Scene) -> None:
    """Somebody else writes on the disk of the run, until there is almost no room."""
    with (scene.out / "filling").open("wb", buffering=0) as file:
        with suppress(OSError):
            while True:
                file.write(bytes(ROOM))
        file.truncate(file.tell() - ROOM)


def limit(scene: Scene) -> None:
    """One process may write no large file any more."""
    scene.victim.rlimit(psutil.RLIMIT_FSIZE, (ROOM, ROOM))


def mend(scene: Scene) -> None:
    """Everything as it was, to the time of modification."""
    (scene.out / "filling").unlink(missing_ok=True)
    shutil.copy2(scene.kept, scene.shard)


UNWRITTEN = "; the last whole checkpoint is step_000000(08|16). Put that right, and run it again to go on$"
FAULTS = {
    "truncated_shard": Fault(act=lambda scene: None, counts="truncated"),  # before the run begins
    "vanished_shard": Fault(act=lambda scene: scene.shard.unlink(), counts="missing_shard"),
    "vanished_to_workers": Fault(
        act=lambda scene: scene.shard.unlink(), counts="missing_shard", overrides=("data.workers=1",)
    ),
    "exchanged_shard": Fault(act=exchange, counts="changed_shard"),
    "vanished_strict": Fault(
        act=lambda scene: scene.shard.unlink(),
        overrides=("data.on_error=raise",),
        says=r"^row '.*' is bad: missing_shard: .*1\.tar is not there any more; on_error: skip leaves it",
    ),
    "full_disk": Fault(act=fill, says=r"^out: .* cannot be written: .*No space left on device.*" + UNWRITTEN),
    "one_cannot_write": Fault(
        act=limit,
        says=r"^out: .* cannot be written: .*File too large.*" + UNWRITTEN,
        hows=("one", "zero2"),  # under DDP the first process alone writes
    ),
    "dead_rank": Fault(
        act=lambda scene: scene.victim.kill(),
        says=r"^of 2 processes, 1 has ended, so the others leave; look for its own message",
        hows=("ddp", "zero2"),
    ),
    "dead_worker": Fault(
        act=lambda scene: scene.victim.children()[0].kill(),
        overrides=("data.workers=1",),
        says=r"^data.workers: DataLoader worker .*(killed by signal: Killed|exited unexpectedly); most often",
    ),
    "sigterm_to_one": Fault(
        act=lambda scene: scene.victim.terminate(),
        says=r"^stopped after step \d+ of 40, which is saved; run it again to go on$",
    ),
}


def pack(folder: Path) -> None:
    """The rows of `prepare` that can be read as shards, and each shard once more out of sight."""
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    del rows[5]
    for name in ("shards", "kept"):
        (folder / name).mkdir()
    for number in range(SHARDS):
        path = folder / "kept" / f"{number}.tar"
        with tarfile.open(path, "w") as tar:
            for row in rows[number::SHARDS]:
                caption = folder / f"{row['id']}.txt"
                caption.write_text("\n".join(row["caption"]), encoding="utf-8")
                tar.add(folder / row["image"], f"{row['id']}.png")
                tar.add(caption, caption.name)
        shutil.copy2(path, folder / "shards")


def told(said: str, pattern: str) -> tuple[str, list[str]]:
    """The sentence that was to be said, and what is wrong with what was."""
    found = [line for line in said.splitlines() if re.search(pattern, line)]
    wrong = [] if len(found) == 1 else [f"said {len(found)} times"]
    wrong += ["a traceback"] if re.search(r'File ".*/vlalign/', said) else []
    return found[0] if found else said[-2000:], wrong


def trial(name: str, stress: Stress, out: Path, whole: dict[str, object]) -> list[str]:
    """One fault in one run; prints its line of the table, and returns what is wrong."""
    fault, shard, kept = FAULTS[name], stress.folder / "shards" / "1.tar", stress.folder / "kept" / "1.tar"
    if fault.counts == "truncated":
        os.truncate(shard, shard.stat().st_size // 2)
    running = stress.start(out, *fault.overrides)
    scene = Scene(running, out, shard, kept)
    wrong = [] if running.wait(lambda: logged(out) >= WHEN) else ["over before the fault"]
    fault.act(scene)
    try:
        said = running.end(PATIENCE)
    except TimeoutError as error:
        said, wrong = running.said.read_text(encoding="utf-8"), [*wrong, str(error)]
    code, newest = running.launcher.returncode, max(out.glob("step_" + "[0-9]" * 8))
    verify(newest)
    mend(scene)
    if fault.counts:
        counted = json.loads((out / "rows.json").read_text(encoding="utf-8"))["skipped"] if code == 0 else {}
        sentence, more = f"went on; skipped {counted}", [] if counted.get(fault.counts) else ["not counted"]
    else:
        sentence, more = told(said, fault.says)
        stress.finish(out, *fault.overrides)
        more += ([] if code else ["exit code 0"]) + differs(whole, outcome(out))
    wrong += more
    result = ", ".join(wrong[:3]) or ("counted" if fault.counts else "equal")
    print(f"{name:<21}{stress.launch.how:<7}{code:>4}  {newest.name:<15}{result:<9}{sentence}", flush=True)
    return wrong


@contextmanager
def small_disk(place: Path) -> Iterator[bool]:
    """A disk of its own at a folder, so that it can be filled; False where this user may not mount one."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", str(place)]
    mounted = subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(place)], check=True)


def main() -> int:
    """Run it all, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS), help="faults")
    parser.add_argument("--how", nargs="+", choices=("one", "ddp", "zero2"), default=("one", "ddp", "zero2"))
    asked = parser.parse_args()
    failures = runs = 0
    with tempfile.TemporaryDirectory() as name, small_disk(Path(name) / "disk") as mounted:
        folder = Path(name)
        prepare(folder)
        pack(folder)
        data = f"data.train={{name: webdataset, shards: {folder}/shards, lines: true}}"
        print(f"{'fault':<21}{'how':<7}exit  {'checkpoint':<15}{'result':<9}said", flush=True)
        for how in asked.how:
            launch = Launch(how=how, processes=1 if how == "one" else 2)
            stress = Stress(folder=folder, launch=launch, overrides=(data,))
            stress.finish(folder / f"whole_{how}")
            whole = outcome(folder / f"whole_{how}")
            for fault in asked.only:
                if how not in FAULTS[fault].hows or (fault == "full_disk" and not mounted):
                    print(f"{fault:<21}{how:<7}left out", flush=True)
                    continue
                out = folder / "disk" / how if fault == "full_disk" else folder / f"{fault}_{how}"
                runs += 1
                failures += bool(trial(fault, stress, out, whole))
    print(f"{runs - failures} of {runs} faults were met as they should be")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
