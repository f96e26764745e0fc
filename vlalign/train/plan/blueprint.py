"""A recipe's model as a blueprint: shapes, names and what learns, without memory and without weights."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vlalign.recipe.schemas import TrainRecipe
from vlalign.train.model import build
from vlalign.train.plan.ledger import large, tensors


class Blueprint(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Large tensors get the device `meta`: a model is built in no time, without memory and weights."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operation."""
        given = dict(kwargs or {})
        inputs = tensors((args, given))
        if "device" in {argument.name for argument in func._schema.arguments} and (
            any(x.is_meta for x in inputs) or (not inputs and large(func, args, given))
        ):
            given["device"] = torch.device("meta")
        return func(*args, **given)


def blueprint(recipe: TrainRecipe) -> nn.Module:
    """The recipe's model without contents. Raises UserError where its config or tokenizer is not at hand."""
    bare = replace(recipe, model=_without_weights(recipe.model), init=None, compile=False)
    with Blueprint():  # type: ignore[no-untyped-call]
        model: nn.Module = build(bare)
    return model


def _without_weights(spec: Any) -> Any:
    """The same spec, told of no weights to load, in its towers too."""
    changes: dict[str, Any] = {}
    for field in fields(spec):
        value = getattr(spec, field.name)
        if field.name in ("pretrained", "weights") and value:
            changes[field.name] = False if value is True else None
        elif is_dataclass(value):
            changes[field.name] = _without_weights(value)
    return replace(spec, **changes)
