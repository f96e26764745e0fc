"""The backward of a pass over tiles: gradients of what scores are made of."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vlalign.ops.tile import Operands, Tile


class Gradients:
    """Gradients of the operands while tiles come by; None if nobody wants one: its product is not formed."""

    def __init__(self, operands: Operands, wanted: Sequence[bool]) -> None:
        """Raises NotImplementedError inside a backward that is itself to be differentiated."""
        refuse_second()
        self.operands = operands
        self.tensors = [
            torch.zeros_like(x) if want else None for x, want in zip(operands, wanted, strict=True)
        ]

    def add(self, tile: Tile, slopes: Mapping[float | None, Tensor]) -> None:
        """One tile's part: the slopes [q, k] of its scores at each temperature, None for logits."""
        query, key, scale, bias = self.tensors
        logits = slopes.get(None)
        if logits is not None and scale is not None:
            scale += (logits * tile.cosine).sum()
        if logits is not None and bias is not None:
            bias += logits.sum()
        parts = [
            slope * self.operands.scale if seen is None else slope / seen for seen, slope in slopes.items()
        ]
        if not parts:
            return
        cosine, rows, columns = sum(parts[1:], parts[0]), tile.span["query"], tile.span["key"]
        if query is not None:
            query[rows].addmm_(cosine, self.operands.key[columns])
        if key is not None:
            key[columns].addmm_(cosine.T, self.operands.query[rows])


def refuse_second() -> None:
    """Raises NotImplementedError inside a backward that is itself to be differentiated."""
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "the score table has no second derivative, and create_graph=True asks for one; "
            "use an objective that reads rows.dense(), or a first-order method"
        )


def no_autocast(operands: Operands) -> torch.autocast:
    """The backward forms scores outside any autocast of the forward, so the forward must too."""
    return torch.autocast(operands.query.device.type, enabled=False)
