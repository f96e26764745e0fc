"""How well the embeddings of both sides use their space, without labels."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from vlalign.evals.metrics.alignment_uniformity import alignment, uniformity
from vlalign.evals.metrics.modality_gap import modality_gap
from vlalign.evals.metrics.rank_me import rank_me, spectrum
from vlalign.evals.reading import read_pictures
from vlalign.registry import EVALUATORS, SOURCES
from vlalign.specs import Embedder, EvalRow, SourceSpec
from vlalign.types import DataError, Limits


@EVALUATORS.register("embedding_health")
@dataclass(frozen=True, kw_only=True)
class EmbeddingHealth:
    """RankMe, alignment, uniformity and modality gap of pictures and their first captions.

    RankMe is told of each side, of `pairs`, both sides in one row, and of `cross`, their product [D, D].
    `samples`: at most so many rows, drawn by `seed`. Chance is that of as many random directions.
    """

    data: Annotated[SourceSpec, SOURCES]
    dataset: str
    samples: int = 25_600
    seed: int = 0
    every: int = 0

    def __post_init__(self) -> None:
        for name, least in (("samples", 2), ("every", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")

    def __call__(self, model: Embedder, limits: Limits) -> list[EvalRow]:
        """One row, with the singular-value spectra for the report. Raises DataError for one alone."""
        pictures = read_pictures(model, self.data.build(limits))
        if len(pictures.samples) < 2:
            raise DataError(f"{self.dataset} has one row that can be read; embedding_health needs two")
        generator = torch.Generator().manual_seed(self.seed)
        rows = torch.randperm(len(pictures.samples), generator=generator)[: self.samples]
        text = model.encode_text([pictures.samples[row]["captions"][0] for row in rows.tolist()])
        image = pictures.features[rows]
        random = torch.randn(2, *image.shape, generator=generator)
        spectra = {"image": spectrum(image), "text": spectrum(text)}
        return [
            EvalRow(
                dataset=self.dataset,
                task="embedding_health",
                metrics=health(image, text),
                chance=health(*nn.functional.normalize(random, dim=2)),
                exhibits={
                    "rows": pictures.account(),
                    "spectra": {side: values.tolist() for side, values in spectra.items()},
                },
            )
        ]


def health(image: Tensor, text: Tensor) -> dict[str, float]:
    """All the metrics of paired unit rows [N, D]."""
    ranked = {"image": image, "text": text, "pairs": torch.cat([image, text], 1), "cross": image.T @ text}
    return {
        **{f"rank_me_{side}": rank_me(spectrum(rows)) for side, rows in ranked.items()},
        "alignment": alignment(image, text),
        "uniformity_image": uniformity(image),
        "uniformity_text": uniformity(text),
        "modality_gap": modality_gap(image, text),
    }
