"""Weights, what learns them, and texts in parts: on two processes with unlike shares of rows as on one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as torch_dist
from torch import Tensor, nn
from torch.nn.functional import normalize

from tests.unit.ops.worlds import batch, embeddings
from vlalign.objectives.info_nce import InfoNCE
from vlalign.ops.ask import Ask
from vlalign.ops.dist import everyones_sum
from vlalign.ops.table import Table
from vlalign.ops.weighing import Weighing
from vlalign.supervision.targets.identity import Identity
from vlalign.tasks.align import Align
from vlalign.tasks.terms import Attributes, Term
from vlalign.train.meta import is_outer, teach
from vlalign.train.step import cached
from vlalign.types import Context, Embeddings
from vlalign.weighters.dynamic import Dynamic
from vlalign.weighters.storm import Storm
from vlalign.weighters.uncertainty import Uncertainty

ROWS, ETA, STEP = 12, 0.5, 3
SHARES = {"uneven": (8, 4), "none": (12, 0)}
WEIGHTERS = (Dynamic(temperature=0.3, warmup=0), Uncertainty(), Storm())
TASK = Align(
    targets=Identity(), terms=tuple(Term(objective=InfoNCE(), weighters=(each,)) for each in WEIGHTERS)
)


def learnt(module: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for p in module.double().parameters():
        nn.init.normal_(p, std=0.5)
    return module


class Towers(nn.Module):
    """Two linear towers, and Storm's head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key = nn.Linear(6, 4).double(), nn.Linear(6, 4).double()
        self.scale = nn.Parameter(torch.tensor([1.5], dtype=torch.float64))
        self.head = learnt(Storm().head(4))

    def forward(self, data) -> Embeddings:
        query, key = (normalize(getattr(self, side)(data[side]["x"]), dim=-1) for side in ("query", "key"))
        extras = {name: p.clone() for name, p in self.head.named_parameters()}
        return Embeddings(query, key, self.scale.exp(), 0 * self.scale, extras)


class Contrast:
    """InfoNCE of both directions, weighed by Storm."""

    def weighings(self, features, data, step, total) -> list[Weighing]:
        asks = [
            Ask(reductions=InfoNCE().reductions, side=side, targets=Identity()) for side in ("query", "key")
        ]
        every = []
        for ask, rows in zip(asks, Table(features, data, (3, 2)).rows(asks), strict=True):
            losses = torch.where(rows.valid, InfoNCE()(rows), 0)
            rates = Storm().rates(losses, Context(data, rows, step, total, features))
            every.append(Weighing(losses, rates, rows.valid, data[f"{ask.side}_fields"]["row"]))
        return every


class Processes:
    device = torch.device("cpu")

    def sum(self, values: Tensor) -> Tensor:
        return everyones_sum(values)


def inputs(start: int, stop: int) -> dict:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, ROWS, 6, generator=generator, dtype=torch.float64)[:, start:stop]
    return batch(range(start, stop), range(start, stop)) | {"query": {"x": x[0]}, "key": {"x": x[1]}}


def taught(start: int, stop: int) -> list[Tensor]:
    """What Storm's head learns from; this share of the rows in two chunks."""
    model, middle = Towers(), (start + stop) // 2
    chunks = [inputs(start, middle), inputs(middle, stop)]
    teach(
        Processes(), model, dict(model.head.named_parameters()), chunks,
        Contrast().weighings, cached, inner_lr=ETA, step=STEP, total=9,
    )  # fmt: skip
    return [p.grad for p in model.head.parameters()]


def weighed(start: int, stop: int) -> list[Tensor]:
    """The loss and its gradients: of this share of the rows, and its part of the heads'."""
    features, data = embeddings(ROWS, ROWS), batch(range(start, stop), range(start, stop))
    heads = {name: learnt(head) for name, head in TASK.heads(4).items()}
    extras = {f"{at}.{name}": p for at, head in heads.items() for name, p in head.named_parameters()}
    mine = replace(features, query=features.query[start:stop], key=features.key[start:stop], extras=extras)
    loss = TASK.loss(mine, data, STEP, 9).total
    slopes = torch.autograd.grad(
        loss, [features.query, features.key, *extras.values()], materialize_grads=True
    )
    return [loss.detach(), *slopes]


def joined(start: int, stop: int) -> list[Tensor]:
    """The loss and its gradients: of this share of the rows, with texts in parts, weighed by all pictures."""
    task = Align(
        targets=Identity(), terms=(Term(objective=InfoNCE()),), attributes=Attributes(most=2, temperature=0.5)
    )
    features, data = embeddings(ROWS, 3 * ROWS), batch(range(start, stop), range(start, stop))
    known = torch.arange(ROWS)[:, None] % 3 >= torch.arange(2)
    data["key_fields"]["known_texts"] = known[start:stop]
    mine = replace(features, query=features.query[start:stop], key=features.key[3 * start : 3 * stop])
    loss = task.loss(mine, data, STEP, 9).total
    return [loss.detach(), *torch.autograd.grad(loss, [features.query, features.key, features.scale])]


def process(rank: int, shares: tuple[int, int], folder: str) -> None:
    torch.set_num_threads(1)
    torch_dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    start = sum(shares[:rank])
    own = (start, start + shares[rank])
    torch.save((weighed(*own) + joined(*own), taught(*own)), f"{folder}/{rank}.pt")
    torch_dist.destroy_process_group()


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
def test_two_processes_equal_one(shares, tmp_path: Path):
    torch.multiprocessing.spawn(process, (shares, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for mine, other, wanted in zip(first[0], second[0], weighed(0, ROWS) + joined(0, ROWS), strict=True):
        torch.testing.assert_close(mine + other, wanted, atol=1e-12, rtol=1e-12)
    for mine, other, wanted in zip(first[1], second[1], taught(0, ROWS), strict=True):
        assert torch.equal(mine, other), "processes would part"
        assert wanted.abs().max() > 1e-6
        torch.testing.assert_close(mine, wanted, atol=1e-10, rtol=1e-8)


def test_what_storm_learns_from_the_table_is_the_gradient_through_a_whole_step():
    """Against a dense contrast, which has a second derivative."""
    model, data = Towers(), inputs(0, ROWS)
    outer = is_outer(data["query_fields"]["row"], STEP)
    rates = [each.rates for each in Contrast().weighings(model(data), data, STEP, 9)]

    def mean(parameters: dict[str, Tensor], half: Tensor) -> Tensor:
        features = torch.func.functional_call(model, parameters, (data,))
        logits = features.scale * features.query @ features.key.T
        directions = [table.logsumexp(1) - table.diagonal() for table in (logits, logits.T)]
        parts = [(w * own)[half].sum() / w[half].sum() for w, own in zip(rates, directions, strict=True)]
        return torch.stack(parts).mean()

    towers = {name: p for name, p in model.named_parameters() if "head" not in name}
    slopes = torch.autograd.grad(mean(towers, ~outer), list(towers.values()), create_graph=True)
    tried = {name: p - ETA * slope for (name, p), slope in zip(towers.items(), slopes, strict=True)}
    wanted = torch.autograd.grad(mean(tried, outer), list(model.head.parameters()))
    for mine, other in zip(taught(0, ROWS), wanted, strict=True):
        assert float((mine - other).norm() / other.norm()) < 1e-4
