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
PEFT, ADAPTER = "base_model.model.", ".lora_"


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU, under unwrapped names. Raises UserError."""
    path = Path(path)
    state = unwrap(_found(path))
    if any(ADAPTER in name for name in state):
        raise UserError(
            f"{path}: adapters lie beside these weights, and nothing says how much of them to add; merge "
            "them (merge_and_unload in PEFT) and save the whole again"
        )
    return state


def _found(path: Path) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"{path}: there is no such file of weights")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
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
    return found


def write(state: Mapping[str, Tensor], path: Path) -> None:
    """Write safetensors atomically."""
    from safetensors.torch import save_file

    own = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
    files.replace(path, lambda beside: save_file(own, beside, metadata={"format": "pt"}))


def unwrap(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, `module.`, `_orig_mod.` and PEFT's `base_model.model.` taken out of their names."""
    return {_bare(name): tensor for name, tensor in state.items()}


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS).removeprefix(PEFT)


def wrapped(names: Iterable[str]) -> bool:
    """Whether any name is not as `read` gives it, or is an adapter's, which `read` refuses."""
    return any(_bare(name) != name or ADAPTER in name for name in names)


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
