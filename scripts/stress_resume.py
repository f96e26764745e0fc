"""Kill a training run at random places, resume it, and compare what comes out with a run that nobody killed.

python scripts/stress_resume.py --times 20

Every third kill falls into the writing of a checkpoint. Two more runs
have their newest checkpoint cut short, or a byte of it flipped: it must be refused by name. Parameters,
optimizer, averages, metrics and log (but for `time`) are compared to the bit. Exits 1 on any difference.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

STEPS, EVERY = 40, 8
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
  workers: {workers}
  augment: {{scale: [0.6, 1.0], flip: true}}
task: {{name: align, targets: identity, terms: [{{objective: info_nce}}]}}
steps: {steps}
optim: {{name: adamw, lr: 1.0e-3}}
schedule: {{name: cosine, warmup: 0.1}}
seed: 3
ema: 0.98
log: {{every: 1, trackers: []}}
checkpoint: {{every: {every}, keep: 3}}
evals:
  - {{name: retrieval, dataset: own, every: 12, data: {{name: jsonl, path: {folder}/rows.jsonl, id: id}}}}
"""


def prepare(folder: Path) -> None:
    """A model's config, 67 pictures with two captions each, and one picture that cannot be read."""
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


def start(folder: Path, out: Path, workers: int) -> subprocess.Popen[str]:
    """Begin or resume the run of a folder."""
    recipe = folder / f"{out.name}.yaml"
    fields = {"out": out, "folder": folder, "workers": workers, "steps": STEPS, "every": EVERY}
    recipe.write_text(RECIPE.format(**fields), encoding="utf-8")
    command = [sys.executable, "-m", "vlalign", "train", str(recipe)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(folder: Path, out: Path, workers: int) -> str:
    """Run to the end; returns what was said. Raises SystemExit when it fails."""
    process = start(folder, out, workers)
    said = process.communicate()[1]
    if process.returncode:
        raise SystemExit(f"{out.name} failed with {process.returncode}:\n{said}")
    return said


def logged(out: Path) -> int:
    """How many steps the log has."""
    log = out / "log.jsonl"
    return log.read_bytes().count(b'"loss"') if log.exists() else 0


def kill(folder: Path, out: Path, workers: int, when: Callable[[], bool], wait: float) -> bool:
    """Start, wait until it is time and `wait` seconds more, SIGKILL; False when the run was over by then."""
    process = start(folder, out, workers)
    while process.poll() is None and not when():
        time.sleep(0.0005)
    time.sleep(wait)
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return alive


@dataclass(frozen=True)
class Outcome:
    """What a run left: tensors by file and name, and plain values."""

    tensors: dict[str, torch.Tensor]
    lines: list[dict[str, object]]
    metrics: object

    @classmethod
    def of(cls, out: Path) -> "Outcome":
        """Read a finished run."""
        last = out / f"step_{STEPS:08d}"
        tensors = {}
        for file in (
            last / "model.safetensors",
            last / "average.safetensors",
            *(out / "model").rglob("*.safetensors"),
        ):
            tensors |= {f"{file.parent.name}/{file.name}:{name}": x for name, x in load_file(file).items()}
        optimizer = torch.load(last / "optimizer.pt", weights_only=True)
        for index, state in optimizer["state"].items():
            tensors |= {f"optimizer:{index}.{name}": x for name, x in state.items()}
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        for line in lines:
            line.pop("time", None)
        return cls(tensors, lines, json.loads((out / "metrics.json").read_text(encoding="utf-8")))

    def differs(self, other: "Outcome") -> list[str]:
        """What is not equal, to the bit."""
        told = [] if self.tensors.keys() == other.tensors.keys() else ["names of tensors"]
        told += [
            name for name, x in self.tensors.items() if not torch.equal(x, other.tensors.get(name, x * 0 + 1))
        ]
        if self.lines != other.lines:
            unequal = [a.get("step", 0) for a, b in zip(self.lines, other.lines, strict=False) if a != b]
            told.append(f"log from step {unequal[0] if unequal else 'the end'} on")
        return told + ([] if self.metrics == other.metrics else ["metrics"])


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


def main() -> int:
    """Run it all, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20, help="how many runs are killed")
    parser.add_argument("--workers", type=int, default=0, help="loader workers of the runs")
    parser.add_argument("--seed", type=int, default=0, help="of the places of the kills")
    asked = parser.parse_args()
    chance, failures = random.Random(asked.seed), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        finish(folder, folder / "whole", asked.workers)
        whole = Outcome.of(folder / "whole")
        print(f"{'run':>4}  {'killed':<38}{'resumed from':<16}result", flush=True)
        for run in range(asked.times + 2):
            out = folder / f"run{run}"
            step, wait = chance.randrange(1, STEPS), chance.uniform(0, 0.02)
            writing = run < asked.times and run % 3 == 2
            if writing:
                step, wait = chance.randrange(0, STEPS, EVERY) + EVERY, chance.uniform(0, 0.004)
                mark = out / f".step_{step:08d}.writing"
                alive = kill(folder, out, asked.workers, mark.exists, wait)
            else:
                step = step if run < asked.times else chance.randrange(2 * EVERY + 1, STEPS)
                alive = kill(folder, out, asked.workers, lambda out=out, step=step: logged(out) >= step, wait)
            told = (
                f"{'writing the checkpoint of' if writing else 'after'} step {step}" if alive else "too late"
            )
            touched = damage(out, ("cut", "flipped")[run - asked.times], chance) if run >= asked.times else ""
            said = finish(folder, out, asked.workers)
            problems = Outcome.of(out).differs(whole)
            if touched and not all(part in said for part in ("refused checkpoint", *touched.split(": "))):
                problems.append(f"{touched} was not refused by name")
            resumed = [line for line in said.splitlines() if line.startswith("resumed from")]
            where = resumed[0].split(",")[0].split("/")[-1] if resumed else "the beginning"
            told = f"{('cut ', 'flipped ')[run - asked.times]}{touched}" if touched else told
            print(f"{run:>4}  {told:<38}{where:<16}{_short(problems)}", flush=True)
            failures += bool(problems)
    print(f"{asked.times + 2 - failures} of {asked.times + 2} runs equal the one that nobody killed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
