"""Continuously weighted contrastive loss, Srinivasa et al. 2023, https://arxiv.org/abs/2309.14580."""

from dataclasses import dataclass

from torch import Tensor

from vlalign.ops.likeness import cosines
from vlalign.registry import TARGETS
from vlalign.types import Batch


@TARGETS.register("cwcl")
@dataclass(frozen=True, kw_only=True)
class CWCL:
    """A key is as relevant to a query as a frozen encoder finds their rows alike: cosine / 2 + 1 / 2.

    `field` holds the frozen unit features of every row. With info_nce this is the paper's loss, which uses it
    in one direction, from the frozen side to the trained one; the other keeps ordinary targets. As published
    the weights of a row are nearly uniform: features of unrelated rows are nearly orthogonal, and weigh 1/2
    each. `sharpness` is our variant against that: exp(sharpness * (cosine - 1)), which is, once each row is
    divided by its sum, a softmax of cosines over a temperature of 1 / sharpness.
    """

    field: str = "image_features"
    sharpness: float | None = None

    all_positive = True

    def __post_init__(self) -> None:
        if self.sharpness is not None and not self.sharpness > 0:
            raise ValueError(f"sharpness must be > 0, got {self.sharpness}")

    @property
    def query_fields(self) -> tuple[str, ...]:
        """The features."""
        return (self.field,)

    @property
    def key_fields(self) -> tuple[str, ...]:
        """The same as of the query."""
        return self.query_fields

    def tile(self, query: Batch, key: Batch) -> Tensor:
        """Relevance [q, k], from 0 to 1."""
        cosine = cosines(query[self.field], key[self.field]).clamp(-1, 1)
        return (cosine + 1) / 2 if self.sharpness is None else (self.sharpness * (cosine - 1)).exp()
