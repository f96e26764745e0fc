"""A dual encoder as mteb and MIEB evaluate encoders, Xiao et al. 2025, https://arxiv.org/abs/2504.10471.

model = MtebEncoder("me/encoder")
mteb.evaluate(model, tasks=mteb.get_tasks(tasks=["Flickr30kT2IRetrieval"]))
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlalign.infer.load import load
from vlalign.infer.mteb_model import called, items_of
from vlalign.models.embedder import DualEncoderEmbedder
from vlalign.types import UserError


class MtebEncoder:
    """mteb's EncoderProtocol. A text with a picture is the sum of both unit rows, made unit again.

    Prompts and instructions of tasks are left out but where mteb has joined them to a query.
    """

    def __init__(
        self,
        model_name: str | DualEncoderEmbedder,
        revision: str | None = None,
        device: str | None = None,
        **options: Any,
    ) -> None:
        """A folder or Hub id, or what `vlalign.load` gave. mteb files results under its name and revision.

        `options`: what mteb tells every model, ignored. Raises UserError.
        """
        given = isinstance(model_name, DualEncoderEmbedder)
        embedder = model_name if given else load(str(model_name), revision, device)
        if not isinstance(embedder, DualEncoderEmbedder):
            raise UserError(f"{model_name}: this is no dual encoder; a reranker goes to MtebModel")
        self.embedder, self.revision = embedder, revision
        self.name = "vlalign/encoder" if given else called(str(model_name))

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any = None,
        hf_split: str | None = None,
        hf_subset: str | None = None,
        prompt_type: Any = None,
        **options: Any,
    ) -> Any:
        """Unit rows [N, D], a numpy array in the order of the inputs. The rest says where these are from.

        `inputs`: batches of rows, each with its `text`, its `image` or both. Raises UserError.
        """
        found = [torch.empty(0, self.embedder.model.dim)]
        found += [self.embedder.embed(list(items_of([batch]))) for batch in inputs]
        return torch.cat(found).numpy()

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines [N, M] of rows [N, D] and [M, D], arrays or tensors; one row may come as [D]."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines [N] of rows [N, D] that stand in one place."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(1)

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb says of this model beside its results."""
        from mteb.models import ModelMeta

        sees = getattr(self.embedder.model.image.process, "pictures", True) is not None
        told = {
            "name": self.name,
            "revision": self.revision,
            "modalities": ["image", "text"] if sees else ["text"],
            "model_type": ["dense"],
            "framework": ["PyTorch"],
            "embed_dim": self.embedder.model.dim,
            "similarity_fn_name": "cosine",
            "use_instructions": False,
        }
        return ModelMeta.create_empty(overwrites=told)


def _unit(rows: Any) -> Tensor:
    """[N, D], float32; means of rows, which tasks make, are made unit too."""
    found = torch.as_tensor(rows, dtype=torch.float32)
    return normalize(found[None] if found.ndim == 1 else found, dim=1)
