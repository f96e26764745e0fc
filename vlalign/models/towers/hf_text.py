"""A text tower of transformers."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from vlalign.models import hf_towers
from vlalign.models.packages import model_folder
from vlalign.models.tower import Adaptation, ModelSide, TowerModule
from vlalign.registry import TOWERS


@TOWERS.register("hf_text")
@dataclass(frozen=True, kw_only=True)
class HFTextTower(Adaptation):
    """`id`: a Hub id, a folder or `package:NAME`; without `pretrained` only config and tokenizer.

    `pool`: mean of the tokens, the first, or the last. `max_length` in tokens; None: as many as it allows.
    """

    sides = ("text",)
    id: str
    pretrained: bool = True
    pool: hf_towers.TextPool = "mean"
    max_length: int | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length must be >= 1, got {self.max_length}")

    def build(self, side: ModelSide, dim: int) -> TowerModule:
        """The model with its tokenizer."""
        id = model_folder(self.id)
        model = hf_towers.load(id, self.pretrained, self.trust_remote_code)
        tokenizer = hf_towers.tokenizer_of(id, model.config, self.trust_remote_code)
        return hf_towers.HFText(model, tokenizer, self.pool, self.max_length, (model.config, tokenizer))

    def at(self, folder: Path, trust_remote_code: bool) -> Self:
        """The same tower without its weights, from a saved folder."""
        trust = self.trust_remote_code and trust_remote_code
        return replace(self, id=str(folder), pretrained=False, trust_remote_code=trust, lora=None)
