"""`vlalign.json`: which spec built a saved model, in the words of a recipe."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlalign import files
from vlalign.models.pair import PairSpec
from vlalign.models.ranker import RankerSpec
from vlalign.registry import MODELS, OUTSIDE, encode
from vlalign.types import UserError

FILE, FORMAT = "vlalign.json", 1
# Fields that hold paths and ids; elsewhere a colon names code.
REFERENCES = ("id", "pretrained", "weights", "language", "encoder")


def write(spec: PairSpec | RankerSpec, folder: Path, base: Mapping[str, str] | None = None) -> None:
    """Write the manifest. Of this machine's paths only the last part is told. `base`: of what it is made."""
    from vlalign import __version__

    told = _portable(encode(spec, component=True))
    made = {"base": dict(base)} if base else {}
    files.write_json(folder / FILE, {"format": FORMAT, "vlalign": __version__, "spec": told, **made})


def read(folder: Path, trust_remote_code: bool = False) -> PairSpec | RankerSpec:
    """The spec of a saved folder.

    Raises UserError for a manifest that this version cannot read, and for components named `module:Class`,
    which reading would import, unless their code is trusted.
    """
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
    if not trust_remote_code and (name := next(_code(spec), None)) is not None:
        raise UserError(
            f"{path}: it names '{name}', which loading would import; "
            "pass trust_remote_code=True if you trust that code"
        )
    try:
        decoded: PairSpec | RankerSpec = MODELS.decode(spec)
    except (ValidationError, PydanticCustomError) as error:
        raise UserError(f"{path}: its model cannot be built by this version: {error}") from error
    return decoded


def reads(folder: Path) -> str | None:
    """What a saved folder's model is for, `pairs`, `candidates` or `captions`; None where it is not known."""
    found = _kind(folder)
    return None if found is None else str(getattr(found, "reads", "pairs"))


def whole(folder: Path) -> bool:
    """Whether what embeds there is a network of transformers as it comes, which its own spec has to read."""
    return bool(getattr(_kind(folder), "whole", False))


def _kind(folder: Path) -> Any:
    """The class of the spec that built a saved folder's model, None where it is not known."""
    try:
        name = json.loads((folder / FILE).read_text(encoding="utf-8"))["spec"]["name"]
        return MODELS.get(name) if ":" not in name else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _portable(value: Any, field: str = "") -> Any:
    """The same plain values, absolute paths cut to their last part."""
    if isinstance(value, dict):
        return {key: _portable(item, key) for key, item in value.items()}
    if field in REFERENCES and isinstance(value, str):
        scheme, colon, path = value.rpartition(":")
        return f"{scheme}{colon}{Path(path).name}" if Path(path).is_absolute() else value
    return value


def _code(value: Any, field: str = "") -> Iterator[str]:
    """Strings that a registry would take for `module:Class`, wherever they stand."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _code(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from _code(item)
    elif isinstance(value, str) and OUTSIDE.fullmatch(value) and field not in REFERENCES:
        yield value
