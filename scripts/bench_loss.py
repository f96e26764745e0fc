"""Memory and time of the losses, forward and backward, against open_clip's, D = 512.

python scripts/bench_loss.py [--only NAME ...] [--repeats 5] [--json FILE]

Ours is the public task, as the training step calls it. That both sides give one loss and the same gradients
is checked before anything is measured.
"""

from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from measure import Bench, Prepare, Row, compared, curve, main, peak, row, seconds, weighed
from torch import Tensor
from torch.nn.functional import normalize

from vlalign.registry import OBJECTIVES, TASKS
from vlalign.types import Embeddings

WIDTH, SMALL, LARGE = 512, 512, 16_384
SIZES = (1024, 2048, 4096, 8192, 16_384)
CLIP, SIGLIP = "open_clip.loss.ClipLoss", "open_clip.loss.SigLipLoss"
ANCHOR = {"info_nce": CLIP, "sigmoid": SIGLIP}
WHOLE = ("groco", "info_nce")  # one sorts whole rows, and one has its own line


def leaves(rows: int, device: str) -> Embeddings:
    """Unit rows, half of each pair's direction in common; scale and bias as in the middle of a run."""
    draw = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, rows, WIDTH, generator=draw)
    query, key = normalize(query, dim=-1), normalize(query + key, dim=-1)
    scale, bias = torch.tensor([20.0]), torch.tensor([-10.0])
    return Embeddings(*(x.to(device).requires_grad_() for x in (query, key, scale, bias)))


def learned(features: Embeddings, loss: Callable[[], Tensor]) -> Callable[[], list[Tensor | None]]:
    """Forward and backward of a loss; gives the loss and the gradients."""

    def step() -> list[Tensor | None]:
        named = list(features.tensors().values())
        for leaf in named:
            leaf.grad = None
        value = loss()
        value.backward()
        return [value.detach(), *(leaf.grad for leaf in named)]

    return step


def ours(rows: int, *objectives: str, device: str = "cpu") -> Callable[[], list[Tensor | None]]:
    """A step of the task with these objectives."""
    features, ids = leaves(rows, device), torch.arange(rows, device=device)
    fields = {"row": ids}
    batch = {"query_fields": fields, "key_fields": fields, "ids": [str(row) for row in range(rows)]}
    terms = [{"objective": name} for name in objectives]
    task = TASKS.decode({"name": "align", "targets": "identity", "terms": terms})
    return learned(features, lambda: task.loss(features, batch, 0, 1).total / rows)


def theirs(rows: int, objective: str, *_: str, device: str = "cpu") -> Callable[[], list[Tensor | None]]:
    """A step of open_clip's loss of the first objective; ClipLoss has no bias."""
    from open_clip.loss import ClipLoss, SigLipLoss

    features = leaves(rows, device)
    if objective == "sigmoid":
        return learned(features, lambda: SigLipLoss()(*list(features.tensors().values())))
    return learned(features, lambda: ClipLoss()(features.query, features.key, features.scale))


def agree(objective: str) -> None:
    """Refuse to measure what differs. Raises AssertionError."""
    for mine, other in zip(ours(SMALL, objective)(), theirs(SMALL, objective)(), strict=True):
        if other is None:  # of a bias that the anchor does not have, the gradient is 0
            assert mine is not None
            other = torch.zeros_like(mine)
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def memory(objective: str, target: float, repeats: int) -> list[Row]:
    """Peak memory of a loss at 16k."""
    agree(objective)
    name = f"{objective} peak memory at 16k"
    return [
        weighed(
            name, ANCHOR[objective], ours, theirs, LARGE, objective,
            target=target, repeats=repeats, warm=(SMALL, objective),
        )
    ]  # fmt: skip


def reducing() -> list[str]:
    """The objectives that see no whole row, but for the one that has its own line."""
    return [name for name in OBJECTIVES.names() if name not in WHOLE and OBJECTIVES.get(name)().reductions]


def limit(objective: str, repeats: int) -> Row:
    """Peak memory at 32k, where the anchor would take 16 GiB."""
    costs = [peak(ours, 2 * LARGE, objective, warm=(SMALL, objective)) for _ in range(repeats)]
    bound = [300e6 / 2**20] * repeats
    return row(f"{objective} peak memory at 32k", "300 MB", costs, bound, target=1, unit="MiB")


def duration(name: str, objectives: tuple[str, ...], target: float | None, repeats: int) -> list[Row]:
    """Time at 16k of a pass with these objectives, over one anchor of the first."""
    agree(objectives[0])
    steps = ours(LARGE, *objectives), theirs(LARGE, objectives[0])
    return [compared(name, ANCHOR[objectives[0]], *steps, target=target, repeats=repeats, at_most=True)]


def scaling(repeats: int) -> list[Row]:
    """Time and memory against the batch size."""
    costs: dict[str, Callable[[Prepare, int], float]] = {
        "s": lambda side, rows: median(seconds(side(rows, "info_nce")) for _ in range(repeats)),
        "MiB": lambda side, rows: peak(side, rows, "info_nce", warm=(SMALL, "info_nce")),
    }
    return [
        curve(
            f"info_nce {what}",
            CLIP,
            partial(costs[unit], ours),
            partial(costs[unit], theirs),
            SIZES,
            unit=unit,
        )
        for what, unit in (("time", "s"), ("peak memory", "MiB"))
    ]


BENCHES: dict[str, Bench] = {
    "loss_memory": lambda repeats: [*memory("info_nce", 40, repeats), limit("info_nce", repeats)],
    "loss_time": lambda repeats: duration("info_nce time at 16k", ("info_nce",), 0.75, repeats),
    "three_objectives": lambda repeats: duration(
        "info_nce + dcl + sigmoid in one pass at 16k", ("info_nce", "dcl", "sigmoid"), 1.3, repeats
    ),
    "sigmoid_memory": lambda repeats: memory("sigmoid", 10, repeats),
    "sigmoid_time": lambda repeats: duration("sigmoid time at 16k", ("sigmoid",), None, repeats),
    "loss_scaling": scaling,
    "every_objective": lambda repeats: [limit(name, 1) for name in reducing()],
}

if __name__ == "__main__":
    main(BENCHES, __doc__)
