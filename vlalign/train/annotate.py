"""What is computed of every row before the first step: fields, and by them the order and virtual rows."""

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from vlalign import files
from vlalign.data.bad_rows import name_of
from vlalign.data.calibration import VirtualFeatures
from vlalign.data.hashing import hash63
from vlalign.data.sampler import Order
from vlalign.files import cache_folder
from vlalign.models.feature_cache import FeatureCache
from vlalign.models.weights import load
from vlalign.recipe.schemas import TrainRecipe
from vlalign.specs import Annotator
from vlalign.train.features import Locked, Reader
from vlalign.train.folder import writing
from vlalign.train.order import ordered
from vlalign.train.progress import Display
from vlalign.train.runtime import Runtime
from vlalign.train.together import together
from vlalign.types import RecipeError, Source, UserError

FILE = "annotations.safetensors"


class FrozenRows:
    """The rows of `data.train` as annotators see them; `annotations` so far, by the name of their field.

    Of a row that cannot be read, the features are zeros.
    """

    def __init__(
        self, recipe: TrainRecipe, source: Source, locked: Locked, device: torch.device, display: Display
    ) -> None:
        self.recipe, self.source, self.locked = recipe, source, locked
        self.device, self.display = device, display
        self.annotations: dict[str, Tensor] = {}
        self._last: tuple[tuple[str, str], Tensor] | None = None  # several annotators may read the same

    def __len__(self) -> int:
        return len(self.source)

    def features(self, side: Literal["image", "text"], model: str | None = None) -> Tensor:
        """Unit rows [N, D], float32. Raises RecipeError."""
        if model is not None:
            if self._last is None or self._last[0] != (side, model):
                self._last = (side, model), self._encoded(side, model)
            return self._last[1]
        known = self.locked.arguments.get(f"{side}_features")
        if known is None:
            raise RecipeError(
                f"data.annotate: {side} features of this run's own tower are asked for, and none are kept; "
                f"set model.{side}.lock: true and feature_cache: true{', and no augment' * (side == 'image')}"
                ", or name the model to take them from, a folder or Hub id"
            )
        return F.normalize(known.float(), dim=1) if side == "image" else mean(known.features, known.offsets)

    def _encoded(self, side: Literal["image", "text"], name: str) -> Tensor:
        """What a saved model makes of each row, by way of the cache of features."""
        reader = Reader(self.source, self.recipe.data.on_error == "raise")
        try:
            embedder = load(name, device=self.device, opening=reader.picture)
        except UserError as error:
            raise RecipeError(f"data.annotate: the model '{name}' cannot be used: {error}") from error
        if self.recipe.feature_cache:
            tower = embedder.model.tower(side)
            embedder.caches[side] = FeatureCache.of(tower, cache_folder() / "features")
        self.display.say(f"{side} features of {name}: {len(self):,} rows")
        if side == "text":
            captions, offsets = reader.captions()
            return mean(embedder.encode_text(captions), offsets)
        found = embedder.encode_image(range(len(self)))
        whole = torch.zeros(len(self), found.shape[1])
        whole[[index for index in range(len(self)) if index not in reader.bad]] = found
        return whole

    def field(self, name: str) -> Tensor:
        """Int64 [N]. Raises RecipeError."""
        if name in self.annotations:
            found = self.annotations[name]
            if found.is_floating_point() or found.ndim > 1:
                raise RecipeError(f"data.annotate.{name}: it is read as a label, and holds other numbers")
            return found
        labels = [
            hash63(name_of(self.source, index) if text is None else text)
            for index, text in enumerate(self.strings(name))
        ]
        return torch.tensor(labels)

    def strings(self, name: str) -> list[str | None]:
        """What is written in a field of each row, None of one that cannot be read. Raises RecipeError."""
        reader, found = Reader(self.source, self.recipe.data.on_error == "raise"), []
        for index in range(len(self)):
            fields = reader.fields(index)
            if fields and name not in fields:
                raise RecipeError(
                    f"data.annotate: the row '{fields['id']}' has no field '{name}', but "
                    f"{', '.join(fields)}; an annotation has to be written before one that reads it"
                )
            found.append(fields.get(name))
        return found

    def order(self) -> Order:
        """The rows of every step. Raises RecipeError when there can be none."""
        by = self.recipe.data.sampler.by
        labels = None if by is None else self.field(by).numpy()
        return ordered(self.recipe, len(self), labels, self.display)

    def virtual(self) -> VirtualFeatures | None:
        """What some pictures of rare classes become, where it is asked for. Raises UserError."""
        how = self.recipe.data.calibrate
        if how is None:
            return None
        known = self.locked.arguments
        made = VirtualFeatures.fit(known["image_features"], self.field(how.field), known["known_bad"], how)
        self.display.say(
            f"data.calibrate: {len(made.gaussians):,} '{how.field}' of fewer than {how.head:,} rows each"
        )
        return made


def annotate(
    recipe: TrainRecipe, source: Source, locked: Locked, out: Path, runtime: Runtime, display: Display
) -> FrozenRows:
    """The rows with each of `data.annotate`, the same in every process, and whenever a run goes on.

    The main process computes. What is one number a row it sends to the others, and keeps in the run's folder,
    where it reads it when the run goes on. What is a vector a row the others compute after it, of features
    that they find in the cache.
    """
    rows = FrozenRows(recipe, source, locked, runtime.device, display)
    if not recipe.data.annotate:
        return rows
    with together(runtime):
        kept = _kept(out / FILE, len(source), display) if runtime.main else {}
    for name, annotator in recipe.data.annotate.items():
        value: Any = kept.get(name)
        with together(runtime):
            if runtime.main and value is None:
                value = _values(name, annotator, rows)
        sent = runtime.gather(value if value is not None and value.ndim == 1 else None)[0]
        with together(runtime):
            if sent is None and not runtime.main:
                value = _values(name, annotator, rows)
        rows.annotations[name] = value if sent is None else sent
    with together(runtime), writing(out):
        if runtime.main:
            numbers = {name: x.contiguous() for name, x in rows.annotations.items() if x.ndim == 1}
            files.replace(out / FILE, lambda beside: save_file(numbers, beside))
    return rows


def mean(features: Tensor, offsets: Tensor) -> Tensor:
    """Means of units [N, W], made unit: of row i those from `offsets[i]` to `offsets[i + 1]` of [C, W]."""
    rows = torch.arange(len(offsets) - 1).repeat_interleave(offsets.diff())
    sums = torch.zeros(len(offsets) - 1, features.shape[1])
    return F.normalize(sums.index_add_(0, rows, F.normalize(features.float(), dim=1)), dim=1)


def _values(name: str, annotator: Annotator, rows: FrozenRows) -> Tensor:
    """What an annotator gives. Raises RecipeError where it is no field."""
    found = annotator(rows).detach().cpu()
    if len(found) != len(rows) or found.dtype not in (torch.int64, torch.float32):
        raise RecipeError(
            f"data.annotate.{name}: expected int64 or float32 for each of {len(rows)} rows, "
            f"got {found.dtype} of shape {tuple(found.shape)}"
        )
    return found


def _kept(path: Path, rows: int, display: Display) -> dict[str, Tensor]:
    """What the run has computed before, of as many rows. Raises UserError where it is damaged."""
    if not path.exists():
        return {}
    try:
        found: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: it is damaged ({error}); delete it, and it is computed again") from error
    if any(len(x) != rows for x in found.values()):
        display.say(f"{path}: it is of another number of rows, and computed again")
        return {}
    return found
