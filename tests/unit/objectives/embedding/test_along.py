import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from tests.unit.objectives.embedding.learned import assert_alike, checked, context, in_bf16, slopes
from tests.unit.ops.worlds import embeddings
from vlalign.objectives.embedding.along import Along
from vlalign.ops.direction import Direction, write
from vlalign.types import UserError

SIDES = ("query", "key")
VECTOR = normalize(torch.tensor([0.9, -0.3, 0.2, 0.5]), dim=0)
TARGET, STEEPNESS = 0.4, 30.0


@pytest.fixture(params=[None, STEEPNESS], ids=["residual", "pair"])
def steepness(request):
    return request.param


@pytest.fixture
def along(tmp_path, steepness):
    return saved(tmp_path, steepness)


def saved(folder, steepness=None, **fields):
    write(Direction(VECTOR, TARGET, steepness), folder / "direction.safetensors")
    return Along(direction=str(folder / "direction.safetensors"), **fields)


def at(scores):
    """Unit rows of these scores, leaves of a step."""
    across = normalize(torch.tensor([0.3, 0.9, 0, 0], dtype=torch.float64), dim=0)
    vector = VECTOR.double()
    across = normalize(across - (across @ vector) * vector, dim=0)
    rows = torch.stack([s * vector + math.sqrt(1 - s * s) * across for s in scores])
    return replace(embeddings(len(scores), len(scores)), query=rows.requires_grad_())


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("keys", [6, 9])
def test_equals_a_loop(along, steepness, side, keys):
    features, target = embeddings(6, keys), float(torch.tensor(TARGET))
    rows = getattr(features, side)[:6]
    scores = [sum(x * v for x, v in zip(row, VECTOR.double(), strict=True)) for row in rows]
    each = [(s - target) ** 2 if steepness is None else 1 / (1 + torch.exp(steepness * s)) for s in scores]
    assert_alike(replace(along, side=side)(features, context()), torch.stack(each), features)


@pytest.mark.parametrize("side", SIDES)
def test_gradcheck(along, side):
    assert checked(replace(along, side=side), embeddings(4, 4), context(), SIDES)


def test_a_residual_is_zero_at_the_target_and_grows_on_both_sides(tmp_path):
    losses = saved(tmp_path)(at([-0.4, 0.0, 0.2, TARGET, 0.6, 0.8, 1.0]), context()).tolist()
    assert losses[3] == pytest.approx(0, abs=1e-12)
    assert losses[:4] == sorted(losses[:4], reverse=True) and losses[3:] == sorted(losses[3:])


def test_its_gradient_is_along_the_direction_by_what_is_missing(tmp_path):
    features = at([-0.3, 0.1, 0.9])
    slope = slopes(saved(tmp_path)(features, context()).sum(), features)["query"]
    missing = torch.tensor([-0.3, 0.1, 0.9], dtype=torch.float64) - torch.tensor(TARGET).double()
    torch.testing.assert_close(slope, 2 * missing[:, None] * VECTOR.double(), atol=1e-7, rtol=1e-6)


def test_a_pair_is_the_probability_of_its_negative_pole(tmp_path):
    poles = normalize(torch.randn(2, 4, generator=torch.Generator().manual_seed(0)), dim=1).double()
    moved = poles[0] - poles[1]
    told = Direction(normalize(moved, dim=0).float(), 0.0, float(100 * moved.norm()))
    write(told, tmp_path / "direction.safetensors")
    features = embeddings(9, 9)
    loss = Along(direction=str(tmp_path / "direction.safetensors"))(features, context())
    wanted = (100 * features.query @ poles.flip(0).T).softmax(1)[:, 0]
    torch.testing.assert_close(loss, wanted, atol=1e-5, rtol=1e-4)
    losses = saved(tmp_path, STEEPNESS)(at([-0.9, 0.0, TARGET, 0.9]), context()).tolist()
    assert losses == sorted(losses, reverse=True) and losses[-1] > 0 and losses[0] < 1


@pytest.mark.parametrize(("side", "other"), [SIDES, SIDES[::-1]])
def test_the_other_side_learns_nothing(along, side, other):
    features = embeddings(6, 6)
    found = slopes(replace(along, side=side)(features, context()).sum(), features)
    assert found[other].eq(0).all() and found[side].ne(0).any()


def test_permuting_rows_permutes_losses(along):
    features, order = embeddings(6, 6), torch.tensor([3, 1, 5, 0, 2, 4])
    moved = along(replace(features, query=features.query[order]), context())
    torch.testing.assert_close(moved, along(features, context())[order])


def test_bf16(along):
    features = embeddings(16, 16)
    loss = along(in_bf16(features), context())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), along(features, context()), rtol=0.05, atol=0.05)


def test_embeddings_of_another_width_and_a_missing_file_are_told(along):
    with pytest.raises(UserError, match="embeddings have 5 numbers and .* has 4; name a direction that was"):
        along(embeddings(3, 3, width=5), context())
    with pytest.raises(UserError, match="nowhere: this is no direction that `vlalign direction` wrote"):
        Along(direction="nowhere")(embeddings(3, 3), context())
