"""One tower of a model of open_clip, its projection included."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from vlalign.models import open_clip_layout
from vlalign.models.open_clip_towers import OpenClipImage, OpenClipText
from vlalign.models.tower import Adaptation, ModelSide, TowerModule
from vlalign.registry import TOWERS


@TOWERS.register("open_clip")
@dataclass(frozen=True, kw_only=True)
class OpenClipTower(Adaptation):
    """`id`: a name that open_clip lists, `hf-hub:ORG/NAME` or `local-dir:FOLDER`; `pretrained`: tag, file."""

    sides = ("image", "text")
    id: str
    pretrained: str | None = None
    image_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size must be >= 1, got {self.image_size}")

    def build(self, side: ModelSide, dim: int) -> TowerModule:
        """The tower, projecting to `dim`."""
        net, config = open_clip_layout.create(self.id, self.pretrained, self.image_size, dim)
        if side == "image":
            return OpenClipImage(net, config)
        return OpenClipText(net, config, open_clip_layout.tokenizer_of(self.id, config))

    def at(self, folder: Path, trust_remote_code: bool) -> Self:
        """The same tower without its weights, from a saved folder."""
        return replace(
            self, id=f"{open_clip_layout.LOCAL}{folder}", pretrained=None, image_size=None, lora=None
        )
