"""Two processes give the numbers of one, each from its own rows; one of them may have fewer, or none."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as torch_dist
from torch import Tensor

from tests.unit.ops.worlds import batch, embeddings, leaves
from vlalign.objectives.dcl import DCL
from vlalign.objectives.info_nce import InfoNCE
from vlalign.objectives.sigmoid import Sigmoid
from vlalign.ops.reductions import NEGATIVES, Expected, Max, Sum
from vlalign.supervision.selectors.false_negative import FalseNegative
from vlalign.supervision.targets.identity import Identity
from vlalign.tasks.align import Align
from vlalign.tasks.terms import Term
from vlalign.types import Embeddings
from vlalign.weighters.focal import Focal

ROWS = 12
CAPTIONS = [0, 1, 2, 3, 4, 5, 6, 1, 8, 9, 10, 2]  # some twice, on both ranks
SHARES = {"even": (6, 6), "uneven": (7, 5), "none": (12, 0)}


def gap(score: Tensor, target: Tensor, positive: Tensor) -> Tensor:
    return torch.nn.functional.softplus(score - positive)


@dataclass(frozen=True)
class Hinge:
    """Something given, on both sides, and a maximum."""

    reductions = {
        "positive": Expected(),
        "gap": Sum(gap, over=NEGATIVES, given=("positive",)),
        "best": Max(over=NEGATIVES),
    }

    def __call__(self, rows):
        return rows["gap"] + rows["best"] - rows["positive"]


@dataclass(frozen=True)
class Whole:
    """Reads whole rows."""

    reductions = {}

    def __call__(self, rows):
        dense = rows.dense()
        return ((dense.logits.cos() * ~dense.targets) * dense.mask).sum(1)


TASK = Align(
    targets=Identity(same=("caption",)),
    selectors=(FalseNegative(margin=0.3),),
    terms=(
        Term(
            objective=InfoNCE(label_smoothing=0.1),
            weighters=(Focal(gamma=2.0, normalized=True, detached=False),),
        ),
        Term(objective=DCL(sigma=0.5), scale=0.7),
        Term(objective=Sigmoid(), selectors=()),
        Term(objective=Hinge(), scale=0.3),
        Term(objective=Whole()),
    ),
)


def step(start: int, stop: int) -> dict[str, Tensor]:
    """Loss, and gradients of this share: of its own rows, and its part of scale and bias."""
    features = embeddings(ROWS, ROWS)
    mine = Embeddings(features.query[start:stop], features.key[start:stop], features.scale, features.bias)
    captions = CAPTIONS[start:stop]
    data = batch(range(start, stop), range(start, stop), caption=(captions, captions))
    loss = TASK.loss(mine, data, 0, 1).total
    slopes = torch.autograd.grad(loss, leaves(features))
    return {"loss": loss.detach()} | dict(zip(("query", "key", "scale", "bias"), slopes, strict=True))


def process(rank: int, shares: tuple[int, int], folder: str) -> None:
    torch.set_num_threads(1)
    torch_dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    start = sum(shares[:rank])
    torch.save(step(start, start + shares[rank]), f"{folder}/{rank}.pt")
    torch_dist.destroy_process_group()


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
def test_two_processes_equal_one(shares, tmp_path: Path):
    torch.multiprocessing.spawn(process, (shares, str(tmp_path)), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, reference in step(0, ROWS).items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], reference, atol=1e-12, rtol=1e-12)
