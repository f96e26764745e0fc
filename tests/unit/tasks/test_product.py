"""Whatever is registered goes with all else, or is refused with a sentence when the recipe is read."""

from collections import Counter
from itertools import product

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.functional import normalize

from tests.methods import component, fields, makers
from vlalign.registry import (
    EMBEDDING_OBJECTIVES,
    MIXERS,
    OBJECTIVES,
    SELECTORS,
    TARGETS,
    TASKS,
    WEIGHTERS,
    Registry,
    encode,
)
from vlalign.tasks.align import Align
from vlalign.types import Embeddings

ROWS, WIDTH = 12, 16
REFUSED = (
    "cannot weigh the rows of",
    "make every pair positive, and",
    "has one total for both directions",
    "read numbers of a query's own candidates",
    "cannot take synthetic negatives",
)


def plain(registry: Registry, name: str) -> dict:
    """A component as a recipe has it."""
    return encode(component(registry, name), component=True)


def decoded(objective: str, targets: str, weighter: str, selector: str, mixer: str) -> Align:
    term: dict = {"objective": plain(OBJECTIVES, objective)}
    if weighter:
        term["weighters"] = [plain(WEIGHTERS, weighter)]
    if mixer:
        term["mixers"] = [plain(MIXERS, mixer)]
    recipe: dict = {"name": "align", "targets": plain(TARGETS, targets), "terms": [term]}
    if selector:
        made = makers(component(SELECTORS, selector))
        recipe["selectors"] = [plain(SELECTORS, selector)]
        recipe["embedding_terms"] = [{"objective": encode(each.objective, True)} for each in made]
    return TASKS.decode(recipe)


def two_steps(task: Align) -> list[float]:
    """Losses of two steps of descent on embeddings and heads."""
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(ROWS, WIDTH, generator=generator) for _ in range(2)]
    torch.manual_seed(0)
    heads = task.heads(WIDTH)
    shared = [torch.tensor([5.0]), torch.tensor([0.0])]
    learned: list[Tensor] = [*leaves, *shared]
    for each in learned:
        each.requires_grad_()
    extras = {f"{name}.{key}": p for name, head in heads.items() for key, p in head.named_parameters()}
    descent = torch.optim.SGD([*learned, *extras.values()], lr=0.01)
    own = fields(ROWS, WIDTH)
    batch = {"query_fields": own, "key_fields": own, "ids": [str(row) for row in range(ROWS)]}
    losses = []
    for step in (1, 2):
        query, key = (normalize(each, dim=-1) for each in leaves)
        batch["momentum"] = {"query": query.detach(), "key": key.detach()}
        loss = task.loss(Embeddings(query, key, *shared, extras), batch, step, 2).total / ROWS
        descent.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in learned if p.grad is not None], 1.0, error_if_nonfinite=True)
        descent.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("objective", OBJECTIVES.names())
def test_any_objective_with_any_targets_weighter_selector_and_mixer(objective):
    ways = [["", *registry.names()] for registry in (WEIGHTERS, SELECTORS, MIXERS)]
    outcomes = Counter[str]()
    for chosen in product(TARGETS.names(), *ways):
        try:
            task = decoded(objective, *chosen)
        except ValidationError as error:
            told = error.errors()[0]["msg"]
            assert any(sentence in told for sentence in REFUSED), (chosen, told)
            outcomes["refused"] += 1
            continue
        losses = two_steps(task)
        assert all(abs(loss) < 1e4 for loss in losses), (chosen, losses)
        outcomes["ran"] += 1
    assert outcomes["ran"] >= len(TARGETS.names()) - 2  # all but given, and those that leave no negatives
    if objective == "info_nce":  # goes with everything, but for mixers where there are no negatives to mix
        others, given = len(ways[0]) * len(ways[1]), len(ways[0])  # the last with own_candidates alone
        assert outcomes["refused"] == len(MIXERS.names()) * others + len(ways[2]) * (others - given)


@pytest.mark.parametrize("name", EMBEDDING_OBJECTIVES.names())
def test_any_embedding_objective_alone_and_beside_any_objective(name):
    companion = {"objective": plain(EMBEDDING_OBJECTIVES, name), "scale": 0.5}
    for objective in ("", *OBJECTIVES.names()):
        terms = [{"objective": plain(OBJECTIVES, objective)}] if objective else []
        task = TASKS.decode(
            {"name": "align", "targets": "identity", "terms": terms, "embedding_terms": [companion]}
        )
        losses = two_steps(task)
        assert all(abs(loss) < 1e4 for loss in losses), (objective, losses)
