"""Tables that scripts write into README.md between two markers, and where their numbers were seen."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
THREADS = 2  # of torch, on both sides of every benchmark
ANCHORS = ("torch", "open-clip-torch", "clip-benchmark", "sentence-transformers")


def between(text: str, begin: str, end: str, new: str) -> str:
    """A text with something new between its markers. Raises ValueError when they are missing."""
    before, begins, rest = text.partition(begin)
    _, ends, after = rest.partition(end)
    if not begins or not ends:
        raise ValueError(f"there is no '{begin}' ... '{end}' to write between")
    return f"{before}{begin}\n{new}\n{end}{after}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: the rows, then the scaling curves, then where they were seen."""
    lines = ["| what | against | ours | theirs | ratio (lowest to highest) | goal | met |", "|---" * 7 + "|"]
    for each in rows:
        if not each["points"]:
            ours, theirs, ratio, low, high = map(
                _short, (each["ours"], each["theirs"], each["ratio"], *each["spread"])
            )
            goal = (
                "" if each["target"] is None else f"{'<=' if each['at_most'] else '>='} {each['target']:g}x"
            )
            met = {True: "yes", False: "no", None: ""}[each["met"]]
            cells = [
                each["name"],
                each["anchor"],
                f"{ours} {each['unit']}",
                f"{theirs} {each['unit']}",
                f"{ratio}x ({low} to {high})",
                goal,
                ": ".join(filter(None, (met, each["note"]))),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    for each in rows:
        if each["points"]:
            sizes = ", ".join(str(size) for size in each["points"]["size"])
            told = [
                f"{side} {', '.join(map(_short, each['points'][side]))} (slope {each[side]:.2f})"
                for side in ("ours", "theirs")
            ]
            unit = each["unit"].rpartition(", ")[2]
            lines += [
                "",
                f"{each['name']} at {sizes}, in {unit}: {'; '.join(told)}, against {each['anchor']}.",
            ]
    places: dict[str, list[str]] = {}
    for each in rows:
        places.setdefault(each["machine"], []).append(each["commit"])
    for machine, commits in places.items():
        lines += ["", f"{machine}; commit {', '.join(dict.fromkeys(commits))}."]
    return "\n".join(lines)


def read(file: Path) -> list[dict[str, Any]]:
    """The rows of a file; none where there is none."""
    rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    return rows


def merged(kept: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows measured again take the place of those of their name; new ones come last."""
    new = {each["name"]: each for each in rows}
    old = {each["name"]: each for each in kept}
    return list((old | new).values())


@cache
def stamp() -> dict[str, str]:
    """The machine and the commit, with a + where files were changed since."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = models[0].partition(":")[2].strip() if models else cpu
    versions = [f"{name} {_version(name)}" for name in ANCHORS]
    gpus = [torch.cuda.get_device_name(each) for each in range(torch.cuda.device_count())]
    machine = ", ".join([f"{cpu}, {os.cpu_count()} cores, {THREADS} threads", *gpus, *versions])
    commit = _git("rev-parse", "--short", "HEAD") or _version("vlalign")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return {"machine": machine, "commit": commit + "+" * bool(changed)}


def _short(x: float) -> str:
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def _git(*command: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()
