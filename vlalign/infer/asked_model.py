"""A model of a recipe that judges as it comes, without training."""

from functools import cached_property
from hashlib import blake2b
from typing import Any

import torch

from vlalign.infer.load import picture
from vlalign.models.layout import folder_digest, located
from vlalign.models.packages import model_folder
from vlalign.models.rerank_scorer import RerankScorer
from vlalign.ops.dist import own_device
from vlalign.registry import encode
from vlalign.specs import ModelSpec
from vlalign.types import UserError

ELSEWHERE = ("id", "share", "lora", "lists", "reference")  # where it is, and how it would learn


class AskedModel:
    """Loads its model when it is first asked, for all may be kept. `digest`: of the kind of judge, of weights
    and prompt. A model without `pretrained` is the same random one each time.
    """

    def __init__(self, spec: ModelSpec) -> None:
        """Raises UserError for a model that answers no prompt."""
        self.spec = spec
        self.prompt: Any = getattr(spec, "prompt", None)
        if not hasattr(self.prompt, "whole"):  # an embedder's is answered by no word
            raise UserError(f"judges: {type(spec).__name__} answers no prompt; name a reranker that does")
        told: Any = encode(spec, component=True)
        weights = folder_digest(located(model_folder(told["id"]), None))
        asked = {name: value for name, value in told.items() if name not in ELSEWHERE}
        told_of = f"{type(self).__name__}\0{asked}\0{weights}"
        self.digest = blake2b(told_of.encode(), digest_size=16).hexdigest()

    @cached_property
    def scorer(self) -> RerankScorer:
        """On this process's device. Raises UserError."""
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            return RerankScorer(self.spec.build().to(own_device()).eval(), opening=picture)
