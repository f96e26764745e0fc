"""Kill training runs at random places, resume them, and compare what comes out with a run that nobody killed.

python scripts/stress_resume.py --times 20
python scripts/stress_resume.py --processes 2 --times 30

With several processes one of them is killed, of runs under DDP and ZeRO-2 in turn; the launcher has to end
the others. Every third kill falls into the writing of a checkpoint. With one process, two more runs have
their newest checkpoint cut short, or a byte of it flipped: it must be refused by name. Checkpoint, model,
metrics and log (but for `time`) are compared to the bit. Exits 1 on any difference, and on whatever hangs.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

LAUNCH = Path(__file__).parents[1] / "recipes" / "launch"
STEPS, EVERY = 40, 8
PATIENCE = 90  # seconds from a kill to the end of the launcher
WORDS = ["red", "green", "blue", "cat", "dog", "car", "tree", "house", "sky", "small", "large", "round"]
OPEN_CLIP = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8,
            "patch_dropout": 0.25,
        },
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    },
    "preprocess_cfg": {
        "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "resize_mode": "squash",
    },
}  # fmt: skip
RECIPE = """\
verb: train
out: {out}
model: {{name: open_clip, id: "local-dir:{folder}/open_clip"}}
data:
  train: {{name: jsonl, path: {folder}/rows.jsonl, id: id}}
  batch: 24
  chunk: 7
  augment: {{scale: [0.6, 1.0], flip: true}}
task: {{name: align, targets: identity, terms: [{{objective: info_nce}}]}}
steps: {steps}
optim: {{name: adamw, lr: 1.0e-3}}
schedule: {{name: cosine, warmup: 0.1}}
seed: 3
ema: {ema}
log: {{every: 1, trackers: []}}
checkpoint: {{every: {every}, keep: 3}}
evals:
  - {{name: retrieval, dataset: own, every: 12, data: {{name: jsonl, path: {folder}/rows.jsonl, id: id}}}}
