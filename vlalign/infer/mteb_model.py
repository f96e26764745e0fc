"""A reranker as mteb evaluates cross-encoders, Muennighoff et al. 2023, https://arxiv.org/abs/2210.07316.

model = MtebModel("me/reranker")
mteb.evaluate(model, tasks=mteb.get_tasks(tasks=["AskUbuntuDupQuestions"]))
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from vlalign.infer.load import load
from vlalign.models.rerank_scorer import RerankScorer
from vlalign.types import Item, UserError


class MtebModel:
    """mteb's CrossEncoderProtocol. An instruction of a task stands behind its query, as mteb joins them."""

    def __init__(
        self,
        model_name: str | RerankScorer,
        revision: str | None = None,
        device: str | None = None,
        **options: Any,
    ) -> None:
        """A folder or Hub id, or what `vlalign.load` gave. mteb files results under its name and revision.

        `options`: what mteb tells every model, ignored. Raises UserError.
        """
        given = isinstance(model_name, RerankScorer)
        scorer = model_name if given else load(str(model_name), revision, device)
        if not isinstance(scorer, RerankScorer):
            raise UserError(f"{model_name}: this is a dual encoder, and no reranker; give it to MtebEncoder")
        self.scorer, self.revision = scorer, revision
        self.name = "vlalign/reranker" if given else called(str(model_name))

    def predict(
        self,
        inputs1: Iterable[Mapping[str, Any]],
        inputs2: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any = None,
        hf_split: str | None = None,
        hf_subset: str | None = None,
        prompt_type: Any = None,
        **options: Any,
    ) -> Any:
        """Raw scores [P] of pairs, a numpy array in their order. The rest says where the pairs are from.

        `inputs1`, `inputs2`: batches of as many queries and documents, each with its `text`, its `image` or
        both. Candidates of a query that stand together are scored together. Raises UserError.
        """
        pairs = zip(items_of(inputs1), items_of(inputs2), strict=True)
        found = [torch.empty(0)]
        for query, group in groupby(pairs, key=itemgetter(0)):
            found += self.scorer.score([query], [[candidate for _, candidate in group]])
        return torch.cat(found).numpy()

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb says of this model beside its results."""
        from mteb.models import ModelMeta

        pictures = getattr(self.scorer.model.process, "pictures", None) is not None
        told = {
            "name": self.name,
            "revision": self.revision,
            "modalities": ["text", "image"] if pictures else ["text"],
            "model_type": ["cross-encoder"],
            "framework": ["PyTorch", "Transformers"],
        }
        return ModelMeta.create_empty(overwrites=told)


def called(model: str) -> str:
    """The name that mteb files results under: of this machine's paths only the last part is told."""
    return f"vlalign/{Path(model).resolve().name}" if Path(model).exists() else model


def items_of(batches: Iterable[Mapping[str, Any]]) -> Iterator[Item]:
    """The rows of mteb's batches, one after the other. Raises UserError."""
    for batch in batches:
        columns = [batch[name] for name in ("text", "image") if name in batch]
        if not columns:
            raise UserError(
                f"this model reads texts and pictures, and this task gives {', '.join(batch)}; take another"
            )
        rows = len(columns[0])
        texts, pictures = batch.get("text", [""] * rows), batch.get("image", [None] * rows)
        for text, picture in zip(texts, pictures, strict=True):
            yield Item(text=text or "", images=() if picture is None else (picture,))
