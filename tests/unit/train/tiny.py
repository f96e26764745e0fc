"""A tiny pair of towers with real recipes around it: seconds to train, dropout and BatchNorm inside."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vlalign.data.sources.jsonl import JsonLines
from vlalign.models import checkpoints
from vlalign.models.pair import Bias, DualEncoder, Scale
from vlalign.models.tower import Adaptation, TowerModule
from vlalign.objectives.info_nce import InfoNCE
from vlalign.recipe.schemas import Checkpoint, Log, TrainData, TrainRecipe
from vlalign.supervision.targets.identity import Identity
from vlalign.tasks.align import Align
from vlalign.tasks.terms import Term
from vlalign.train.optimizers.adamw import AdamW
from vlalign.train.schedules.cosine import Cosine

SIDE, LENGTH, WIDTH = 8, 12, 16
WORDS = ["red", "green", "blue", "cat", "dog", "car", "tree", "house", "sky", "small", "large", "round"]


class Pixels:
    """8 x 8 pixels."""

    def __call__(self, images: Sequence[Image.Image]) -> Mapping[str, Tensor]:
        arrays = [np.asarray(image.resize((SIDE, SIDE)), dtype=np.float32) / 255 for image in images]
        return {"pixels": torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)}

    def describe(self) -> str:
        return f"{SIDE} pixels"


class Letters:
    """One number a letter."""

    def __call__(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        rows = [[ord(letter) % 64 for letter in text[:LENGTH].ljust(LENGTH)] for text in texts]
        return {"input_ids": torch.tensor(rows)}

    def lengths(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return torch.full((len(inputs["input_ids"]),), LENGTH)

    def describe(self) -> str:
        return f"{LENGTH} letters"


class TinyTower(TowerModule):
    """A network and the name of the input that it reads; `runs` counts its forwards in training."""

    layout = "tiny"
    runs = 0

    def __init__(self, net: nn.Module, process: Any, reads: str) -> None:
        super().__init__(net, WIDTH, process, {"reads": reads})
        self.reads = reads

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        TinyTower.runs += torch.is_grad_enabled()
        return self.net(inputs[self.reads])

    def groups(self) -> list[list[nn.Module]]:
        return [[layer] for layer in self.net]

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True)


@dataclass(frozen=True, kw_only=True)
class TinyPair:
    """`lock`: both towers."""

    dropout: float = 0.2
    lock: bool = False
    scale: float = 14.3

    def build(self) -> DualEncoder:
        pixels, out = 3 * SIDE * SIDE, nn.Linear(WIDTH * LENGTH, WIDTH)
        layers = (nn.Flatten(), nn.Linear(pixels, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(self.dropout))
        image = TinyTower(nn.Sequential(*layers), Pixels(), "pixels")
        layers = (nn.Embedding(64, WIDTH), nn.Dropout(self.dropout), nn.Flatten(), out)
        text = TinyTower(nn.Sequential(*layers), Letters(), "input_ids")
        model = DualEncoder(image, text, dim=8, scale=Scale(init=self.scale), bias=Bias())
        model.adapt(Adaptation(lock=self.lock), Adaptation(lock=self.lock))
        model.spec = self
        return model

    def at(self, folder: Path, trust_remote_code: bool) -> Self:
        return self

    def write(self, model: DualEncoder, state: Mapping[str, Tensor], folder: Path) -> None:
        checkpoints.write(state, folder / "model.safetensors")


def pictures(folder: Path, rows: int = 50) -> str:
    """A jsonl of little pictures with two captions each, one picture of them cut short; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(7)
    lines = []
    for index in range(rows):
        name = f"{index}.png"
        Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(folder / name)
        captions = [" ".join(random.choice(WORDS, 3)) + f" {index}" for _ in range(2)]
        lines.append(json.dumps({"image": name, "caption": captions, "id": f"row{index}"}))
    (folder / "7.png").write_bytes((folder / "7.png").read_bytes()[:60])
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def recipe(folder: Path, **changes: Any) -> TrainRecipe:
    """A recipe over `pictures`; `changes` are its fields, those of its data with a dot: `data.workers`."""
    rows = folder / "data" / "rows.jsonl"
    path = str(rows) if rows.exists() else pictures(folder / "data")
    data = {name.removeprefix("data."): changes.pop(name) for name in [*changes] if name.startswith("data.")}
    source = JsonLines(path=path, id="id")
    fields = {
        "out": str(folder / "out"),
        "model": TinyPair(),
        "data": TrainData(**{"train": source, "batch": 16, "chunk": 6} | data),
        "task": Align(targets=Identity(), terms=(Term(objective=InfoNCE()),)),
        "steps": 12,
        "precision": "fp32",
        "optim": AdamW(lr=1e-3),
        "schedule": Cosine(warmup=0.1),
        "log": Log(every=1, trackers=()),
        "checkpoint": Checkpoint(every=5, keep=2),
    }
    return TrainRecipe(verb="train", **fields | changes)
