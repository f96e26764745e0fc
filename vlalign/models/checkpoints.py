"""Tensors on disk: safetensors, or pickles read as weights only; names that wrappers left are put right."""

import pickle
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vlalign import files
from vlalign.types import UserError

# What the unpickler raises, from the byte at which a file stops making sense
NO_PICKLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    struct.error,
)
WRAPPERS = ("module", "_orig_mod")  # DistributedDataParallel and torch.compile


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU, under unwrapped names. Raises UserError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file of weights")
    try:
        if path.suffix == ".safetensors":
            return unwrap(load_file(path))
        found = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise UserError(f"{path}: these weights cannot be read: {error}") from error
    except NO_PICKLE as error:  # torch's own words would advise to run the file's code
        raise UserError(
            f"{path}: this file is no checkpoint: neither safetensors nor a pickle of plain tensors"
        ) from error
    found = found.get("state_dict", found) if isinstance(found, Mapping) else found
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{path}: expected a map from names to tensors, got {type(found).__name__}")
    return unwrap(found)


def write(state: Mapping[str, Tensor], path: Path) -> None:
    """Write safetensors atomically."""
    from safetensors.torch import save_file

    own = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
    files.replace(path, lambda beside: save_file(own, beside, metadata={"format": "pt"}))


def unwrap(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, `module.` and `_orig_mod.` taken out of their names."""
    return {
        ".".join(part for part in name.split(".") if part not in WRAPPERS): tensor
        for name, tensor in state.items()
    }


def wrapped(names: Iterable[str]) -> bool:
    """Whether any name has a wrapper's part in it."""
    return any(part in WRAPPERS for name in names for part in name.split("."))


def load_backbone(net: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a network without its classifier, by name or, where another library named the tensors, by order.

    By order every shape must agree, and what is left over may only be a classifier's weight and bias.
    Raises UserError.
    """
    own = net.state_dict()
    if own.keys() <= state.keys():
        net.load_state_dict({name: state[name] for name in own})
        return
    names, given = list(own), list(state.values())
    left = given[len(names) :]
    fits = [own[name].shape == tensor.shape for name, tensor in zip(names, given, strict=False)]
    if len(given) < len(names) or len(left) > 2 or not all(fits):
        where = names[fits.index(False)] if False in fits else "the number of tensors"
        raise UserError(
            f"{source}: its {len(given)} tensors do not fit this architecture, which has {len(names)}; "
            f"what first differs is {where}; choose the architecture that these weights were trained with"
        )
    net.load_state_dict(dict(zip(names, given, strict=False)))
