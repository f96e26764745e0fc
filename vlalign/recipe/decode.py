"""A document -> a typed recipe, or one RecipeError with every mistake; and a typed recipe -> plain values."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

from vlalign.recipe.read import COMMAND_LINE, Document, Key, read
from vlalign.registry import Registry, UnknownName, encode, strict, suggestion
from vlalign.types import RecipeError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def load_recipe(path: str | Path, overrides: Sequence[str] = (), verb: str | None = None) -> Any:
    """The typed recipe of a file. `verb`: refuse a recipe of another verb. Raises RecipeError."""
    document = read(path, overrides)
    recipe = decode(document)
    if verb is not None and recipe.verb != verb:
        where = document.mark(("verb",))
        raise RecipeError(
            f"{where}: verb: this is a recipe for 'vlalign {recipe.verb}', not for 'vlalign {verb}'"
        )
    return recipe


def decode(document: Document) -> Any:
    """The typed recipe. Raises RecipeError with all mistakes, sorted by where they were written."""
    from pydantic import TypeAdapter, ValidationError
    from pydantic_core import to_json

    from vlalign.recipe.schemas import VERBS

    verb = document.value.get("verb")
    schema = VERBS.get(verb) if isinstance(verb, str) else None
    if schema is None:
        hint = suggestion(str(verb), list(VERBS)) if verb else ""
        found = f"unknown verb '{verb}'.{hint}" if verb else "is missing."
        raise RecipeError(f"{document.mark(('verb',))}: verb: {found} Known: {', '.join(VERBS)}")
    try:
        return TypeAdapter(strict(schema)).validate_json(to_json(document.value), strict=True)
    except ValidationError as error:
        details = error.errors()
        told = [_tell(document, schema, detail) for detail in details if not _meant(detail, details)]
    lines = [line for _, line in sorted(told)]
    head = f"{document.origin}: {len(lines)} mistake{'s' if len(lines) > 1 else ''}"
    raise RecipeError("\n".join([head, *(f"  {line}" for line in lines)]))


def _meant(detail: "ErrorDetails", details: Sequence["ErrorDetails"]) -> bool:
    """Whether a missing field was written under a misspelt name, which is the mistake that gets told."""
    if not detail["type"].startswith("missing"):
        return False
    *above, name = detail["loc"]
    beside = [
        str(other["loc"][-1]) for other in details if [*other["loc"][:-1]] == above and other is not detail
    ]
    unknown = [found for found in beside if found in detail["input"]]
    return any(suggestion(found, [str(name)]) for found in unknown)


def _tell(document: Document, schema: type, detail: "ErrorDetails") -> tuple[tuple[str, int], str]:
    """One mistake as a sentence, and its place for sorting."""
    key: Key = tuple(detail["loc"])
    kind, found = detail["type"], detail["input"]
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        owner = _owner(schema, key[:-1], document.value)
        known = [field.name for field in fields(owner)] if owner else []
        hint = suggestion(str(key[-1]), known) or f" It has: {', '.join(known) or 'none'}"
        said = f"{owner.__name__ if owner else 'it'} has no field '{key[-1]}'.{hint}"
    elif kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        said = "is missing"
    elif kind in ("value_error", "unknown_name", "no_name"):
        said = detail["msg"].removeprefix("Value error, ")
        field, _, rest = said.partition(" ")
        if (*key, field) in document.marks:  # a range check that begins with the name of its field
            key, said = (*key, field), rest
    elif kind.endswith(("_type", "_parsing")):
        wanted = kind.removesuffix("_type").removesuffix("_parsing").replace("dataclass", "map")
        said = f"expected {wanted}, got {found!r} ({type(found).__name__})"
    else:
        said = f"{detail['msg'][:1].lower()}{detail['msg'][1:]}, got {found!r}"
    mark = document.mark(key)
    file, _, line = mark.rpartition(":")
    place = (file, int(line)) if line.isdigit() else (mark, 0)
    path = ".".join(str(part) for part in key)
    return place, f"{mark}: {path}: {said}" if path else f"{mark}: {said}"


def _owner(schema: Any, key: Key, value: Any) -> Any:
    """The dataclass that a path leads to, found through the names that the document gives."""
    if get_origin(schema) is Annotated:
        registry = next((item for item in get_args(schema) if isinstance(item, Registry)), None)
        name = value if isinstance(value, str) else value.get("name") if isinstance(value, dict) else None
        if registry is None or not isinstance(name, str):
            return _owner(get_args(schema)[0], key, value)
        try:
            return _owner(registry.get(name), key, value)
        except UnknownName:
            return None
    if is_dataclass(schema):
        if not key:
            return schema
        hint = get_type_hints(schema, include_extras=True).get(str(key[0]))
        return _owner(hint, key[1:], value.get(key[0]) if isinstance(value, dict) else None)
    inner = [arg for arg in get_args(schema) if arg is not type(None) and arg is not Ellipsis]
    if not inner:
        return None
    if get_origin(schema) in (list, tuple) and key:
        return _owner(inner[0], key[1:], value[int(key[0])] if isinstance(value, list) else None)
    return next((owner for owner in (_owner(arg, key, value) for arg in inner) if owner), None)


def write(recipe: Any, out: Path) -> None:
    """Write a typed recipe to `out/recipe.yaml`, atomically. Raises RecipeError where it cannot."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 110
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=out, suffix=".yaml")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            yaml.dump(encode(recipe), file)
        Path(name).chmod(0o644)  # a temporary file is its owner's alone
        Path(name).replace(out / "recipe.yaml")
    except OSError as error:
        reason = error.strerror or str(error)
        raise RecipeError(f"out: '{out}' cannot be written: {reason}; name another folder") from None


def differences(a: Any, b: Any) -> list[tuple[str, Any, Any]]:
    """`(dotted path, value in a, value in b)` where two recipes differ; MISSING where one lacks the path."""
    flat_a, flat_b = _flatten(encode(a)), _flatten(encode(b))
    paths = list(dict.fromkeys([*flat_a, *flat_b]))
    pairs = [(path, flat_a.get(path, MISSING), flat_b.get(path, MISSING)) for path in paths]
    return [(path, left, right) for path, left, right in pairs if left != right]


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    items = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    )
    if items is None or not value:
        return {path: value}
    return {
        k: v
        for name, item in items
        for k, v in _flatten(item, f"{path}.{name}" if path else str(name)).items()
    }


__all__ = ["COMMAND_LINE", "decode", "differences", "encode", "load_recipe", "write"]
