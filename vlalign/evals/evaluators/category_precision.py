"""Finding the pictures of a category, by a text that names it or by another of its pictures."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from vlalign.evals.metrics.precision import precisions
from vlalign.evals.prompts import class_names, fill, places, templates
from vlalign.evals.reading import read_pictures
from vlalign.registry import EVALUATORS, SOURCES
from vlalign.specs import Embedder, EvalRow, SourceSpec
from vlalign.types import DataError, Limits


@EVALUATORS.register("category_precision")
@dataclass(frozen=True, kw_only=True)
class CategoryPrecision:
    """The share of pictures of the query's category among the first `k` of `data`, the mean over queries.

    `label`: the field that holds a row's category. `query: image`: every picture, never finding itself;
    `text`: each category in each of `templates`, which are as in zero_shot, and so are `classes`. Where a
    category has no picture that could be found, it asks nothing.
    """

    data: Annotated[SourceSpec, SOURCES]
    dataset: str
    label: str = "label"
    query: Literal["image", "text"] = "image"
    k: tuple[int, ...] = (5, 10, 50)
    classes: str | tuple[str, ...] | None = None
    templates: str | tuple[str, ...] = "simple"
    every: int = 0
    block: int = 512

    def __post_init__(self) -> None:
        for name, least in (("every", 0), ("block", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")
        if not self.k or min(self.k) < 1:
            raise ValueError(f"k must be one or more numbers >= 1, got {list(self.k)}")
        for name in ("classes", "templates"):
            if getattr(self, name) == ():
                raise ValueError(f"{name} must have at least one entry, got none")

    def __call__(self, model: Embedder, limits: Limits) -> list[EvalRow]:
        """One row; chance is the share of the query's category among the other pictures."""
        wording = templates(self.templates)
        names = None if self.classes is None else class_names(self.classes)
        pictures = read_pictures(model, self.data.build(limits))
        labels = pictures.field(self.label)
        names = sorted(set(labels)) if names is None else names
        right = places(labels, names)
        text, key = self.query == "text", pictures.features
        query, asked = _prompts(model, names, wording) if text else (key, right)
        asks = torch.bincount(right, minlength=len(names))[asked] > (0 if text else 1)
        if not asks.any():
            raise DataError(f"no category of field '{self.label}' has two pictures, one to find the other")
        measure = partial(precisions, query_class=asked, key_class=right, ks=self.k, itself=text)
        found = measure(query, key, block=self.block)[asks].mean(0)
        level = measure(query[:, :0], key[:, :0], block=self.block)[asks].mean(0)  # all score alike
        named = [f"{self.query}_to_image_P@{k}" for k in self.k]
        return [
            EvalRow(
                dataset=self.dataset,
                task="category_retrieval",
                metrics=dict(zip(named, found.tolist(), strict=True)),
                chance=dict(zip(named, level.tolist(), strict=True)),
                exhibits={"rows": pictures.account()},
            )
        ]


def _prompts(model: Embedder, names: list[str], wording: list[str]) -> tuple[Tensor, Tensor]:
    """Unit rows of every name in every template, and their classes."""
    rows = model.encode_text([fill(template, name) for name in names for template in wording])
    return nn.functional.normalize(rows, dim=1), torch.arange(len(names)).repeat_interleave(len(wording))
