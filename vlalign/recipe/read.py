"""YAML, `extends` and overrides -> one plain document that knows where each value was written."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from vlalign.types import RecipeError

Key = tuple[str | int, ...]  # a path into a document: ("task", "terms", 0)
COMMAND_LINE = "command line"


@dataclass
class Document:
    """A recipe before it is typed. `marks` tell where a path was written: `file:line` or `command line`.

    `mistakes`: overrides that could not be applied.
    """

    origin: str
    value: Any
    marks: dict[Key, str] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)

    def mark(self, key: Key) -> str:
        """Where the path was written, or the nearest part of it that was."""
        while key and key not in self.marks:
            key = key[:-1]
        return self.marks.get(key, self.origin)

    def place(self, key: Key, value: Any, marks: dict[Key, str]) -> None:
        """Merge a value into the document at a path; its marks replace those of what it replaces."""
        holder: Any = self.value
        for part in key[:-1]:
            holder = holder[part]
        last: Any = key[-1]
        old = holder[last] if isinstance(holder, list) or last in holder else None
        if isinstance(old, dict) and isinstance(value, dict) and not _renames(old, value):
            self.marks[key] = marks.get(key, self.mark(key))
            for name, item in value.items():
                self.place((*key, name), item, marks)
            return
        if isinstance(old, dict) and set(old) >= {"name"} and isinstance(value, str) and old["name"] == value:
            return  # the short form of the component that is there already: its fields stay
        holder[last] = value
        self.marks = {path: mark for path, mark in self.marks.items() if path[: len(key)] != key}
        self.marks |= {path: mark for path, mark in marks.items() if path[: len(key)] == key}


def _renames(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Another component: the fields of the parent's do not belong to it."""
    return "name" in new and "name" in old and new["name"] != old["name"]


def read(path: str | Path, overrides: Sequence[str] = ()) -> Document:
    """A recipe file, its parents merged under it, `dotted.path=yaml` overrides on top. Raises RecipeError."""
    document = _read_file(Path(path), ())
    for override in overrides:
        try:
            _override(document, override)
        except RecipeError as error:
            document.mistakes.append(str(error))
    return document


def _read_file(path: Path, children: tuple[Path, ...]) -> Document:
    if path.resolve() in children:
        raise RecipeError(f"{path}: extends itself through {' -> '.join(str(child) for child in children)}")
    try:
        tree = _parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: there is no such recipe") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{path}:{line}: this is not YAML: {error.problem}") from None
    except YAMLError as error:
        raise RecipeError(f"{path}: this is not YAML: {error}") from None
    if not isinstance(tree, CommentedMap):
        found = "a list" if isinstance(tree, list) else "nothing" if tree is None else repr(tree)[:80]
        raise RecipeError(f"{path}: expected a map of fields, got {found}")
    marks: dict[Key, str] = {}
    own = _plain(tree, (), str(path), marks)
    parent = own.pop("extends", None)
    if parent is None:
        return Document(str(path), own, marks)
    if not isinstance(parent, str):
        raise RecipeError(f"{marks[('extends',)]}: extends: expected a path, got {parent!r}")
    above = path.parent / parent
    if not above.is_file():
        raise RecipeError(f"{marks[('extends',)]}: extends: there is no {above}")
    document = _read_file(above, (*children, path.resolve()))
    document.origin = str(path)
    for name, value in own.items():
        document.place((name,), value, marks)
    return document


@lru_cache(maxsize=1024)
def _parsed(text: str) -> Any:
    """Not to be changed: a pipeline reads the same recipes many times."""
    return YAML().load(text)


def _plain(node: Any, key: Key, origin: str, marks: dict[Key, str]) -> Any:
    """Plain dicts, lists and scalars, noting the line of each. Tags, which name other types, are refused."""
    tag = getattr(getattr(node, "tag", None), "value", None)
    if tag is not None:
        where = f"{origin}: {'.'.join(map(str, key))}" if key else origin
        raise RecipeError(f"{where}: the tag '{tag}' is not allowed; write plain values")
    if isinstance(node, CommentedMap | CommentedSeq):
        lines = node.lc.data or {}
        parts = {str(name): item for name, item in node.items()} if isinstance(node, CommentedMap) else node
        for name, place in lines.items():
            marks[(*key, name if isinstance(node, CommentedSeq) else str(name))] = f"{origin}:{place[0] + 1}"
        if isinstance(parts, dict):
            return {name: _plain(item, (*key, name), origin, marks) for name, item in parts.items()}
        return [_plain(item, (*key, index), origin, marks) for index, item in enumerate(parts)]
    for kind in (bool, int, float):  # ruamel's scalars are subclasses that remember their spelling
        if isinstance(node, kind):
            return kind(node)
    if isinstance(node, str):  # YAML reads a letter that JSON writes as two surrogates as two letters
        return str(node).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return node if node is None else str(node)


def _override(document: Document, text: str) -> None:
    name, equals, written = text.partition("=")
    if not equals or not name:
        raise RecipeError(f"{COMMAND_LINE}: '{text}' is no override; write dotted.path=value")
    try:
        value = _plain(_parsed(written) if written else "", (), COMMAND_LINE, {})
    except YAMLError:
        raise RecipeError(f"{COMMAND_LINE}: {name}: '{written}' is not YAML") from None
    key = tuple(int(part) if part.isdigit() else part for part in name.split("."))
    holder = document.value
    for depth, part in enumerate(key[:-1]):
        if isinstance(holder, dict) and part not in holder and isinstance(part, str):
            document.place(key[: depth + 1], {}, {key[: depth + 1]: COMMAND_LINE})
        if isinstance(holder, dict) and isinstance(holder.get(part), str):
            document.place(
                key[: depth + 1], {"name": holder[part]}, {}
            )  # `identity` is short for {name: identity}
        holder = _step(holder, part, name)
    _step(holder, key[-1], name, new=isinstance(holder, dict))
    marks = {key: COMMAND_LINE} | {(*key, *path): COMMAND_LINE for path in _paths(value)}
    document.place(key, value, marks)


def _step(holder: Any, part: str | int, name: str, new: bool = False) -> Any:
    """One step down a path; `new`: a map may not have the last part yet."""
    if isinstance(holder, list) and isinstance(part, int) and part < len(holder):
        return holder[part]
    if isinstance(holder, dict) and (new or part in holder):
        return holder.get(part)
    what = f"a list of {len(holder)}" if isinstance(holder, list) else f"{holder!r}, which has no parts"
    raise RecipeError(f"{COMMAND_LINE}: {name}: there is no '{part}' here, it is {what}")


def _paths(value: Any, key: Key = ()) -> list[Key]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for name, item in items for path in [(*key, name), *_paths(item, (*key, name))]]
