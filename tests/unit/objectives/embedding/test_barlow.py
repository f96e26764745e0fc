from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.unit.objectives.embedding.learned import (
    assert_alike,
    checked,
    context,
    in_bf16,
    slopes,
    with_head,
)
from vlalign.objectives.embedding.barlow import EPSILON, Barlow, standardised


def naive(query: Tensor, key: Tensor, redundancy: float, strength: float) -> Tensor:
    """One pair of dimensions at a time."""

    def standard(column: Tensor) -> Tensor:
        mean = sum(column) / len(column)
        variance = sum((x - mean) ** 2 for x in column) / len(column)
        return torch.stack([(x - mean) / (variance + EPSILON) ** 0.5 for x in column])

    queries, keys = ([standard(column) for column in side.T] for side in (query, key))
    loss = torch.zeros((), dtype=query.dtype)
    for d, a in enumerate(queries):
        for e, b in enumerate(keys):
            correlation = sum(x * y for x, y in zip(a, b, strict=True)) / len(a)
            loss = loss + ((correlation - 1) ** 2 if d == e else redundancy * correlation**2)
    return (strength * loss).repeat(len(query))


def orthogonal(rows: int = 8, width: int = 4) -> Tensor:
    """Columns of mean 0 and variance 1 that do not correlate."""
    signs = [[(-1) ** (row >> d & 1) for d in range(width - 1)] for row in range(rows)]
    product = torch.tensor(signs, dtype=torch.float64)
    return torch.cat([product, product.prod(1, keepdim=True)], 1)


@pytest.mark.parametrize("redundancy", [0.0, 0.3])
def test_equals_a_loop(redundancy):
    objective = Barlow(redundancy=redundancy, strength=0.5)
    features = with_head(objective, 6)
    assert features.extras == {}
    reference = naive(features.query, features.key, redundancy, 0.5)
    assert_alike(objective(features, context()), reference, features)


def test_equals_a_loop_through_projectors():
    objective = Barlow(redundancy=0.3, strength=0.5, widths=(5, 3))
    features = with_head(objective, 6)

    def project(rows: Tensor, side: str) -> Tensor:
        own = {name.removeprefix(f"{side}."): x for name, x in features.extras.items()}
        hidden = rows @ own["0.weight"].T
        hidden = (hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + 1e-5).sqrt()
        hidden = (hidden * own["1.weight"] + own["1.bias"]).relu()
        return hidden @ own["3.weight"].T + own["3.bias"]

    reference = naive(project(features.query, "query"), project(features.key, "key"), 0.3, 0.5)
    assert_alike(objective(features, context()), reference, features)


@pytest.mark.parametrize("widths", [(), (3,), (5, 3)])
def test_gradcheck(widths):
    objective = Barlow(redundancy=0.3, widths=widths)
    features = with_head(objective, 6)
    leaves = tuple(name for name in features.tensors() if name not in ("scale", "bias"))
    assert checked(objective, features, context(), leaves)


def test_is_zero_where_the_correlation_is_the_identity_and_only_there():
    rows = orthogonal()
    features = replace(with_head(Barlow(), 8), query=rows, key=rows)
    assert Barlow(redundancy=1.0)(features, context()).abs().max() < 1e-12
    for other in (
        -rows,
        rows.flip(1),
        rows @ torch.linalg.qr(torch.arange(16.0).reshape(4, 4).sin().double())[0],
    ):
        assert Barlow(redundancy=1.0)(replace(features, key=other), context()).min() > 1e-3


def test_without_redundancy_only_the_diagonal_counts():
    features = with_head(Barlow(), 6)
    correlation = standardised(features.query).T @ standardised(features.key) / 6
    diagonal = (correlation.diagonal() - 1).square().sum()
    loss = Barlow(redundancy=0.0, strength=1.0)(features, context())
    torch.testing.assert_close(loss, diagonal.repeat(6))
    assert (Barlow(redundancy=0.1, strength=1.0)(features, context()) > loss).all()


def test_negatives_beyond_the_own_keys_do_not_matter():
    features = with_head(Barlow(), 5, keys=9)
    own = replace(features, key=features.key[:5])
    torch.testing.assert_close(Barlow()(features, context()), Barlow()(own, context()))


def test_the_scale_of_a_dimension_does_not_matter():
    features = with_head(Barlow(), 6)
    moved = replace(features, query=features.query * torch.tensor([3, 1, 2, 9]).double() + 5)
    torch.testing.assert_close(
        Barlow()(moved, context()), Barlow()(features, context()), rtol=1e-5, atol=1e-7
    )


def test_a_constant_dimension_has_a_finite_gradient():
    features = with_head(Barlow(), 6)
    with torch.no_grad():
        features.query[:, 0] = 0.5
    loss = Barlow()(features, context())
    assert loss.isfinite().all() and all(x.isfinite().all() for x in slopes(loss.sum(), features).values())


def test_bf16():
    objective = Barlow(widths=(8, 6))
    features = with_head(objective, 32, width=8)
    loss = objective(in_bf16(features), context())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), objective(features, context()), rtol=0.05, atol=0.01)


def test_ranges():
    with pytest.raises(ValueError, match="redundancy must be >= 0, got -1"):
        Barlow(redundancy=-1.0)
    with pytest.raises(ValueError, match="strength must be > 0, got 0"):
        Barlow(strength=0.0)
    with pytest.raises(ValueError, match=r"widths must be >= 1, got \[8, 0\]"):
        Barlow(widths=(8, 0))
