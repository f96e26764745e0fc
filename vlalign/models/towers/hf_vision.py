"""An image tower of transformers."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from vlalign.models import hf_towers
from vlalign.models.packages import model_folder
from vlalign.models.tower import Adaptation, ModelSide, TowerModule
from vlalign.registry import TOWERS


@TOWERS.register("hf_vision")
@dataclass(frozen=True, kw_only=True)
class HFVisionTower(Adaptation):
    """`id`: a Hub id, a folder or `package:NAME`; without `pretrained` only config and processor.

    `pool`: as the model pools itself, the mean of its tokens, or the first.
    """

    sides = ("image",)
    id: str
    pretrained: bool = True
    pool: hf_towers.ImagePool = "pooler"
    trust_remote_code: bool = False

    def build(self, side: ModelSide, dim: int) -> TowerModule:
        """The model with its image processor."""
        id = model_folder(self.id)
        model = hf_towers.load(id, self.pretrained, self.trust_remote_code)
        processor = hf_towers.processor_of("AutoImageProcessor", id, self.trust_remote_code)
        return hf_towers.HFVision(model, processor, self.pool, (model.config, processor))

    def at(self, folder: Path, trust_remote_code: bool) -> Self:
        """The same tower without its weights, from a saved folder."""
        trust = self.trust_remote_code and trust_remote_code
        return replace(self, id=str(folder), pretrained=False, trust_remote_code=trust, lora=None)
