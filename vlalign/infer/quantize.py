"""A saved reranker in few bits, as a recipe says."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vlalign import files
from vlalign.data.hashing import hash63
from vlalign.models import packed, weights
from vlalign.models.caption_model import CaptionModel
from vlalign.models.layerwise import Layerwise
from vlalign.models.ranker import Ranker
from vlalign.models.rotation import rotate
from vlalign.models.watched import blocks, showing
from vlalign.ops.dist import own_device
from vlalign.ops.quantization import Quantized, gptq, round_to_nearest, token_weights, weighted_error
from vlalign.recipe.folder import claim, writing
from vlalign.recipe.quantization import QuantizeRecipe
from vlalign.registry import encode
from vlalign.types import BadRow, DataError, UserError

FILE = "quantization.json"  # in the model's folder, so that it travels with it
ELSEWHERE = ("verb", "out", "model", "data", "limits", "samples")  # of the recipe: what is not told there


def quantize(recipe: QuantizeRecipe, progress: Callable[[int], None] = lambda count: None) -> Path:
    """Write `out/{recipe.yaml, model/}`; returns `out`. What is there stays.

    `model/quantization.json` tells how it was made, and of which pairs. `progress` hears of layers that are
    done. Raises RecipeError where `out` is another recipe's, UserError, DataError where no row can be read.
    """
    out = claim(recipe)
    if finished(recipe):
        return out
    if find_spec("compressed_tensors") is None:
        raise UserError(
            "compressed-tensors is not installed, which packs weights; pip install 'vlalign[quantize]'"
        )
    model = plain(recipe.model)
    _refuse_groups(model, recipe.group)
    found, pairs, error = changed(model, recipe, progress)
    model.net.config.quantization_config = packed.config(
        model.net, found, recipe.bits, recipe.group, recipe.symmetric
    )
    own = {f"net.{name}": each for name, each in found.items()}
    with writing(out):
        weights.save(model, out / "model.new", packed.state(model.state_dict(), own, recipe.symmetric))
        told = {name: value for name, value in encode(recipe).items() if name not in ELSEWHERE}
        made = {**told, "layers": len(found), "error": error, "pairs": pairs}
        files.write_json(out / "model.new" / FILE, made)
        (out / "model.new").rename(out / "model")
        files.sync(out)
    return out


def finished(recipe: QuantizeRecipe) -> bool:
    """Whether the folder has all that a recipe asks for."""
    return (Path(recipe.out) / "model" / FILE).is_file()


def read(out: Path) -> dict[str, Any]:
    """How a finished model was made."""
    told: dict[str, Any] = json.loads((out / "model" / FILE).read_text(encoding="utf-8"))
    return told


def plain(name: str) -> Ranker:
    """A saved model that scores pairs, adapters added to its weights. Raises UserError."""
    model: Any = weights.opened(name, device=own_device())
    if not isinstance(model, Ranker) or isinstance(model, CaptionModel):
        raise UserError(f"model: {name} is no reranker, and nothing else is put into few bits")
    if model.adapters is None:
        return model
    merged, device = model.plain_state(model.state_dict()), model.device
    spec: Any = model.spec
    other: Ranker = replace(spec, lora=None).build()
    other.load_state_dict(other.own_state(merged))
    return other.to(device).eval()


class Changed(NamedTuple):
    """`layers`: what they are now, by name; `pairs`: names of those that were read. `error`: the share of the
    square of what the layers give, tokens weighted, that is lost, their mean; None where nothing was read.
    """

    layers: Mapping[str, Quantized]
    pairs: Sequence[str]
    error: float | None


def changed(
    model: Ranker, recipe: QuantizeRecipe, progress: Callable[[int], None] = lambda count: None
) -> Changed:
    """Turn a model where that is asked for, and put its layers into few bits, in place. Raises UserError."""
    how: dict[str, Any] = {"bits": recipe.bits, "group": recipe.group, "symmetric": recipe.symmetric}
    if odd := [name for name, each in _layers(model) if not each.weight.isfinite().all()]:
        raise UserError(
            f"model: weights of {odd[0]} are not finite, which no level stands for; train it again"
        )
    if recipe.rotate:
        rotate(model.net, recipe.seed)
    if recipe.method == "round":
        found = {name: round_to_nearest(each.weight.detach(), **how) for name, each in _layers(model)}
        for name, made in found.items():
            model.net.get_submodule(name).weight.data.copy_(made.weight)
        progress(len(blocks(model.net)))
        return Changed(found, [], None)
    errors = list[float]()

    def change(weight: Tensor, moments: Tensor) -> Quantized:
        made = gptq(weight, moments, damping=recipe.damping, act_order=recipe.act_order, **how)
        lost, whole = (weighted_error(each, moments) for each in (made.weight - weight, weight))
        errors.append(float(lost / whole) if whole > 0 else 0.0)
        return made

    model.process.share = False  # each text is read alone, and whole
    pairs = drawn(model, recipe)
    weigh = partial(token_weights, low=recipe.low, high=recipe.high, power=recipe.power)
    with showing(model.net, bool(getattr(recipe.importance, "attends", False))):
        layers = Layerwise(model, [*pairs.values()], recipe.importance, weigh)
        return Changed(layers.run(change, progress), [*pairs], fmean(errors))


def drawn(model: Ranker, recipe: QuantizeRecipe) -> dict[str, Any]:
    """`samples` pairs as the model reads them, by name, each of another row; fewer where rows are fewer.

    Raises DataError where none can be read.
    """
    assert recipe.data is not None  # gptq has rows
    source: Any = recipe.data.build(recipe.limits)
    random, found = torch.Generator().manual_seed(recipe.seed), dict[str, Any]()
    for place in torch.randperm(len(source), generator=random).tolist():
        if len(found) == recipe.samples:
            break
        try:
            row, (query, *items) = source.opened(place, recipe.limits)
            at = hash63(recipe.seed, row["id"]) % max(len(items), 1)
            for candidate, id in zip(items[at : at + 1], row["candidate_ids"][at : at + 1], strict=True):
                [found[f"{row['id']} {id}"]] = model.process.read(query, [candidate])
        except BadRow:
            continue
    if not found:
        raise DataError(
            f"data: none of the {len(source)} queries could be read; look at them with vlalign rerank"
        )
    return found


def _layers(model: Ranker) -> list[tuple[str, nn.Linear]]:
    """The Linear layers that are changed, by name."""
    inside = {part for block in blocks(model.net) for part in block.modules()}
    named = model.net.named_modules()
    return [(name, each) for name, each in named if each in inside and isinstance(each, nn.Linear)]


def _refuse_groups(model: Ranker, group: int | None) -> None:
    """Raises UserError where columns are left over."""
    for name, each in _layers(model):
        if each.in_features % (group or 1):
            raise UserError(
                f"group: {name} has {each.in_features} columns, which groups of {group} do not share; choose "
                "a divisor of all, or null for a scale a row"
            )
