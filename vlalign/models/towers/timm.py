"""An image tower of timm."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from vlalign.models import checkpoints
from vlalign.models.fetching import fetching
from vlalign.models.packages import weights_file
from vlalign.models.processors import Transformed
from vlalign.models.timm_tower import TimmImage
from vlalign.models.tower import Adaptation, ModelSide, TowerModule
from vlalign.registry import TOWERS, suggestion
from vlalign.types import UserError

Channels = tuple[float, float, float]


@TOWERS.register("timm")
@dataclass(frozen=True, kw_only=True)
class Timm(Adaptation):
    """`id`: a model that timm lists, or `hf-hub:ORG/NAME`; `pretrained`: timm's weights for it.

    `weights`: a file of weights (safetensors, or a pickle read as weights only) or `package:NAME` instead.
    `image_size` in pixels, `crop_pct` (what the centre crop keeps of a side), `mean` and `std` by channel:
    None keeps timm's for this model.
    """

    sides = ("image",)
    id: str
    pretrained: bool = False
    weights: str | None = None
    image_size: int | None = None
    crop_pct: float | None = None
    mean: Channels | None = None
    std: Channels | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pretrained and self.weights:
            raise ValueError(
                "pretrained takes timm's weights and weights takes your own; leave one of them out"
            )
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size must be >= 1, got {self.image_size}")
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct must be > 0 and <= 1, got {self.crop_pct}")
        if self.std is not None and not all(each > 0 for each in self.std):
            raise ValueError(f"std must be > 0 in each channel, got {self.std}")

    def build(self, side: ModelSide, dim: int) -> TowerModule:
        """The network without its classifier. Raises UserError."""
        import timm
        import timm.data as preprocessing

        if ":" not in self.id and not timm.is_model(self.id):
            raise UserError(f"timm has no model '{self.id}'.{suggestion(self.id, timm.list_models())}")
        with fetching(self.id, "timm"):
            net: Any = timm.create_model(self.id, pretrained=self.pretrained, num_classes=0)
        if self.weights:
            file = weights_file(self.weights)
            checkpoints.load_backbone(net, checkpoints.read(file), file)
        library: Any = preprocessing
        data = library.resolve_model_data_config(net)
        if self.image_size is not None:
            data["input_size"] = (data["input_size"][0], self.image_size, self.image_size)
            if hasattr(net, "set_input_size"):
                with fetching(f"{self.id} at image_size {self.image_size}", "timm"):
                    net.set_input_size(img_size=self.image_size)
        data |= {
            key: value for key in ("crop_pct", "mean", "std") if (value := getattr(self, key)) is not None
        }
        process = Transformed(library.create_transform(**data, is_training=False))
        return TimmImage(net, process, {"id": self.id, "image_size": self.image_size})

    def at(self, folder: Path, trust_remote_code: bool) -> Self:
        """The same tower without its weights; one from the Hub, from a saved folder."""
        id = f"local-dir:{folder}" if ":" in self.id else self.id
        return replace(self, id=id, pretrained=False, weights=None, lora=None)
