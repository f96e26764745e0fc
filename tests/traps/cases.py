"""Steps of a small model of open_clip, to be taken on one process or on two, and what came out of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.functional import normalize

from tests.unit.models.conftest import open_clip_folder
from vlalign.models.encoders.open_clip import OpenClip
from vlalign.models.lock import Lock
from vlalign.models.lora import Lora
from vlalign.models.pair import Bias, Scale
from vlalign.models.tower import Adaptation
from vlalign.objectives.dcl import DCL
from vlalign.objectives.info_nce import InfoNCE
from vlalign.objectives.sigmoid import Sigmoid
from vlalign.supervision.targets.identity import Identity
from vlalign.tasks.align import Align
from vlalign.tasks.terms import Term
from vlalign.train.optimizers.adamw import AdamW
from vlalign.train.runtime import Runtime
from vlalign.train.seeds import seed_step
from vlalign.train.step import Backward, cached, merge, separable
from vlalign.types import Batch, Embeddings, Loss, Objective, Rows

VOCABULARY, LENGTH = 64, 12
VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": VISION,
    "text_cfg": {"context_length": LENGTH, "vocab_size": VOCABULARY, "width": 32, "heads": 2, "layers": 2},
}
PATCHES_DROPPED = CONFIG | {"vision_cfg": VISION | {"patch_dropout": 0.5}}
LOCKED = {"image": Adaptation(lock=Lock(unlocked_groups=2)), "text": Adaptation(lora=Lora(rank=2))}
DROPPED = {"text": Adaptation(lora=Lora(rank=2, dropout=0.3))}
OBJECTIVES = {"info_nce": InfoNCE(), "sigmoid": Sigmoid(), "dcl": DCL()}
CAPTIONS = torch.tensor([0, 1, 2, 3, 2, 5, 6, 1, 8, 5, 10, 11])  # twice on one rank (2), on both (1, 5)
Results = dict[str, dict[str, Tensor]]


def task(*objectives: Objective) -> Align:
    return Align(targets=Identity(), terms=tuple(Term(objective=each) for each in objectives))


@dataclass(frozen=True)
class Cosines:
    """A softmax of cosines alone: neither scale nor bias is anywhere in its graph."""

    reductions = {}

    def __call__(self, rows: Rows) -> Tensor:
        dense = rows.dense()
        sharp = 10 * dense.cosines
        return sharp.logsumexp(1) - (sharp * dense.targets).sum(1)


ALL = task(*OBJECTIVES.values())


@dataclass(frozen=True)
class Case:
    """`chunks`: rows of each chunk, by rank. `hard`: even rows bring a hard negative."""

    task: Align
    chunks: tuple[Sequence[int], Sequence[int]]
    backward: Backward = cached
    hard: bool = False
    adapted: bool = False  # locked, with adapters, and on two processes with checkpointed activations


@dataclass(frozen=True, kw_only=True)
class Sharpens:
    """Until a step it wants a larger scale, its loss is minus the scale; from then on a smaller one."""

    until: int

    coupled = False

    def rows(self, batch: Batch) -> int:
        return len(batch["ids"])

    def loss(self, features: Embeddings, batch: Batch, step: int, total: int) -> Loss:
        unread = 0 * (features.query.sum() + features.key.sum())
        sign = -1 if step <= self.until else 1
        return Loss(unread + sign * features.scale.sum() * self.rows(batch), {})


CASES = {
    **{f"direct_{name}": Case(task(each), ([16], [16]), separable) for name, each in OBJECTIVES.items()},
    **{f"cached_{name}": Case(task(each), ([4] * 4, [4] * 4)) for name, each in OBJECTIVES.items()},
    **{f"chunks_{k}": Case(ALL, ([16 // k] * k, [16 // k] * k)) for k in (1, 2, 4, 8)},
    "uneven_direct": Case(ALL, ([7], [5]), separable),
    "uneven_cached": Case(ALL, ([3, 2], [4, 3])),
    "hard_direct": Case(task(InfoNCE()), ([7], [6]), separable, hard=True),
    "hard_cached": Case(task(InfoNCE()), ([4, 3], [2, 4]), hard=True),
    "adapted_direct": Case(ALL, ([8], [8]), separable, adapted=True),
    "adapted_cached": Case(ALL, ([4, 4], [4, 4]), adapted=True),
    "unread_direct": Case(task(Cosines()), ([8], [8]), separable),
    "unread_cached": Case(task(Cosines()), ([4, 4], [4, 4])),
}


def prepare(folder: Path) -> None:
    """The configs that models are built from."""
    open_clip_folder(folder / "plain", CONFIG)
    open_clip_folder(folder / "dropped", PATCHES_DROPPED)


def build(folder: Path, kind: str = "plain", **adaptations: Adaptation) -> Any:
    """The same weights each time; adapters that are not at zero, where half of their gradients vanish."""
    torch.manual_seed(0)
    scale, bias = Scale(init=10.0), Bias(init=-2.0, learn=True)
    model = OpenClip(id=f"local-dir:{folder / kind}", scale=scale, bias=bias, **adaptations).build()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def pairs(rows: Sequence[int], hard: bool = False) -> Batch:
    """Rows of an endless random data set; hard negatives come after all positives."""

    def row(index: int) -> tuple[Tensor, Tensor]:
        own = torch.Generator().manual_seed(index)
        words = torch.randint(1, VOCABULARY - 1, (LENGTH,), generator=own)
        words[-1] = VOCABULARY - 1  # the end of text, which the tower reads
        return torch.randn(3, 32, 32, generator=own), words

    keys = [*rows, *(1000 + index for index in rows if hard and index % 2 == 0)]
    return {
        "query": {"pixels": torch.stack([row(index)[0] for index in rows])},
        "key": {"input_ids": torch.stack([row(index)[1] for index in keys])},
        "query_fields": {"row": torch.tensor(rows)},
        "key_fields": {"row": torch.tensor(keys)},
        "ids": [f"row{index}" for index in rows],
    }


def chunks(case: Case, runtime: Runtime) -> list[Batch]:
    """This rank's; one process has all rows at once."""
    sizes = [sum(map(sum, case.chunks))] if runtime.world == 1 else case.chunks[runtime.rank]
    start = sum(case.chunks[0]) if runtime.rank else 0
    found = []
    for size in sizes:
        found.append(pairs(range(start, start + size), case.hard))
        start += size
    return found


