"""Models on disk: `save`, `load` (folders and Hub ids) and `initialise` (start from a saved model)."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from vlalign.files import sync
from vlalign.models import adapter, checkpoints, manifest, open_clip_layout
from vlalign.models.embedder import DualEncoderEmbedder, as_it_is
from vlalign.models.fetching import line
from vlalign.models.layout import layout, located
from vlalign.models.pair import DualEncoder, PairSpec
from vlalign.models.ranker import Ranker, RankerSpec
from vlalign.registry import MODELS
from vlalign.types import UserError


def save(model: DualEncoder | Ranker, folder: str | Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write a model's folder, whole or not at all; what was there before is replaced.

    `state`: the model's state dict where its own tensors are not whole (gathered from shards, or averaged).
    Adapters are merged into the weights, and written apart as `image_adapter/`, `text_adapter/`, `adapter/`.
    """
    state = checkpoints.unwrap(model.state_dict() if state is None else state)
    state = {name: tensor.detach().cpu() for name, tensor in state.items()}
    with _replacing(Path(folder)) as new:
        model.write(state, new)
        manifest.write(model.spec, new, adapter.base_of(model))
        adapter.pin(model, new / "adapter")


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside the old one, which takes its place when the block ends well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    new.chmod(0o755)
    old = new.with_name(f"{new.name}.old")
    try:
        yield new
        for path in (*new.rglob("*"), new):
            sync(path)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        sync(folder.parent)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


def load(
    model: str | Path,
    revision: str | None = None,
    device: str | torch.device | None = None,
    batch: int = 64,
    trust_remote_code: bool = False,
    opening: Callable[[Any], Image] = as_it_is,
) -> DualEncoderEmbedder:
    """A saved dual encoder, ready to embed. `batch`, `opening`: as `DualEncoderEmbedder` has them.

    What `opened` reads. Raises UserError, for a reranker or a captioner too.
    """
    if batch < 1:
        raise UserError(f"batch must be >= 1, got {batch}")
    built = opened(model, revision, device, trust_remote_code)
    if not isinstance(built, DualEncoder):
        raise UserError(f"{model}: this is no dual encoder, and has no embeddings; give one that has")
    return DualEncoderEmbedder(built, batch=batch, opening=opening)


def opened(
    model: str | Path,
    revision: str | None = None,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
) -> DualEncoder | Ranker:
    """A saved model in evaluation mode.

    Reads a folder of this package (or of a run that has one), of open_clip, or of a CLIP or SigLIP model of
    transformers; or a Hub id, of which only safetensors and their configs are downloaded. Of an adapter
    alone, its base is read too. Raises UserError.
    """
    chosen = _device(device)
    folder = located(str(model), revision)
    built: DualEncoder | Ranker
    if layout(folder) == "adapter":
        built = adapter.merged(folder, str(model), trust_remote_code)
        return built.to(chosen).eval()
    with _unwrapped(folder) as clean:
        built = _spec(clean, trust_remote_code).build()
        if layout(clean) == "towers":
            _fill(built, checkpoints.read(clean / "model.safetensors"), clean)
    return built.to(chosen).eval()


def _device(device: str | torch.device | None) -> torch.device:
    """The device, or where none is named a GPU if there is one. Raises UserError for one that is not here."""
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device: '{device}' cannot be used on this machine: {line(error)}") from error
    return chosen


def initialise(model: DualEncoder | Ranker, source: str | Path, trust_remote_code: bool = False) -> None:
    """Give a model the weights of a saved one of the same shape. Raises UserError.

    Adapters start anew, and so do prompts that the saved one has not.
    """
    saved = opened(source, device="cpu", trust_remote_code=trust_remote_code)
    new = {name: x for name, x in model.state_dict().items() if name.endswith(".prompts.vectors")}
    _fill(model, new | saved.plain_state(saved.state_dict()), Path(source))
    model.started_from = str(source)  # type: ignore[assignment]


def _fill(model: DualEncoder | Ranker, plain: Mapping[str, Tensor], source: Path) -> None:
    try:
        missing, unexpected = model.load_state_dict(model.own_state(plain), strict=False)
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{source}: its weights do not fit this model: {error}") from error
    missing = [name for name in missing if ".lora_" not in name]
    if missing or unexpected:
        odd = [*(f"no {name}" for name in missing), *(f"a strange {name}" for name in unexpected)]
        raise UserError(
            f"{source}: its weights do not fit this model: {', '.join(odd[:4])} ({len(odd)} in all)"
        )


def _spec(folder: Path, trust_remote_code: bool) -> PairSpec | RankerSpec:
    laid = layout(folder)
    if laid in ("towers", "reranker"):
        return manifest.read(folder, trust_remote_code).at(folder, trust_remote_code)
    name, id = (
        ("open_clip", f"{open_clip_layout.LOCAL}{folder}")
        if laid == "open_clip"
        else ("hf_clip", str(folder))
    )
    spec: PairSpec = MODELS.get(name)(id=id)
    return spec


@contextmanager
def _unwrapped(folder: Path) -> Iterator[Path]:
    """The folder, or where a wrapper's names are in its weights, a temporary copy that is free of them."""
    from safetensors import SafetensorError, safe_open

    bad = []
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, "pt") as tensors:
                bad += [file] if checkpoints.wrapped(tensors.keys()) else []
        except SafetensorError as error:
            raise UserError(f"{file}: these weights cannot be read: {error}") from error
    if not bad:
        yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "model"
        shutil.copytree(folder, copy)
        for file in bad:
            checkpoints.write(checkpoints.read(file), copy / file.name)
        yield copy
