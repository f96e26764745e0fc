"""Damaged inputs among good ones: is every bad row counted under its reason, and is no good row lost?

    python scripts/stress_inputs.py                                   the loader, three forms, 0 and 2 workers
    python scripts/stress_inputs.py --recipe recipes/tiny/clip.yaml   and a training run over the same rows

Prints a table; ends 1 when any count is not what was put in.
"""

import argparse
import csv
import io
import json
import random
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.unit.data import pictures  # noqa: E402
from vlalign.data.chunks import Pairs  # noqa: E402
from vlalign.data.loader import loader  # noqa: E402
from vlalign.data.sampler import Order  # noqa: E402
from vlalign.data.samplers.random import Random  # noqa: E402
from vlalign.registry import SOURCES  # noqa: E402

BATCH, CHUNK = 64, 16


@dataclass
class Row:
    """One input. `reason`: what it must be skipped under; `conversion`: what a kept oddity is counted as."""

    id: str
    picture: bytes | None
    caption: bytes | None = b"a picture"
    reason: str = ""
    conversion: str = ""


@dataclass
class Expected:
    """What was put in: the ids that must be learned from, and the counts."""

    good: set[str] = field(default_factory=set)
    skipped: Counter[str] = field(default_factory=Counter)
    converted: Counter[str] = field(default_factory=Counter)


@dataclass
class Run:
    """What one way through found, in the form of a run's `rows.json`, and what is wrong with it."""

    title: str
    found: dict[str, Any]
    wrong: list[str]


def ordinary(seed: int, form: str = "PNG") -> bytes:
    """A small picture of its own."""
    size = random.Random(seed).choices(range(8, 48), k=2)
    return pictures.encoded(pictures.noise(*size, seed=seed), form)


@cache
def huge() -> bytes:
    """168 megapixels."""
    return pictures.huge()


