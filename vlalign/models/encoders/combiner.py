"""A picture and a text as one query, Vaze et al. 2023, https://arxiv.org/abs/2306.07969 (GeneCIS).

The head is the combiner of Baldrati et al. 2023, https://arxiv.org/abs/2308.11485, over a dual encoder that
does not learn. It is given unit rows here, and what the towers give in the released code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from vlalign.models import checkpoints, weights
from vlalign.models.combined import CombinedEncoder, Head, Mode, Sum
from vlalign.models.pair import DualEncoder, Scale
from vlalign.registry import MODELS
from vlalign.types import UserError


@MODELS.register("combiner")
@dataclass(frozen=True, kw_only=True)
class Combiner:
    """`encoder`: folder or Hub id of a dual encoder, which stays as it is and is saved beside the head.

    `mode`: what is made of the unit rows t of a query's text and v of its picture. `combined`:
    norm(MLP([W_t t; W_v v]) + a t + (1 - a) v), where another MLP gives the share a; `image`, `text`: the
    same with zeros for the other; `sum`: norm(W_t t + W_v v). What has no picture, or no text, is embedded by
    the encoder alone. `projection`, `hidden`: widths of W and of both MLPs, here 4 and 8 times the 640 of the
    paper's encoder.
    """

    encoder: str
    mode: Mode = "combined"
    projection: int = 2560
    hidden: int = 5120
    dropout: float = 0.5
    scale: Scale = Scale(init=100.0, learn=False)

    def __post_init__(self) -> None:
        if not self.encoder.strip():
            raise ValueError("encoder must name the folder or Hub id of a dual encoder, and names nothing")
        for name in ("projection", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be >= 0 and < 1, got {self.dropout}")

    def build(self) -> CombinedEncoder:
        """The encoder with its weights and a new head, on the CPU, in training mode. Raises UserError."""
        encoder = weights.opened(self.encoder, device="cpu")
        if not isinstance(encoder, DualEncoder) or isinstance(encoder, CombinedEncoder):
            raise UserError(f"model.encoder: {self.encoder} is no dual encoder; name one that is")
        head = (
            Sum(encoder.dim)
            if self.mode == "sum"
            else Head(encoder.dim, self.mode, self.projection, self.hidden, self.dropout)
        )
        model = CombinedEncoder(encoder, head, self.scale)
        model.spec = self
        return model.train()

    def at(self, folder: Path, trust_remote_code: bool) -> Self:
        """The same model from a saved folder, its head without weights."""
        return replace(self, encoder=str(folder / "encoder"))

    def write(self, model: Any, state: Mapping[str, Tensor], folder: Path) -> None:
        """The head alone. `state`: plain (`CombinedEncoder.plain_state`)."""
        checkpoints.write(state, folder / "model.safetensors")
