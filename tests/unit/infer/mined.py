"""A small world to mine in: a tiny dual encoder, texts, pictures, and loops that say what is right."""

import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vlalign
from vlalign.infer.parts import Lines
from vlalign.models.weights import save
from vlalign.recipe.decode import load_recipe

THINGS, PLACES = (
    ("cat", "dog", "car", "tree", "house"),
    ("by the sea", "in the rain", "at night", "on a hill"),
)
TEXTS = [f"a {colour} {thing} {place}" for colour in ("red", "blue") for thing in THINGS for place in PLACES]


def world(folder: Path) -> Path:
    """`folder/{model/, rows.jsonl, corpus.jsonl, N.png}`: 12 queries, 40 texts, 8 pictures, 8 of both."""
    torch.manual_seed(0)
    save(vlalign.load("recipes/tiny/open_clip").model, folder / "model")
    noise = np.random.default_rng(0)
    for at in range(20):
        small = Image.fromarray(noise.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        small.resize((40, 40)).save(folder / f"{at}.png")
    corpus = [{"id": f"t{at}", "text": text} for at, text in enumerate(TEXTS)]
    corpus += [{"id": f"p{at}", "image": f"{at}.png"} for at in range(8)]
    corpus += [{"id": f"b{at}", "text": TEXTS[at], "images": [f"{at + 8}.png"]} for at in range(8)]
    write(folder / "corpus.jsonl", corpus)
    queries = [{"text": f"{TEXTS[3 * at]} alone"} for at in range(4)]
    queries += [{"image": f"{16 + at}.png"} for at in range(4)]
    queries += [{"text": TEXTS[7 * at], "image": f"{16 + at}.png"} for at in range(4)]
    rows = []
    for at, query in enumerate(queries):
        right = [corpus[(5 * at) % len(corpus)], corpus[(11 * at + 3) % len(corpus)]][: at % 3]
        wrong = {"id": f"only{at}", "text": f"no {TEXTS[at]} anywhere"}
        candidates = [{**each, "label": 2} for each in right] + [{**wrong, "label": 0}]
        rows.append({"id": f"q{at}", "query": query, "candidates": candidates})
    write(folder / "rows.jsonl", rows)
    return folder


def write(path: Path, rows: list) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def lines(path: Path) -> list:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def recipe(folder: Path, out: Path, *overrides: str, **fields):
    """The recipe of a world, and whatever is otherwise."""
    told = {"verb": "mine", "out": str(out), "model": str(folder / "model"), "k": 4, "window": [1, 20]}
    told["data"] = {"name": "candidates", "path": str(folder / "rows.jsonl")}
    told["corpus"] = str(folder / "corpus.jsonl")
    path = out.parent / f"{out.name}.yaml"
    path.write_text(json.dumps(told | fields))
    return load_recipe(path, list(overrides))


def row_of(model, told, folder: Path, fusion: float) -> np.ndarray:
    """A line's embedding in float64, alone."""
    text = model.encode_text([told["text"]])[0].double().numpy() if told.get("text") else None
    names = told.get("images") or ([told["image"]] if "image" in told else [])
    image = model.encode_image([folder / name for name in names]).double().numpy() if names else None
    if image is None:
        return text
    image = image.sum(0) / np.linalg.norm(image.sum(0))
    if text is None:
        return image
    mixed = fusion * image + (1 - fusion) * text
    return mixed / np.linalg.norm(mixed)


def looped(folder: Path, fusion: float = 0.5) -> dict[str, dict[str, float]]:
    """Every query's score with every document, pair by pair."""
    model, rows = vlalign.load(folder / "model"), lines(folder / "rows.jsonl")
    documents = {each["id"]: each for each in lines(folder / "corpus.jsonl")}
    documents |= {each["id"]: each for row in rows for each in row["candidates"]}
    embedded = {id: row_of(model, each, folder, fusion) for id, each in documents.items()}
    scores: dict[str, dict[str, float]] = {}
    for row in rows:
        query = row_of(model, row["query"], folder, fusion)
        scores[row["id"]] = {
            id: sum(a * b for a, b in zip(query.tolist(), each.tolist(), strict=True))
            for id, each in embedded.items()
        }
    return scores


def lines_alive(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each line of a part that is read from now on: how many are in memory then."""

    class Line(dict):
        pass

    read, held, most = Lines.__getitem__, list[weakref.ref[Line]](), list[int]()

    def counted(self: Lines, row: int) -> Line:
        line = Line(read(self, row))
        held.append(weakref.ref(line))
        most.append(sum(each() is not None for each in held))
        return line

    monkeypatch.setattr(Lines, "__getitem__", counted)
    return most