def truncated(seed: int) -> bytes:
    """Cut somewhere inside, in one of several formats."""
    data = ordinary(seed, ("PNG", "JPEG", "WEBP", "BMP", "GIF")[seed % 5])
    return data[: random.Random(seed).randrange(40, max(41, len(data) // 2))]


def wrong_type(seed: int) -> bytes:
    """What servers send in place of pictures."""
    return (b"<!DOCTYPE html><title>404</title>", b"%PDF-1.7\n", b"PK\x03\x04", b"\0" * 64, b"%!PS-Adobe")[
        seed % 5
    ]


def sixteen_bit(seed: int) -> bytes:
    """Grey and colour."""
    grey = np.random.default_rng(seed).integers(0, 65536, (9, 9))
    return pictures.grey16(grey) if seed % 2 else pictures.rgb16(7, 5, (seed, 65535, 0))


KINDS: dict[str, Callable[[str, int], Row]] = {
    "truncated": lambda row, seed: Row(row, truncated(seed), reason="truncated"),
    "zero bytes": lambda row, seed: Row(row, b"", reason="empty_file"),
    "wrong type": lambda row, seed: Row(row, wrong_type(seed), reason="not_an_image"),
    "168 megapixels": lambda row, seed: Row(row, huge(), reason="too_many_pixels"),
    "missing file": lambda row, seed: Row(row, None, reason="missing_file"),
    "empty caption": lambda row, seed: Row(row, ordinary(seed), b"  ", reason="empty_caption"),
    "not UTF-8": lambda row, seed: Row(row, ordinary(seed), b"caf\xe9", reason="not_utf8"),
    "missing column": lambda row, seed: Row(row, ordinary(seed), None, reason="missing_column"),
    "duplicate id": lambda row, seed: Row(f"good{seed}", ordinary(seed), reason="duplicate_id"),
    "animated": lambda row, seed: Row(
        row, pictures.animated(("GIF", "PNG", "WEBP")[seed % 3]), conversion="animated"
    ),
    "CMYK": lambda row, seed: Row(row, pictures.cmyk(), conversion="cmyk"),
    "16-bit": lambda row, seed: Row(row, sixteen_bit(seed), conversion="sixteen_bit"),
    "palette with transparency": lambda row, seed: Row(
        row, pictures.see_through_palette(), conversion="transparent"
    ),
}


def make(good: int, damaged: int, seed: int = 0) -> list[Row]:
    """`good` plain rows and `damaged` others, of every kind in turn, shuffled."""
    if good * len(KINDS) < damaged:
        raise SystemExit(f"--good must be at least {-(-damaged // len(KINDS))}: duplicates are of good rows")
    rows = [
        Row(f"good{number}", ordinary(number, ("PNG", "JPEG", "WEBP")[number % 3])) for number in range(good)
    ]
    kinds = list(KINDS.values())
    rows += [kinds[number % len(kinds)](f"odd{number}", number // len(kinds)) for number in range(damaged)]
    random.Random(seed).shuffle(rows)
    return rows


def expect(rows: list[Row]) -> Expected:
    """The counts that these rows must give."""
    return Expected(
        {row.id for row in rows if not row.reason},
        Counter(row.reason for row in rows if row.reason),
        Counter(row.conversion for row in rows if row.conversion),
    )


def write_jsonl(folder: Path, rows: list[Row]) -> dict[str, Any]:
    """`rows.jsonl` and its pictures; returns the source's recipe."""
    lines = []
    for number, row in enumerate(rows):
        cells = {"id": row.id, "image": _picture(folder, number, row), "caption": ""}
        if row.caption is None:
            del cells["caption"]
        lines.append(json.dumps(cells).encode().replace(b'""', b'"%s"' % (row.caption or b"")))
    (folder / "rows.jsonl").write_bytes(b"\n".join(lines))
    return {"name": "jsonl", "path": str(folder / "rows.jsonl"), "id": "id"}


def write_csv(folder: Path, rows: list[Row]) -> dict[str, Any]:
    """`rows.csv` and its pictures; a row without a caption is short of a column."""
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "image", "caption"])
        for number, row in enumerate(rows):
            caption = [] if row.caption is None else [row.caption.decode(errors="surrogateescape")]
            writer.writerow([row.id, _picture(folder, number, row), *caption])
    return {"name": "csv", "path": str(folder / "rows.csv"), "id": "id"}


def write_webdataset(folder: Path, rows: list[Row]) -> dict[str, Any]:
    """`rows.tar`; a sample without a picture lacks its column, a duplicate is a second sample of the key."""
    with tarfile.open(folder / "rows.tar", "w") as tar:
        for row in rows:
            for extension, content in (("png", row.picture), ("txt", row.caption)):
                if content is not None:
                    member = tarfile.TarInfo(f"{row.id}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return {"name": "webdataset", "shards": str(folder / "rows.tar")}


def _picture(folder: Path, number: int, row: Row) -> str:
    path = folder / "pictures" / f"{number}.img"
    path.parent.mkdir(exist_ok=True)
    if row.picture is not None:
        path.write_bytes(row.picture)
    return f"pictures/{path.name}"


def through_loader(source: dict[str, Any], workers: int) -> tuple[dict[str, Any], list[str]]:
    """One epoch: the counts in the form of a run's `rows.json`, and the ids that were learned from."""
    built = SOURCES.decode(source).build()
    order = Order(sampler=Random(), rows=len(built), batch=BATCH, seed=0)
    skipped = Counter({reason: len(ids) for reason, ids in built.skipped.items()})
    converted, seen = Counter[str](), list[str]()
    pairs = Pairs(source=built, order=order, image_process=_thumbnails, text_process=_lengths)
    for step in loader(pairs, chunk=CHUNK, steps=order.steps, workers=workers):
        for batch in step:
            skipped.update(reason for _, reason in batch["bad"])
            converted.update(mark for _, mark in batch["converted"])
            seen += batch["ids"]
    return {"used": len(set(seen)), "skipped": skipped, "converted": converted}, seen


def _thumbnails(images: list[Any]) -> dict[str, torch.Tensor]:
    return {"pixels": torch.stack([torch.tensor(np.array(image.resize((8, 8)))) for image in images])}


def _lengths(texts: list[str]) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.tensor([[len(text)] for text in texts])}


def through_training(recipe: Path, source: dict[str, Any], rows: int, out: Path) -> dict[str, Any]:
    """An epoch of a recipe over this source, in place of its own data; returns the run's `rows.json`."""
    from vlalign.recipe.decode import load_recipe
    from vlalign.train.loop import train

    replaced = {
        "data.train": source,
        "data.batch": BATCH,
        "steps": Order(sampler=Random(), rows=rows, batch=BATCH, seed=0).steps,
        "out": str(out),
    }
    overrides = [f"{path}={json.dumps(value)}" for path, value in (replaced | {"evals": []}).items()]
    train(load_recipe(str(recipe), overrides, verb="train"))
    found: dict[str, Any] = json.loads((out / "rows.json").read_text())
    return found


def differences(found: dict[str, Any], expected: Expected) -> list[str]:
    """What is not as it was put in, a sentence each."""
    wrong = []
    if found["used"] != len(expected.good):
        wrong.append(f"{len(expected.good)} good rows went in, {found['used']} were used")
    for kind, counts in (("skipped", expected.skipped), ("converted", expected.converted)):
        for reason in sorted(set(counts) | set(found[kind])):
            # An animated GIF is a palette picture besides; the other marks are told, not demanded.
            if kind == "converted" and reason not in counts:
                continue
            if counts[reason] != found[kind].get(reason, 0):
                wrong.append(f"{counts[reason]} {reason} went in, {found[kind].get(reason, 0)} were {kind}")
    return wrong


def runs(folder: Path, rows: list[Row], workers: list[int], recipe: Path | None) -> Iterator[Run]:
    """Every form through the loader, and the recipe over the first."""
    inside = [row for row in rows if row.reason != "missing_file"]  # a member of a shard cannot be missing so
    for form, write, chosen in (
        ("jsonl", write_jsonl, rows),
        ("csv", write_csv, rows),
        ("tar", write_webdataset, inside),
    ):
        expected, source = expect(chosen), write(folder, chosen)
        for count in workers:
            found, seen = through_loader(source, count)
            wrong = differences(found, expected)
            known = {name.rpartition("/")[2] for name in seen}
            if known != expected.good or len(seen) != len(expected.good):
                wrong.append("the ids that came through are not those of the good rows, each once")
            yield Run(f"{form} {count}w", found, wrong)
    if recipe:
        source = write_jsonl(folder, rows)
        found = through_training(recipe, source, len(SOURCES.decode(source).build()), folder / "run")
        yield Run("trained", found, differences(found, expect(rows)))


def table(expected: Expected, done: list[Run]) -> str:
    """One line a count: what was put in, then what each run found."""
    lines = [["", "put in", *(run.title for run in done)]]
    lines.append(["learned from", str(len(expected.good)), *(str(run.found["used"]) for run in done)])
    for kind, counts in (("skipped", expected.skipped), ("converted", expected.converted)):
        for reason in sorted(set(counts).union(*(run.found[kind] for run in done))):
            cells = [str(run.found[kind].get(reason, 0)) for run in done]
            lines.append([f"{kind}: {reason}", str(counts.get(reason, "any")), *cells])
    return "\n".join(f"{line[0]:28}" + "".join(f"{cell:>10}" for cell in line[1:]) for line in lines)


def main() -> int:
    """Try every form; 1 when anything differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--good", type=int, default=1000)
    parser.add_argument("--damaged", type=int, default=1000)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 2])
    parser.add_argument("--recipe", type=Path, help="also train this recipe over the rows")
    asked = parser.parse_args()
    rows = make(asked.good, asked.damaged)
    with tempfile.TemporaryDirectory() as folder:
        done = list(runs(Path(folder), rows, asked.workers, asked.recipe))
    print(table(expect(rows), done))
    wrong = [f"{run.title}: {sentence}" for run in done for sentence in run.wrong]
    print("\n" + ("\n".join(wrong) or "every bad row is counted under its reason, no good row is lost"))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
