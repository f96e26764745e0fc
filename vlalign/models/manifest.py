"""`vlalign.json`: which spec built a saved model, in the words of a recipe."""

import json
from pathlib import Path

from vlalign.models.pair import PairSpec
from vlalign.registry import MODELS, encode
from vlalign.types import UserError

FILE, FORMAT = "vlalign.json", 1


def write(spec: PairSpec, folder: Path) -> None:
    """Write the manifest."""
    from vlalign import __version__

    told = {"format": FORMAT, "vlalign": __version__, "spec": encode(spec, component=True)}
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
