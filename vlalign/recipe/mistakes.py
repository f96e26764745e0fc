"""What is wrong with a document, each mistake with its place, in words for whoever wrote it."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from vlalign.recipe.read import Document, Key
from vlalign.registry import Registry, UnknownName, adapter, suggestion

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
MISSING = ("missing", "missing_argument", "missing_keyword_only_argument")


class Mistake(NamedTuple):
    """`key`: where in the document. `kind`: pydantic's word for it. `found`: what was written there."""

    key: Key
    kind: str
    said: str
    found: Any


def validate(document: Document, schema: type) -> tuple[Any, list[Mistake]]:
    """The typed recipe, or None and every mistake.

    A component with a wrong type has its ranges not checked, and a range check stops at the first. So what is
    known to be wrong is replaced, where something can stand in for it, until nothing new comes up.
    """
    from pydantic import ValidationError
    from pydantic_core import to_json

    value = deepcopy(document.value)
    told: dict[Key, Mistake] = {}
    while True:
        try:
            typed = adapter(schema).validate_json(to_json(value), strict=True)
            return (None if told else typed), list(told.values())
        except ValidationError as error:
            found = [each for each in _folded(value, error.errors()) if not _follows(each.key, told)]
        misspelt = [each for each in (*told.values(), *found) if each.kind in UNKNOWN]
        new = [each for each in found if each.key not in told and not _meant(each, misspelt)]
        told |= {each.key: each for each in new}
        if not any([_taken_out(value, schema, each) for each in new]):
            return None, list(told.values())


def _folded(value: Any, details: Sequence["ErrorDetails"]) -> Iterator[Mistake]:
    """pydantic's errors by their place in the document, the branches of a union in one."""
    by_key: dict[Key, list[ErrorDetails]] = {}
    for detail in details:
        by_key.setdefault(_place(value, detail), []).append(detail)
    for key, same in by_key.items():
        first = same[0]
        branch = len(first["loc"]) > len(key)  # another branch got further, and says more
        if branch and any(other[: len(key)] == key and other != key for other in by_key):
            continue
        if first["type"] in ("value_error", "unknown_name", "no_name"):
            said = first["msg"].removeprefix("Value error, ")
            field, _, rest = said.partition(" ")
            inside = _at(value, key)
            if (
                isinstance(inside, dict) and field in inside
            ):  # a range check that begins with its field's name
                yield Mistake((*key, field), "range", rest, inside[field])
            else:
                yield Mistake(key, first["type"], said, first["input"])
        elif first["type"].endswith(("_type", "_parsing")):
            words = [each["type"].removesuffix("_type").removesuffix("_parsing") for each in same]
            wanted = " or ".join(dict.fromkeys(word.replace("dataclass", "map") for word in words))
            found = first["input"]
            yield Mistake(key, "type", f"expected {wanted}, got {found!r} ({type(found).__name__})", found)
        else:
            said = f"{first['msg'][:1].lower()}{first['msg'][1:]}, got {first['input']!r}"
            yield Mistake(key, first["type"], said, first["input"])


def _place(value: Any, detail: "ErrorDetails") -> Key:
    """An error's path, less the names of branches of unions."""
    key: list[str | int] = []
    for index, part in enumerate(detail["loc"]):
        inside = isinstance(value, dict) and part in value
        if inside or (isinstance(value, list) and isinstance(part, int)):
            value = value[part]
            key.append(part)
        elif index == len(detail["loc"]) - 1 and detail["type"] in MISSING:
            key.append(part)
    return tuple(key)


def _at(value: Any, key: Key) -> Any:
    for part in key:
        value = value[part]
    return value


def _follows(key: Key, told: dict[Key, Mistake]) -> bool:
    """Whether it comes from having taken out what was told."""
    return any(key[: len(other)] == other for other in told)


def _meant(mistake: Mistake, misspelt: Sequence[Mistake]) -> bool:
    """Whether a missing field was written under a misspelt name, which is the mistake that gets told."""
    if mistake.kind not in MISSING:
        return False
    *above, name = mistake.key
    return any(
        [*other.key[:-1]] == above and suggestion(str(other.key[-1]), [str(name)]) for other in misspelt
    )


def _taken_out(value: Any, schema: type, mistake: Mistake) -> bool:
    """Let a field's default stand in, or 1 or "-" where it has none; items of lists stay where they are."""
    if not mistake.key or mistake.kind in (*MISSING, "unknown_name", "no_name", "value_error"):
        return False
    above, last = mistake.key[:-1], mistake.key[-1]
    holder, owner = _at(value, above), _owner(schema, above, value)
    if not isinstance(holder, dict) or last not in holder:
        return False
    required = {field.name for field in fields(owner) if field.default is NO_DEFAULT} if owner else set()
    if last in required:
        holder[last] = "-" if mistake.kind == "range" and isinstance(mistake.found, str) else 1
    else:
        del holder[last]
    return True


def tell(document: Document, schema: type, mistake: Mistake) -> tuple[tuple[str, int], str]:
    """A mistake as a line, and its place for sorting."""
    key, said = mistake.key, mistake.said
    if mistake.kind in UNKNOWN:
        owner = _owner(schema, key[:-1], document.value)
        known = [field.name for field in fields(owner)] if owner else []
        hint = suggestion(str(key[-1]), known) or f" It has: {', '.join(known) or 'none'}"
        said = f"{owner.__name__ if owner else 'it'} has no field '{key[-1]}'.{hint}"
    elif mistake.kind in MISSING:
        said = "is missing"
    mark = document.mark(key)
    file, _, line = mark.rpartition(":")
    place = (file, int(line)) if line.isdigit() else ("", 0)  # the command line before files
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
    if get_origin(schema) is Mapping and key:
        return _owner(get_args(schema)[1], key[1:], value.get(key[0]) if isinstance(value, dict) else None)
    inner = [arg for arg in get_args(schema) if arg is not type(None) and arg is not Ellipsis]
    if not inner:
        return None
    if get_origin(schema) in (list, tuple) and key:
        return _owner(inner[0], key[1:], value[int(key[0])] if isinstance(value, list) else None)
    return next((owner for owner in (_owner(arg, key, value) for arg in inner) if owner), None)
