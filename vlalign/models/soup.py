"""Means of models: soups, Wortsman et al. 2022, https://arxiv.org/abs/2203.05482, and WiSE-FT, Wortsman et
al. 2022, https://arxiv.org/abs/2109.01903: (1 - alpha) theta_zero_shot + alpha theta_fine_tuned.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlalign.models import checkpoints, manifest
from vlalign.models.parcel import collect
from vlalign.models.weights import load, save
from vlalign.types import UserError

WEIGHTS, ADAPTER = "*.safetensors", "*adapter"
OWN = (WEIGHTS, ADAPTER, "README.md", "recipe.yaml", "metrics.json", "soup.json")  # of one model alone
COUNTER = "num_batches_tracked"  # a batch norm's, which no output depends on


def gather(models: Sequence[str], scratch: Path) -> list[Path]:
    """The folders of models as `save` writes them, in `scratch` where another library wrote them.

    Raises UserError where a mean of them would be no model.
    """
    folders = [_saved(model, scratch / str(place)) for place, model in enumerate(models)]
    wanted = _weights(folders[0])
    for model, folder in zip(models[1:], folders[1:], strict=True):
        if (found := _weights(folder)) != wanted:
            told = f"{models[0]} keeps its weights in {', '.join(wanted)} and {model} in {', '.join(found)}"
            raise UserError(f"models: {told}; average models of one architecture")
        for name in wanted:
            with _open(folders[0] / name) as first, _open(folder / name) as other:
                _compare(first, other, models[0], model)
    return folders


def mix(folders: Sequence[Path], weights: Sequence[float], new: Path) -> None:
    """A model folder whose weights are a weighted sum; all else, their dtype too, is the first folder's.

    Sums are float64, so that equal models give themselves bit for bit. One tensor is read at a time. Of the
    first folder only configs and tokenizers are copied. Raises UserError for what cannot be read.
    """
    for name, path in collect(folders[0]).items():
        if not any(fnmatch(part, pattern) for part in Path(name).parts for pattern in OWN):
            with _reading(path):
                content = path.read_bytes()
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_bytes(content)
    for file in _weights(folders[0]):
        with ExitStack() as stack:
            opened = [stack.enter_context(_open(folder / file)) for folder in folders]
            names = opened[0].keys()
            state = {name: _sum(name, opened, weights) for name in names}
        checkpoints.write(state, new / file)


def _sum(name: str, opened: Sequence[Any], weights: Sequence[float]) -> Tensor:
    first: Tensor = opened[0].get_tensor(name)
    if not first.is_floating_point():  # equal in all, or a counter
        return first
    total = torch.full_like(first, -0.0, dtype=torch.float64)  # which alone leaves a zero its sign
    for file, weight in zip(opened, weights, strict=True):
        if weight:
            total.add_(file.get_tensor(name).double(), alpha=weight)
    return total.to(first.dtype)


def _saved(model: str, scratch: Path) -> Path:
    """The folder that `save` has written of this model, or writes now."""
    with _reading(Path(model)):
        for folder in (Path(model) / "model", Path(model)):
            if _plain(folder):
                return folder
        loaded = load(model, device="cpu").model
    save(loaded, scratch)
    return scratch


def _plain(folder: Path) -> bool:
    """Whether a folder is as `save` writes it: no link in it, no wrapper's name, no weights in parts."""
    found = list(folder.glob(WEIGHTS))
    if not (folder / manifest.FILE).is_file() or len(found) != 1:
        return False
    with _open(found[0]) as file:
        wrapped = checkpoints.wrapped(file.keys())
    return not wrapped and not any(path.is_symlink() for path in folder.rglob("*"))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Inside, only what a model is made of is read. Raises UserError for what the disk refuses."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        place, why = (getattr(error, name, None) for name in ("filename", "strerror"))
        raise UserError(f"models: {place or path} cannot be read: {why or error}") from error


def _weights(folder: Path) -> list[str]:
    """Names of a model's files, of what it lies on too, without adapters, which are in the weights."""
    return [x for x in collect(folder) if fnmatch(x, WEIGHTS) and not fnmatch(x, f"{ADAPTER}/*")]


def _open(file: Path) -> Any:
    from safetensors import safe_open

    with _reading(file):
        return safe_open(file, "pt")


def _compare(first: Any, other: Any, a: str, b: str) -> None:
    """Raises UserError that names the first tensor by which two models differ in more than values."""
    names = set(first.keys()), set(other.keys())
    for name in sorted(names[0] | names[1]):
        if name not in names[0] & names[1]:
            told = f"{b if name in names[0] else a} has no {name}, which {a if name in names[0] else b} has"
        elif (left := first.get_slice(name).get_shape()) != (right := other.get_slice(name).get_shape()):
            told = f"{name} is {left} in {a} and {right} in {b}"
        elif name.endswith(COUNTER):
            continue  # the first model's stays
        elif not _averaged(first, name) and not torch.equal(first.get_tensor(name), other.get_tensor(name)):
            told = f"{name}, whole numbers that have no mean, differs in {a} and {b}"
        else:
            continue
        raise UserError(f"models: {told}; average models of one architecture")


def _averaged(file: Any, name: str) -> bool:
    return bool(file.get_slice(name).get_dtype().startswith(("F", "BF")))
