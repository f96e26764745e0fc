"""One direction of an embedding space: how far a row lies from what lacks an attribute to what has it."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlalign.files import replace
from vlalign.ops.precision import wide
from vlalign.types import UserError

NOTHING = 1e-5  # of a unit row: what rounding in float32 leaves of two equal ones


class Direction(NamedTuple):
    """Of a file `direction.safetensors`. `model`: the digest of the model whose embeddings it is for.

    `target`: the positive pole's score; the negative one's is as far below 0, but for unwanted directions
    that were left out. Poles are unit, and lie farther out than the mean of their rows: few rows reach it.
    `steepness`: where the poles were learnt, what a row's score is multiplied by to be the log odds that it
    is positive.
    """

    vector: Tensor  # [D] unit
    target: float
    steepness: float | None = None
    model: str = ""


def pole(rows: Tensor) -> Tensor:
    """The unit mean [D] of rows [N, D], each made unit first. Raises UserError where they have none."""
    mean = normalize(wide(rows), dim=1).mean(0)
    if not mean.norm() > NOTHING:
        raise UserError(f"{len(rows)} embeddings have no mean to point to: they cancel out; give others")
    return normalize(mean, dim=0)


def between(positive: Tensor, negative: Tensor, unwanted: Tensor | None = None) -> Direction:
    """From one pole [D] to the other, orthogonal to all `unwanted` [K, D]. Raises UserError."""
    moved = positive - negative
    if not moved.norm() > NOTHING:
        raise UserError("positive and negative have the same mean embedding; give examples that differ")
    vector = normalize(moved, dim=0)
    if unwanted is not None:
        vector = debias(vector, unwanted)
    return Direction(vector, float(positive @ vector))


def fit(positive: Tensor, negative: Tensor, unwanted: Tensor | None = None) -> Direction:
    """The direction between the poles of rows [P, D] and [N, D]. Raises UserError."""
    return between(pole(positive), pole(negative), unwanted)


def score(rows: Tensor, vector: Tensor) -> Tensor:
    """How far unit rows [N, D] lie along it: [N] from -1 to 1."""
    rows = wide(rows)
    return rows @ vector.to(rows)


def debias(vector: Tensor, unwanted: Tensor) -> Tensor:
    """A unit vector without what `unwanted` [K, D] span. Raises UserError where nothing is left."""
    unwanted = unwanted.to(vector)
    rest = vector - torch.linalg.pinv(unwanted) @ (unwanted @ vector)
    if not rest.norm() > NOTHING:
        raise UserError("nothing is left of the direction without the unwanted ones; leave some of them out")
    return normalize(rest, dim=0)


def removed(rows: Tensor, vector: Tensor) -> Tensor:
    """Unit rows [N, D] without what lies along it, unit again; of a row that is nothing else, nothing."""
    rest = wide(rows) - score(rows, vector)[:, None] * vector.to(wide(rows))
    return torch.where(rest.norm(dim=1, keepdim=True) > NOTHING, normalize(rest, dim=1), 0)


def write(direction: Direction, path: Path) -> None:
    """One file, equal for equal directions. Raises OSError."""
    from safetensors.torch import save_file

    numbers = {"target": direction.target, "steepness": direction.steepness}
    tensors = {name: torch.tensor([x]) for name, x in numbers.items() if x is not None}
    tensors["direction"] = direction.vector.float().contiguous()
    replace(path, lambda beside: save_file(tensors, beside, metadata={"digest": direction.model}))


def read(path: str | Path) -> Direction:
    """What `write` wrote. Raises UserError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(Path(path).expanduser(), "pt") as file:
            names = file.keys()
            named = {name: file.get_tensor(name) for name in names}
            told = file.metadata() or {}
        steepness = named["steepness"].item() if "steepness" in named else None
        return Direction(named["direction"], named["target"].item(), steepness, told.get("digest", ""))
    except (OSError, SafetensorError, LookupError, RuntimeError) as error:
        raise UserError(f"{path}: this is no direction that `vlalign direction` wrote: {error}") from error
