"""Vision-language alignment and reranking, described by recipes. Public names are imported on use."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
_HOMES = {"load": "vlalign.infer.load", "load_recipe": "vlalign.recipe.decode", "Embeddings": "vlalign.types"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"vlalign has no '{name}'; it has {', '.join(sorted(_HOMES))}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*_HOMES, "__version__"])