"""


def prepare(folder: Path) -> None:
    """A model's config, 67 pictures with two captions each, one picture that cannot be read."""
    (folder / "open_clip").mkdir()
    (folder / "open_clip" / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP), encoding="utf-8")
    draw = np.random.default_rng(0)
    lines = []
    for row in range(68):
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{row}.png")
        captions = [f"{' '.join(draw.choice(WORDS, 3))} {row}" for _ in range(2)]
        lines.append(json.dumps({"id": f"row{row}", "image": f"{row}.png", "caption": captions}))
    os.truncate(folder / "5.png", 100)
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How the processes of a run are started: `one`, `ddp` or `zero2`."""

    how: str
    processes: int = 1

    def start(self, recipe: Path, *overrides: str) -> "Running":
        """Begin or resume the run of a recipe, as a user would."""
        launcher: list[str] = []
        if self.how != "one":
            launcher = ["-m", "accelerate.commands.launch", "--config_file", str(LAUNCH / f"{self.how}.yaml")]
            launcher += ["--num_processes", str(self.processes), "--main_process_port", "0"]
        command = [sys.executable, *launcher, "-m", "vlalign", "train", str(recipe), *overrides]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        said = recipe.with_suffix(".said").open("w+", encoding="utf-8")
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=said)
        return Running(process, self.processes, Path(said.name))


@dataclass(frozen=True)
class Running:
    """A run that was started. What it says goes to a file, for a pipe would fill up."""

    launcher: subprocess.Popen[bytes]
    processes: int
    said: Path

    def rank(self, number: int) -> psutil.Process:
        """One of its processes."""
        if self.processes == 1:
            return psutil.Process(self.launcher.pid)
        children = psutil.Process(self.launcher.pid).children()
        return next(child for child in children if child.environ().get("RANK") == str(number))

    def wait(self, when: Callable[[], bool]) -> bool:
        """Return as soon as something is so; False when the run is over before, or takes far too long."""
        end = time.monotonic() + 10 * PATIENCE
        while self.launcher.poll() is None and time.monotonic() < end:
            if when():
                return True
            time.sleep(0.0005)
        return False

    def end(self, patience: float) -> str:
        """Wait for the end of every process; returns what was said. Raises TimeoutError for what hangs."""
        family, hangs = self.family(), False
        try:
            self.launcher.wait(patience)
        except subprocess.TimeoutExpired:
            family, hangs = self.family(), True
            self.launcher.kill()
        left = psutil.wait_procs(family, timeout=10)[1]
        for process in left:
            process.kill()
        if hangs or left:
            raise TimeoutError(f"hung for {patience:.0f} s, {len(left)} processes left")
        return self.said.read_text(encoding="utf-8")

    def family(self) -> list[psutil.Process]:
        """All that it started."""
        alive = self.launcher.poll() is None
        return psutil.Process(self.launcher.pid).children(recursive=True) if alive else []


@dataclass(frozen=True, kw_only=True)
class Stress:
    """The runs of one launch in a folder."""

    folder: Path
    launch: Launch
    overrides: tuple[str, ...] = ()

    def start(self, out: Path, *overrides: str) -> Running:
        """Begin or go on."""
        ema = "null" if self.launch.how == "zero2" else "0.98"  # DeepSpeed shards what would be averaged
        recipe = self.folder / f"{out.name}.yaml"
        fields = {"out": out, "folder": self.folder, "ema": ema, "steps": STEPS, "every": EVERY}
        recipe.write_text(RECIPE.format(**fields), encoding="utf-8")
        return self.launch.start(recipe, *self.overrides, *overrides)

    def finish(self, out: Path, *overrides: str) -> str:
        """Run to the end; returns what was said. Raises SystemExit when it fails."""
        running = self.start(out, *overrides)
        said = running.end(10 * PATIENCE)
        if running.launcher.returncode:
            raise SystemExit(f"{out.name} failed with {running.launcher.returncode}:\n{said}")
        return said

    def kill(self, out: Path, when: Callable[[], bool], wait: float, rank: int) -> bool:
        """Start, wait until it is time and `wait` seconds more, SIGKILL; False when the run was over."""
        running = self.start(out)
        alive = running.wait(when)
        time.sleep(wait)
        if alive and running.launcher.poll() is None:
            running.rank(rank).kill()
        running.end(PATIENCE)
        return alive


def logged(out: Path) -> int:
    """How many steps the log has."""
    log = out / "log.jsonl"
    return log.read_bytes().count(b'"loss"') if log.exists() else 0


def outcome(out: Path) -> dict[str, object]:
    """What a finished run left, by name: digests of files, and lines of the log without `time`."""
    last = out / f"step_{STEPS:08d}"
    files = [*last.rglob("*"), *(out / "model").rglob("*"), out / "metrics.json", out / "rows.json"]
    found: dict[str, object] = {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.is_file()
    }
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return found | {f"line {at} of the log": line | {"time": None} for at, line in enumerate(lines)}


def differs(one: dict[str, object], other: dict[str, object]) -> list[str]:
    """Names of what is not equal, to the bit."""
    return [name for name in {**one, **other} if one.get(name) != other.get(name)]


def damage(out: Path, how: str, chance: random.Random) -> str:
    """Cut or flip the newest checkpoint; returns the name of the file that was touched."""
    newest = max(out.glob("step_" + "[0-9]" * 8))
    path = chance.choice(sorted(path for path in newest.iterdir()))
    data = bytearray(path.read_bytes())
    place = chance.randrange(len(data))
    if how == "cut":
        del data[place:]
    else:
        data[place] ^= 0x15
    path.write_bytes(data)
    return f"{newest.name}: {path.name}"


def _short(problems: list[str]) -> str:
    more = f" and {len(problems) - 2} more" if len(problems) > 2 else ""
    return f"{', '.join(problems[:2])}{more}" or "equal"


def trial(stress: Stress, out: Path, how: str, chance: random.Random, whole: dict[str, object]) -> list[str]:
    """Kill one run and finish it, print its line of the table; returns what is wrong."""
    rank, wait = chance.randrange(stress.launch.processes), chance.uniform(0, 0.02)
    step = chance.randrange(1 if how == "after" else 2 * EVERY + 1, STEPS)
    if how == "writing":
        step, wait = chance.randrange(0, STEPS, EVERY) + EVERY, chance.uniform(0, 0.004)
    mark = out / f".step_{step:08d}.writing"
    when = mark.exists if how == "writing" else lambda: logged(out) >= step
    problems = []
    try:
        alive = stress.kill(out, when, wait, rank)
    except TimeoutError as error:
        alive, problems = True, [str(error)]
    told = (
        f"{'writing the checkpoint of' if how == 'writing' else 'after'} step {step}" if alive else "too late"
    )
    touched = damage(out, how, chance) if how in ("cut", "flip") else ""
    said = stress.finish(out)
    problems += differs(whole, outcome(out))
    if touched and not all(part in said for part in ("refused checkpoint", *touched.split(": "))):
        problems.append(f"{touched} was not refused by name")
    resumed = [line for line in said.splitlines() if line.startswith("resumed from")]
    where = resumed[0].split(",")[0].split("/")[-1] if resumed else "the beginning"
    who = f"{stress.launch.how} {rank}"
    told = f"{how} {touched}" if touched else told
    print(f"{out.name:<7}{who:<9}{told:<38}{where:<16}{_short(problems)}", flush=True)
    return problems


def main() -> int:
    """Run it all, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20, help="how many runs are killed")
    parser.add_argument("--processes", type=int, default=1, help="of each run")
    parser.add_argument("--how", nargs="+", choices=("ddp", "zero2"), default=("ddp", "zero2"))
    parser.add_argument("--workers", type=int, default=0, help="loader workers of each process")
    parser.add_argument("--seed", type=int, default=0, help="of the places of the kills")
    asked = parser.parse_args()
    chance, failures, began = random.Random(asked.seed), 0, time.perf_counter()
    workers = (f"data.workers={asked.workers}",)
    strategies = ("one",) if asked.processes == 1 else tuple(asked.how)
    hows = ["writing" if run // len(strategies) % 3 == 2 else "after" for run in range(asked.times)]
    hows += ["cut", "flip"] if asked.processes == 1 else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        stresses = [
            Stress(folder=folder, launch=Launch(how=how, processes=asked.processes), overrides=workers)
            for how in strategies[: asked.times or None]
        ]
        wholes = []
        for stress in stresses:
            whole = folder / f"whole_{stress.launch.how}"
            stress.finish(whole)
            wholes.append(outcome(whole))
        print(f"{'run':<7}{'rank':<9}{'killed':<38}{'resumed from':<16}result", flush=True)
        for run, how in enumerate(hows):
            turn = run % len(stresses)
            failures += bool(trial(stresses[turn], folder / f"run{run}", how, chance, wholes[turn]))
    equal, seconds = len(hows) - failures, time.perf_counter() - began
    print(f"{equal} of {len(hows)} runs equal the one that nobody killed; {seconds:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
