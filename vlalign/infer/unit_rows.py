"""Items as unit rows, by a saved dual encoder or by a text encoder that comes as a package."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlalign.infer.load import picture
from vlalign.infer.nearest import embedded
from vlalign.models import weights
from vlalign.models.features import text_features
from vlalign.models.packages import PREFIX
from vlalign.models.towers.hf_text import HFTextTower
from vlalign.ops.dist import own_device
from vlalign.types import Item, Limits, UserError

FUSION = 0.5  # of the picture, in the row of what has a text too


def unit_rows(model: str, items: Sequence[Item], limits: Limits) -> tuple[Tensor, Tensor]:
    """Rows [N, D], float32 on the CPU, and which items cannot be read, bool [N]. Raises UserError.

    `model`: a folder or Hub id, or `package:NAME`, of which a text's row is the mean of its tokens'.
    """
    bad = torch.zeros(len(items), dtype=torch.bool)
    if not model.startswith(PREFIX):
        opened = weights.load(model, device=own_device(), opening=picture)
        rows, lost = embedded(opened, items, FUSION, limits)
        bad[[*lost]] = True
        return rows, bad
    return unit_rower(model)(items), bad


def unit_rower(model: str) -> Callable[[Sequence[Item]], Tensor]:
    """What gives rows [N, D], float32 on the CPU, of items that can be read. Raises UserError."""
    if not model.startswith(PREFIX):
        opened = weights.load(model, device=own_device(), opening=picture)
        return partial(opened.embed, fusion=FUSION)
    tower = HFTextTower(id=model).build("text", 0).to(own_device())

    def rows(items: Sequence[Item]) -> Tensor:
        if any(each.images for each in items):
            raise UserError(f"{model}: it reads texts alone, and data has pictures; name a dual encoder")
        return normalize(text_features(tower, [each.text for each in items]), dim=1)

    return rows
