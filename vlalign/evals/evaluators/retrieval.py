"""Finding the picture of a caption and the caption of a picture, in both directions at once."""

import warnings
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from vlalign.evals.gallery import evenly, show, thumbnails, worst
from vlalign.evals.metrics.pooled_auc import beside_level, pooled
from vlalign.evals.metrics.ranks import level, rank_both, summary
from vlalign.evals.reading import Pictures, read_pictures
from vlalign.registry import EVALUATORS, SOURCES
from vlalign.specs import Embedder, EvalRow, SourceSpec
from vlalign.types import Limits


@EVALUATORS.register("retrieval")
@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Recall, reciprocal rank and median rank of `text_to_image` and `image_to_text` over all of `data`.

    Every caption of a row is a query and a key. `same`: what makes a caption right for a picture: that it is
    one of its `row`, that the picture's row has an equal `caption`, or that both rows have one `concept`.
    `negatives`: unless 0, also the AUC and the best F1 of one threshold for all queries, over the right pairs
    and so many highest wrong ones of each query, unless no pair is wrong. `dataset`: the name in the results.
    `gallery`, `failures`: how many queries the report shows, with pictures of at most `thumbnail` pixels a
    side.
    """

    data: Annotated[SourceSpec, SOURCES]
    dataset: str
    same: Literal["row", "caption", "concept"] = "row"
    every: int = 0
    block: int = 512
    negatives: int = 0
    gallery: int = 8
    failures: int = 8
    thumbnail: int = 96

    def __post_init__(self) -> None:
        for name in ("every", "negatives", "gallery", "failures", "block", "thumbnail"):
            least = int(name in ("block", "thumbnail"))
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")

    def __call__(self, model: Embedder, limits: Limits) -> list[EvalRow]:
        """One row; chance is that of a model to which all pairs look alike."""
        pictures = read_pictures(model, self.data.build(limits))
        texts, owner = pictures.captions()
        features = {"image": pictures.features, "text": model.encode_text(texts)}
        groups = self._groups(pictures, texts, owner)
        items: dict[str, list[dict[str, Any]]] = {
            "image": [{"picture": row, "text": s["captions"][0]} for row, s in enumerate(pictures.samples)],
            "text": [{"text": text} for text in texts],
        }
        metrics: dict[str, float] = {}
        chance: dict[str, float] = {}
        exhibits: dict[str, Any] = {"rows": pictures.account() | {"captions": len(texts)}}
        ways = ("text", "image"), ("image", "text")
        of_ways = rank_both(features["text"], features["image"], groups["text"], groups["image"], self.block)
        for (query, key), ranks in zip(ways, of_ways, strict=True):
            name, ids = f"{query}_to_{key}", (groups[query], groups[key])
            metrics |= {f"{name}_{metric}": value for metric, value in summary(ranks).items()}
            chance |= {
                f"{name}_{metric}": value for metric, value in summary(level(*ids, self.block)).items()
            }
            if self.negatives:
                pairs = pooled(features[query], features[key], *ids, self.negatives, self.block)
                found, alike = beside_level(*pairs)
                if not found:  # which must not end a run
                    warnings.warn(f"negatives: {self.dataset} has no wrong pair, so no AUC", stacklevel=2)
                metrics |= {f"{name}_{metric}": value for metric, value in found.items()}
                chance |= {f"{name}_{metric}": value for metric, value in alike.items()}
            chosen = {"gallery": evenly(len(ids[0]), self.gallery), "failures": worst(ranks, self.failures)}
            both = (features[query], features[key])
            exhibits[name] = {
                part: show(items[query], items[key], both, ids, ranks, rows) for part, rows in chosen.items()
            }
        shown = [
            entry for name in exhibits if "_to_" in name for part in exhibits[name].values() for entry in part
        ]
        exhibits["pictures"] = thumbnails(pictures, shown, self.thumbnail)
        return [
            EvalRow(
                dataset=self.dataset,
                task="zeroshot_retrieval",
                metrics=metrics,
                chance=chance,
                exhibits=exhibits,
            )
        ]

    def _groups(self, pictures: Pictures, texts: list[str], owner: Tensor) -> dict[str, Tensor]:
        """Ids that make pairs right. A picture has several where captions are compared: one for each."""
        if self.same == "row":
            return {"image": torch.arange(len(pictures.samples)), "text": owner}
        if self.same == "concept":
            concept = number(pictures.field("concept"))
            return {"image": concept, "text": concept[owner]}
        text = number([text.strip().casefold() for text in texts])
        ends = torch.bincount(owner).cumsum(0)
        starts = torch.cat([ends.new_zeros(1), ends[:-1]])
        most = int((ends - starts).max())
        place = starts[:, None] + torch.arange(most)
        place = place.minimum(ends[:, None] - 1)  # short rows repeat their last
        return {"image": text[place], "text": text}


def number(values: list[str]) -> Tensor:
    """An id [N] for each value, equal for equal values."""
    ids: dict[str, int] = {}
    return torch.tensor([ids.setdefault(value, len(ids)) for value in values])
