"""A dual encoder whose queries may be a picture and a text together, which a head combines."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vlalign.models import weights
from vlalign.models.pair import SIDES, DualEncoder, Scale, side_state
from vlalign.types import Inputs

Mode = Literal["combined", "image", "text", "sum"]
LEARNED = ("head.", "scale")  # what names of all that learns begin with


class Head(nn.Module):
    """Unit rows of texts and of pictures [N, D] -> rows [N, D]."""

    def __init__(self, dim: int, mode: Mode, projection: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.mode = mode

        def mlp(inside: int, width: int, *out: nn.Module) -> nn.Sequential:
            return nn.Sequential(nn.Linear(inside, width), nn.ReLU(), nn.Dropout(dropout), *out)

        self.text, self.image = mlp(dim, projection), mlp(dim, projection)
        self.mixed = mlp(2 * projection, hidden, nn.Linear(hidden, dim))
        self.share = mlp(2 * projection, hidden, nn.Linear(hidden, 1), nn.Sigmoid())

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """Zeros in place of what the mode leaves out."""
        text, image = (
            torch.zeros_like(rows) if self.mode == other else rows
            for rows, other in ((text, "image"), (image, "text"))
        )
        both = torch.cat([self.text(text), self.image(image)], dim=1)
        share = self.share(both)  # [N, 1]
        rows: Tensor = self.mixed(both) + share * text + (1 - share) * image
        return rows


class Sum(nn.Module):
    """The same by two matrices, which begin as the sum of the rows themselves."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.text, self.image = (nn.Linear(dim, dim, bias=False) for _ in range(2))
        for matrix in (self.text, self.image):
            nn.init.eye_(matrix.weight)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """Rows [N, D]."""
        rows: Tensor = self.text(text) + self.image(image)
        return rows


class CombinedEncoder(DualEncoder):
    """A dual encoder that stays as it is, and a head that learns to embed what has a picture and a text."""

    joint = True  # a query that has both is the side `both`

    def __init__(self, encoder: DualEncoder, head: nn.Module, scale: Scale) -> None:
        nn.Module.__init__(self)
        self.encoder, self.head = encoder.requires_grad_(False).eval(), head
        for name in ("image", "text", "image_head", "text_head"):  # outside of the tree of modules
            object.__setattr__(self, name, getattr(encoder, name))
        self.dim, self.scale_max, self.heads = encoder.dim, scale.max, nn.ModuleDict()
        self.scale = nn.Parameter(torch.tensor([math.log(scale.init)]), requires_grad=scale.learn)
        self.bias = nn.Parameter(torch.zeros(1), requires_grad=False)

    def train(self, mode: bool = True) -> Self:
        """Training mode for the head alone."""
        self.training = mode
        self.head.train(mode)
        return self

    def combined(self, image: Tensor, text: Tensor, fusion: float = 0.5) -> Tensor:
        """What the head makes of unit rows [N, D] of both, unit rows too; `fusion` changes nothing."""
        text, image = (rows.to(self.scale.dtype) for rows in (text, image))
        return normalize(self.head(text, image).float(), dim=1)

    def _encode(self, side: str, inputs: Inputs) -> Tensor:
        if side != "both":
            return self.encoder._encode(side, inputs)
        parts: Mapping[str, Any] = inputs  # of a picture and of a text
        image, text = (self.encoder._encode(each, parts[each]) for each in SIDES)
        return self.combined(image, text)

    def plain_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The head's."""
        return {name: x for name, x in state.items() if name.startswith(LEARNED)}

    def own_state(self, plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """With all else as it is here."""
        rest = {name: x for name, x in self.state_dict().items() if not name.startswith(LEARNED)}
        return {**rest, **plain}

    def write(self, state: Mapping[str, Tensor], folder: Path) -> None:
        """The encoder as it writes itself, in `encoder/`, and the head beside it. `state`: its own, whole."""
        weights.save(self.encoder, folder / "encoder", side_state(state, "encoder"))
        self.spec.write(self, self.plain_state(state), folder)
