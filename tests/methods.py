"""Every registered way to align as a task, found by walking the registries: a new one comes by itself."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlalign.objectives.info_nce import InfoNCE
from vlalign.registry import (
    EMBEDDING_OBJECTIVES,
    MIXERS,
    OBJECTIVES,
    SELECTORS,
    TARGETS,
    WEIGHTERS,
    Registry,
)
from vlalign.supervision.targets.identity import Identity
from vlalign.tasks.align import Align
from vlalign.tasks.terms import EmbeddingTerm, Term

WIDTH = 6  # of frozen features
# Where the defaults are for large batches, or are flat or steep on a handful of random rows.
KNOBS: dict[str, dict[str, dict[str, Any]]] = {
    "objective": {
        "cprd": {"valid": 0.0},
        "cacr": {"t_plus": 5.0, "t_minus": 5.0, "alpha": 3.0, "beta": 3.0},
        "groco": {"hardest": 3},
        "mann_whitney": {"temperature": 0.1},
        "pairwise_logistic": {"temperature": 0.1},
    },
    "embedding objective": {
        "along": {"direction": "tests/direction.safetensors"},  # of 16 numbers
        "communal": {"communities": 3, "neighbours": 2},
        "self_training": {"threshold": 0.0},
        "sup_re_mix": {"field": "number", "window": 0.5},
        "swav": {"prototypes": 3, "freeze": 0},
    },
    "targets": {"graded": {"levels": ("category", "concept")}},
    "weighter": {"dynamic": {"warmup": 0, "temperature": 0.3}},
    "selector": {"near_duplicate": {"threshold": 0.5}, "same_label": {"field": "concept"}},
    "mixer": {"pair_mix": {"hardest": 3}, "list_mix": {"hardest": 3}},
}


def component(registry: Registry, name: str) -> Any:
    """One of them, with what suits a small batch."""
    return registry.get(name)(**KNOBS.get(registry.kind, {}).get(name, {}))


def task(**fields: Any) -> Align:
    """Plain contrast, unless told."""
    return Align(**({"targets": Identity(), "terms": (Term(objective=InfoNCE()),)} | fields))


def tasks() -> dict[str, Align]:
    """By kind and name. An objective of embeddings stands alone, all else beside plain contrast."""
    found: dict[str, Align] = {}
    for name in OBJECTIVES.names():
        found[name] = task(terms=(Term(objective=component(OBJECTIVES, name)),))
    for name in EMBEDDING_OBJECTIVES.names():
        alone = EmbeddingTerm(objective=component(EMBEDDING_OBJECTIVES, name))
        found[f"embedding-{name}"] = task(terms=(), embedding_terms=(alone,))
    for name in TARGETS.names():
        if getattr(TARGETS.get(name), "own", False):
            continue  # of candidates
        found[f"targets-{name}"] = task(targets=component(TARGETS, name))
    for name in WEIGHTERS.names():
        term = Term(objective=InfoNCE(), weighters=(component(WEIGHTERS, name),))
        found[f"weighter-{name}"] = task(terms=(term,))
    for name in MIXERS.names():
        found[f"mixer-{name}"] = task(terms=(Term(objective=InfoNCE(), mixers=(component(MIXERS, name),)),))
    for name in SELECTORS.names():
        found[f"selector-{name}"] = task(
            selectors=(component(SELECTORS, name),), embedding_terms=makers(component(SELECTORS, name))
        )
    return found


def makers(selector: Any) -> tuple[EmbeddingTerm, ...]:
    """The objectives of embeddings that make what a selector reads."""
    objectives = [component(EMBEDDING_OBJECTIVES, name) for name in EMBEDDING_OBJECTIVES.names()]
    return tuple(
        EmbeddingTerm(objective=each)
        for each in objectives
        if set(getattr(each, "makes", ())) & set(selector.fields)
    )


def fields(rows: int, dim: int) -> dict[str, Tensor]:
    """Of rows with embeddings of that width: labels, numbers, and what frozen encoders might have said."""
    row, generator = torch.arange(rows), torch.Generator().manual_seed(rows)
    features = {
        name: normalize(torch.randn(rows, width, generator=generator), dim=-1)
        for name, width in {"image_features": WIDTH, "text_features": WIDTH, "initial": dim}.items()
    }
    labels = {
        "row": row,
        "query": row - row % 4 // 3,  # every fourth a wrong candidate of the one before
        "caption": row,
        "concept": row // 2,
        "subclass": row // 2,
        "category": row // 4,
    }
    labels |= {"label": (row % 3 > 0).float()}
    return labels | features | {"number": row / rows, "spread": 1 + row / rows}