def wrapped(runtime: Runtime, model: Any) -> Any:
    """The model as `runtime` prepares it."""
    runtime.prepare(model, AdamW(lr=1e-3).build(model), lambda step: 1.0)
    return runtime.model


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Of every parameter that learns."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def take(runtime: Runtime, model: Any, case: Case, step: int = 1) -> dict[str, Tensor]:
    """One step of a wrapped model: all gradients, this rank's loss, and the loss and norm to log."""
    own, whole = chunks(case, runtime), runtime.world == 1
    rows = runtime.total(sum(case.task.rows(chunk) for chunk in own))
    backward = separable if whole else case.backward
    how = {"step": step, "total": 10, "divisor": rows / runtime.world}
    loss = backward(runtime, model, own, case.task, **how)
    found = gradients(runtime.bare)
    told = runtime.move(step, loss, rows, [row for chunk in own for row in chunk["ids"]])
    numbers = {name: torch.tensor(told[name], dtype=torch.float64) for name in ("loss", "norm")}
    mine = sum(len(chunk["ids"]) for chunk in own)
    return found | numbers | {"own": loss.total.double(), "rows": torch.tensor([mine, rows])}


def run(runtime: Runtime, folder: Path) -> Results:
    """Every case; two steps of each, for DDP looks for lost gradients when the second one begins."""
    results: Results = {}
    for name, case in CASES.items():
        model = build(folder, **(LOCKED if case.adapted else {}))
        if case.adapted and runtime.world > 1:
            model.gradient_checkpointing()
        whole = wrapped(runtime, model)
        results[name] = take(runtime, whole, case)
        results[f"{name}_again"] = take(runtime, whole, case, step=2)
    return results


def replayed(runtime: Runtime, folder: Path) -> Results:
    """A cached step, and the same rows under the same random numbers in one graph, chunk by chunk."""
    own = chunks(Case(ALL, ([4] * 4, [4] * 4)), runtime)
    model = wrapped(runtime, build(folder, "dropped", **DROPPED))
    results: Results = {}
    for name, seed in (("direct", 1), ("cached", 1), ("otherwise", 2)):
        runtime.bare.zero_grad()
        seed_step(seed, 1, runtime.rank)
        if name == "direct":
            loss = ALL.loss(Embeddings.cat([runtime.bare(chunk) for chunk in own]), merge(own), 1, 10)
            (loss.total / 32).backward()
            found = {key: runtime.sum(each) for key, each in gradients(runtime.bare).items()}
        else:
            cached(runtime, model, own, ALL, step=1, total=10, divisor=32 / runtime.world)
            found = gradients(runtime.bare)
        results[f"dropout_{name}"] = found
    return results


def synchronised(runtime: Runtime, folder: Path) -> Results:
    """How many buckets of gradients went around in a step, and how many of them were a last one."""
    results: Results = {}
    for k in (1, 8):
        model, seen = wrapped(runtime, build(folder)), []

        def hook(state: None, bucket: GradBucket, seen: list[bool] = seen):
            seen.append(bucket.is_last())
            return allreduce_hook(state, bucket)

        model.register_comm_hook(None, hook)
        for step in (1, 2):  # DDP chooses its buckets anew after the first step
            seen.clear()
            take(runtime, model, CASES[f"chunks_{k}"], step)
        results[f"syncs_{k}"] = {"buckets": torch.tensor(len(seen)), "last": torch.tensor(sum(seen))}
    return results


def slopes(rank: int, world: int) -> Results:
    """The gradient by the score of each pair: keys along the axes turn that by a query into it."""
    count = len(CAPTIONS)
    rows = range(rank * count // world, (rank + 1) * count // world)
    query = normalize(torch.randn(count, count, generator=torch.Generator().manual_seed(0)), dim=1)
    fields = {"row": torch.tensor(rows), "caption": CAPTIONS[rows.start : rows.stop]}
    batch = {"query_fields": fields, "key_fields": fields, "ids": [str(row) for row in rows]}
    results: Results = {}
    for name, objective in (*OBJECTIVES.items(), ("log_of_sum", InfoNCE(positives="log_of_sum"))):
        for same in (("row",), ("row", "caption")):
            own = [x[rows.start : rows.stop].clone().requires_grad_() for x in (query, torch.eye(count))]
            features = Embeddings(own[0], own[1], torch.tensor([3.0]), torch.tensor([0.0]))
            one = Align(targets=Identity(same=same), terms=(Term(objective=objective),))
            one.loss(features, batch, 1, 10).total.backward()
            results[f"{name}_{same[-1]}"] = {"slope": own[0].grad}
    return results


STEPS: tuple[Callable[[Runtime, Path], Results], ...] = (run, replayed, synchronised)
