"""`vlalign.json`: which spec built a saved model, in the words of a recipe."""

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from vlalign.models.pair import PairSpec
from vlalign.registry import MODELS, Registry, name_of
from vlalign.types import UserError

FILE, FORMAT = "vlalign.json", 1


def write(spec: PairSpec, folder: Path) -> None:
    """Write the manifest."""
    from vlalign import __version__

    told = {"format": FORMAT, "vlalign": __version__, "spec": words(spec, component=True)}
    (folder / FILE).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def read(folder: Path) -> PairSpec:
    """The spec of a saved folder. Raises UserError for a manifest that this version cannot read."""
    from pydantic import ValidationError
    from pydantic_core import PydanticCustomError

    path = folder / FILE
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        version, spec = told["format"], told["spec"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a manifest of vlalign: {error}") from error
    if version != FORMAT:
        raise UserError(
            f"{path}: its format is {version}, this version reads {FORMAT}; install a newer vlalign"
        )
    try:
        decoded: PairSpec = MODELS.decode(spec)
    except (ValidationError, PydanticCustomError) as error:
        raise UserError(f"{path}: its model cannot be built by this version: {error}") from error
    return decoded


def words(value: Any, component: bool = False) -> Any:
    """Plain values such that decoding them gives an equal component."""
    if is_dataclass(value) and not isinstance(value, type):
        hints = get_type_hints(type(value), include_extras=True)
        plain = {"name": name_of(type(value))} if component else {}
        slots = {field.name: _is_slot(hints[field.name]) for field in fields(value)}
        return plain | {name: words(getattr(value, name), slot) for name, slot in slots.items()}
    return [words(item, component) for item in value] if isinstance(value, (list, tuple)) else value


def _is_slot(hint: Any) -> bool:
    """Whether a field holds a component of a registry."""
    parts = get_args(hint)
    if get_origin(hint) is Annotated:
        return any(isinstance(part, Registry) for part in parts)
    return any(_is_slot(part) for part in parts)
