"""A model of a recipe that judges as it comes, without training."""

from functools import cached_property
from hashlib import blake2b
from typing import Any

from vlalign.infer.load import picture
from vlalign.models.layout import folder_digest, located
from vlalign.models.packages import model_folder
from vlalign.models.rerank_scorer import RerankScorer
from vlalign.ops.dist import own_device
from vlalign.registry import encode
from vlalign.specs import ModelSpec
from vlalign.types import UserError


class AskedModel:
    """Loads its model when it is first asked, for all may be kept. `digest`: of weights and prompt."""

    def __init__(self, spec: ModelSpec) -> None:
        """Raises UserError for a model that answers no prompt."""
        if not hasattr(spec, "prompt"):
            raise UserError(f"judges: {type(spec).__name__} answers no prompt; name a reranker that does")
        self.spec = spec
        told: Any = encode(spec, component=True)
        id = str(told.pop("id"))
        weights = folder_digest(located(model_folder(id), None))
        self.digest = blake2b(f"{told}\0{weights}".encode(), digest_size=16).hexdigest()

    @cached_property
    def scorer(self) -> RerankScorer:
        """On this process's device. Raises UserError."""
        return RerankScorer(self.spec.build().to(own_device()).eval(), opening=picture)
