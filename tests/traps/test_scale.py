"""The scale and what it does to numbers: clamped, and never too large for a sum of exponentials."""

import math
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, normalize, one_hot

from tests.traps.cases import OBJECTIVES, task
from tests.traps.two_processes import sharp
from tests.unit.ops.worlds import Graded, batch, embeddings, losses_of
from vlalign.evals.report.log import read_lines
from vlalign.objectives.info_nce import InfoNCE
from vlalign.supervision.targets.identity import Identity
from vlalign.train.loop import train
from vlalign.types import Embeddings


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "zero2"])
def test_08_scale_is_clamped_after_the_step(resumed, how):
    """A scale that is clamped before the step, or in one of its two copies, goes on rising above 100: here it
    never does, also where DeepSpeed keeps a copy of its own and when a run goes on."""
    out = resumed / ("sharp" if how == "ddp" else "sharp_zero2")
    if how == "ddp":
        shutil.copytree(out, resumed / "sharp_cut")
        for name in ("model", "step_00000008"):
            shutil.rmtree(resumed / "sharp_cut" / name)
        train(sharp(resumed, "sharp_cut"))
        kept = load_file(out / "step_00000004" / "model.safetensors")
        assert float(kept["scale"]) == pytest.approx(math.log(100), abs=1e-6)
    for folder in (out, resumed / ("sharp_cut" if how == "ddp" else "sharp_zero2_whole")):
        lines = [line for line in read_lines(folder / "log.jsonl") if "loss" in line]
        scales = [line["scale"] for line in lines]
        assert len(lines) == 8 and scales[0] < 99.9 and scales[1:4] == pytest.approx([100.0] * 3, abs=1e-4)
        assert all(-line["loss"] < 100.001 for line in lines[:4])  # so no forward met a larger one
        assert scales[4] < 99 and scales[4:] == sorted(scales[4:], reverse=True)  # at once: none was kept


def test_09_low_precision_features():
    """A log-sum-exp in bf16 keeps two digits of a logit of 100: here features in bf16 give the loss that
    float64 gives of the same features, within 0.001, under autocast too."""
    generator = torch.Generator().manual_seed(0)
    key = normalize(torch.randn(600, 64, generator=generator), dim=1)
    query = normalize(key + 0.3 * torch.randn(600, 64, generator=generator), dim=1)
    low = [side.bfloat16() for side in (query, key)]
    data, scale = batch(range(600), range(600)), torch.tensor([100.0])
    features = Embeddings(low[0], low[1], scale, torch.zeros(1))
    logits = 100 * low[0].double() @ low[1].double().T
    labels = torch.arange(600)
    wanted = float(cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
    for lowered in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
            loss = task(InfoNCE()).loss(features, data, 1, 1).total
        assert loss.dtype == torch.float32 and wanted > 0.1
        assert abs(float(loss) / 600 - wanted) < 1e-3


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", ["identical", "orthogonal", "crowded"])
def test_10_degenerate_features(kind, objective):
    """exp(100) is infinite in float32, and a row of equal scores divides by it: here thousands of identical
    or orthogonal rows at a scale of 100 have a finite loss, the right one, and finite gradients."""
    count, width = 4096, 64
    places = torch.arange(count) % width if kind == "crowded" else torch.zeros(count, dtype=torch.int64)
    query = one_hot(places, width).float()
    key = query.roll(1, dims=1) if kind == "orthogonal" else query.clone()
    features = Embeddings(*(x.requires_grad_() for x in (query, key, torch.tensor([100.0]), torch.zeros(1))))
    loss = task(OBJECTIVES[objective]).loss(features, batch(range(count), range(count)), 1, 1).total / count
    slopes = torch.autograd.grad(loss, (features.query, features.key, features.scale, features.bias))
    assert all(slope.isfinite().all() for slope in slopes)
    tied = count // width if kind == "crowded" else count  # keys at the height of a query's own
    level = 0.0 if kind == "orthogonal" else 100.0
    wanted = {
        "info_nce": math.log(tied),
        "dcl": math.log(tied - 1),
        "sigmoid": math.log1p(math.exp(-level))  # of the own key; then of its equals, and of the others
        + (tied - 1) * (level + math.log1p(math.exp(-level)))
        + (count - tied) * math.log(2),
    }
    assert loss.item() == pytest.approx(wanted[objective], rel=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("side", ["query", "key"])
@pytest.mark.parametrize("shape", [(7, 7), (5, 8), (8, 5), (1, 1), (1, 4)], ids=str)
def test_11_shapes_that_no_tile_divides(shape, side, objective):
    """The rest of a tile is dropped or counted twice elsewhere: here every shape, one row included, has the
    gradient that finite differences give in float64, and one value whatever the tile."""
    one, data = OBJECTIVES[objective], batch(range(shape[0]), range(shape[1]))

    def losses(tile, targets):
        def of(*tensors):
            return losses_of(one, Embeddings(*tensors), data, targets, side, tile=tile)

        return of

    features = embeddings(*shape)
    tensors = (features.query, features.key, features.scale, features.bias)
    for targets in (Identity(), Graded()):
        whole = losses((16, 16), targets)(*tensors)
        for tile in ((3, 2), (2, 5), (1, 1)):
            torch.testing.assert_close(losses(tile, targets)(*tensors), whole, rtol=0, atol=1e-12)
        assert torch.autograd.gradcheck(losses((3, 2), targets), tensors)
