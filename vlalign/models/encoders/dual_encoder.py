"""Two towers of any libraries and a head each."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

from torch import Tensor

from vlalign.models import checkpoints, open_clip_layout
from vlalign.models.heads import Head
from vlalign.models.pair import SIDES, Bias, DualEncoder, Scale
from vlalign.models.tower import TowerSpec
from vlalign.registry import MODELS, TOWERS, name_of


@MODELS.register("dual_encoder")
@dataclass(frozen=True, kw_only=True)
class DualEncoderSpec:
    """`dim`: width of the joint space; a tower of open_clip projects to it itself and gets no `head`.

    Saved as open_clip's layout when both towers are open_clip's, without prompts.
    """

    image: Annotated[TowerSpec, TOWERS]
    text: Annotated[TowerSpec, TOWERS]
    dim: int = 512
    head: Head = "linear"
    scale: Scale = Scale()
    bias: Bias = Bias()

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"dim must be >= 1, got {self.dim}")
        for side, tower in (("image", self.image), ("text", self.text)):
            if side not in tower.sides:
                raise ValueError(
                    f"{side}: '{name_of(type(tower))}' is a tower for {tower.sides[0]}s, not for {side}s"
                )

    def build(self) -> DualEncoder:
        """The model, weights loaded, locked and adapted, on the CPU, in training mode."""
        image, text = self.image.build("image", self.dim), self.text.build("text", self.dim)
        model = DualEncoder(image, text, dim=self.dim, head=self.head, scale=self.scale, bias=self.bias)
        model.adapt(self.image, self.text)
        model.spec = self
        return model

    def at(self, folder: Path, trust_remote_code: bool) -> Self:
        """The same model without its weights, from a saved folder."""
        towers: dict[str, Any] = {
            side: getattr(self, side).at(folder / side, trust_remote_code) for side in SIDES
        }
        return replace(self, **towers)

    def write(self, model: DualEncoder, state: Mapping[str, Tensor], folder: Path) -> None:
        """`state`: plain (`DualEncoder.plain_state`)."""
        layouts = {model.tower(side).layout for side in SIDES}
        gelu = {model.tower(side).config.get("quick_gelu", False) for side in SIDES}
        if layouts == {open_clip_layout.LAYOUT} and len(gelu) == 1:  # open_clip knows one activation a model
            open_clip_layout.write_model(folder, model.image, model.text, state)
            return
        for side in SIDES:
            model.tower(side).write(folder / side)
        checkpoints.write(state, folder / "model.safetensors")
