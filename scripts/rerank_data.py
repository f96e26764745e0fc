"""Queries with the ten candidates that a first stage finds, for rerankers to be compared on.

A task's folder has `train/taught.jsonl`, of queries whose right candidate is among the ten; `validation/` and
one `test .../` or several, each a `candidates.jsonl` of all queries.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from vlalign.data.hashing import hash63
from vlalign.files import write_text
from vlalign.infer.mine import mine
from vlalign.infer.rerank import rerank
from vlalign.recipe.decode import load_recipe
from vlalign.registry import SOURCES

RECIPES = Path(__file__).parents[1] / "recipes"
MINE, RERANK = RECIPES / "mine" / "mine.yaml", RECIPES / "eval" / "rerank.yaml"


def words(encoder: str, folder: Path) -> None:
    """What a verb means in a sentence; no verb is on two sides.

    `test, renamed`: the same candidates, asked with a word that means nothing in the verb's place, as the
    first stage scores them then.
    """
    verbs = {"name": "wordnet", "part": "verb"}
    for split, limit in (("train", None), ("validation", 480), ("test", None)):
        found(folder / split, encoder, {**verbs, "split": split, "limit": limit})
    taught(folder)
    other = SOURCES.decode({**verbs, "split": "test", "nonce": True}).build()
    asked = {row["id"]: row["query"].text for row in map(other.__getitem__, range(len(other)))}
    rows = [{**row, "query": {"text": asked[row["id"]]}} for row in rows_of(folder / "test")]
    write_rows(folder / "renamed", rows)
    told = {"model": encoder, "out": str(folder / "test, renamed"), "number": "score"}
    told |= {"data": {"name": "candidates", "path": str(folder / "renamed" / "candidates.jsonl")}}
    rerank(load_recipe(RERANK, [f"{name}={json.dumps(value)}" for name, value in told.items()]))


def pictures(encoder: str, folder: Path) -> None:
    """What an emoji is called. The encoder has learnt from Google's of other concepts.

    A quarter of the concepts that are new to it are for validation, in Google's style.
    """
    for name, style, split in (
        ("train", "google", "train"),
        ("google", "google", "unseen"),
        ("twitter", "twitter", "unseen"),
    ):
        emoji = {"name": "emoji", "style": style, "split": split}
        found(folder / name, encoder, {"name": "pairs", "query": "image", "data": emoji})
    taught(folder)
    for style in ("google", "twitter"):
        rows = rows_of(folder / style)
        concepts = [row["id"].partition("/")[2].partition("-")[0] for row in rows]
        of_validation = [hash63(concept) % 4 == 0 for concept in concepts]
        sides = {True: folder / "validation", False: folder / f"test, {style}"}
        for side, to in sides.items():
            if style == "google" or not side:
                some = [row for row, its in zip(rows, of_validation, strict=True) if its == side]
                write_rows(to, some)


TASKS = {"words": words, "pictures": pictures}


def found(out: Path, encoder: str, data: Mapping[str, Any]) -> None:
    """The ten nearest documents of each query, mined once for one encoder."""
    told = {"model": encoder, "out": str(out), "data": data, "corpus": None, "k": 10, "window": [1, 10]}
    told |= {"positives": "retrieved", "relative_margin": None, "near_duplicate": None}
    mine(load_recipe(MINE, [f"{name}={json.dumps(value)}" for name, value in told.items()]))


def taught(folder: Path) -> None:
    """Of the training rows those that have something right."""
    rows = [row for row in rows_of(folder / "train") if any(each["label"] for each in row["candidates"])]
    write_rows(folder / "train", rows, "taught.jsonl")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of its candidates."""
    text = (folder / "candidates.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def write_rows(folder: Path, rows: Iterable[Mapping[str, Any]], name: str = "candidates.jsonl") -> None:
    """A line each."""
    folder.mkdir(exist_ok=True)
    write_text(folder / name, "".join(json.dumps(row) + "\n" for row in rows))


def digest(setting: Any, folder: Path) -> str:
    """Another one where the setting, a query or a candidate is. Scores do not count: machines round them."""
    weights = Path(setting.model["id"]) / "model.safetensors"
    found = blake2b(digest_size=8)
    found.update(repr(replace(setting, model={**setting.model, "id": None})).encode())
    if weights.exists():
        found.update(weights.read_bytes())
    for path in sorted(folder.glob("*/candidates.jsonl")):
        for row in rows_of(path.parent):
            shown = [(each["id"], each["label"]) for each in row["candidates"]]
            found.update(repr((row["id"], row["query"].get("text"), shown)).encode())
    return found.hexdigest()
