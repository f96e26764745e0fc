"""Pictures made better to a frozen encoder, Liang et al. 2023, https://arxiv.org/abs/2303.17569 (CLIP-LIT).

So does Gaintseva et al. 2024, https://arxiv.org/abs/2404.01889 (RAVE). Their nets are larger.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from vlalign.models import checkpoints
from vlalign.models.enhance import Enhancer, Net
from vlalign.models.weights import opened
from vlalign.registry import MODELS


@MODELS.register("enhancer")
@dataclass(frozen=True, kw_only=True)
class EnhancerSpec:
    """A net that learns, seen through the encoder `id`, a saved dual encoder's folder or Hub id.

    `net`: `global`, one curve of eight numbers for all pictures, as Guo et al. 2020,
    https://arxiv.org/abs/2001.06826 (Zero-DCE), bend them; `curve`, one for each pixel; `unet`, which adds to
    pictures what a curve cannot. A step's queries are embeddings of the pictures that it makes, the keys
    those of the pictures as they were. All nets begin by changing nothing.
    """

    id: str
    net: Net = "curve"

    one_text = True  # of a row: none is read

    def build(self) -> Enhancer:
        """The model, its encoder loaded and frozen, on the CPU, in training mode. Raises UserError."""
        model = Enhancer(opened(self.id, device="cpu"), self.net)
        model.spec = self
        return model.train()

    def at(self, folder: Path, trust_remote_code: bool) -> Self:
        """The same model without its net's weights, from a saved folder."""
        return replace(self, id=str(folder / "encoder"))

    def write(self, model: Any, state: Mapping[str, Tensor], folder: Path) -> None:
        """The net alone. `state`: plain (`Enhancer.plain_state`)."""
        checkpoints.write(state, folder / "model.safetensors")
