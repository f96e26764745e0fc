"""A document -> a typed recipe, or one RecipeError with every mistake; and a typed recipe -> plain values."""

from collections.abc import Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from vlalign.files import replace
from vlalign.recipe.mistakes import tell, validate
from vlalign.recipe.read import Document, read
from vlalign.recipe.schemas import VERBS
from vlalign.registry import encode, suggestion
from vlalign.types import RecipeError


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
    verb = document.value.get("verb")
    schema = VERBS.get(verb) if isinstance(verb, str) else None
    if schema is None:
        hint = suggestion(str(verb), list(VERBS)) if verb else ""
        found = f"unknown verb '{verb}'.{hint}" if verb else "is missing."
        raise RecipeError(f"{document.mark(('verb',))}: verb: {found} Known: {', '.join(VERBS)}")
    recipe, mistakes = validate(document, schema)
    told = sorted(tell(document, schema, mistake) for mistake in mistakes)
    lines = [*document.mistakes, *(line for _, line in told)]
    if lines:
        head = f"{document.origin}: {len(lines)} mistake{'s' if len(lines) > 1 else ''}"
        raise RecipeError("\n".join([head, *(f"  {line}" for line in lines)]))
    return recipe


def write(recipe: Any, out: Path) -> None:
    """Write a typed recipe to `out/recipe.yaml`, atomically. Raises RecipeError where it cannot."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 110
    try:
        out.mkdir(parents=True, exist_ok=True)
        replace(out / "recipe.yaml", lambda path: yaml.dump(encode(recipe), path))
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
