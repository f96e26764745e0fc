"""What one step of a recipe takes on a kind of machine, and whether it fits."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from vlalign.recipe.reads import PAIRS, reads
from vlalign.recipe.schemas import TrainRecipe
from vlalign.train.plan.devices import GIB, Device, device
from vlalign.train.plan.ledger import Ledger
from vlalign.train.plan.pretence import Pretence
from vlalign.train.plan.strategies import STRATEGIES, Strategy
from vlalign.train.strategy import check
from vlalign.types import RecipeError

BYTES = {"fp32": 4, "bf16": 2}
GROWING = ("activations", "temporary")  # with the rows of a forward


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Of one process. `memory`: bytes by part when all together are most, `most`: when each alone is.

    `sent`: bytes of messages a step, by kind.
    """

    device: Device
    strategy: Strategy
    processes: int
    precision: str
    batch: int  # rows of all processes
    rows: int  # of the largest chunk of this one
    parameters: int
    learned: int
    memory: Mapping[str, int]
    most: Mapping[str, int]
    sent: Mapping[str, int]
    flops: int

    @property
    def peak(self) -> int:
        """Bytes of tensors."""
        return sum(self.memory.values())

    @property
    def room(self) -> int:
        """Bytes that tensors may take."""
        return int(self.device.memory * self.device.usable)

    @property
    def fits(self) -> bool:
        """Whether the peak leaves room for what is no tensor."""
        return self.peak <= self.room

    @property
    def computing(self) -> float:
        """Seconds of a step's products at the share of the peak that the device is taken to reach."""
        peak: float = getattr(self.device, self.precision)
        return self.flops / (peak * self.device.reached)

    @property
    def sending(self) -> float:
        """Seconds of a step's messages, none of them hidden behind products."""
        return sum(self.sent.values()) / self.device.link_of(self.processes)

    @property
    def steps(self) -> float:
        """Steps a second."""
        return 1 / (self.computing + self.sending)


def forecast(recipe: TrainRecipe, processes: int, on: str, by: str) -> Forecast:
    """`on`: a name of `devices.NAMES`; `by`: one of `strategies.STRATEGIES`. Reads no data, loads no weights.

    Texts are taken at the full context. Raises UserError when the recipe's model cannot be built without
    files that are not here, RecipeError when training would refuse them.
    """
    if processes < 1:
        raise RecipeError(f"processes: must be >= 1, got {processes}")
    if {reads(recipe.task), reads(recipe.data.train)} != {PAIRS}:
        raise RecipeError("task: only steps over pairs are forecast; of candidates, run a few steps")
    if getattr(recipe.model, "whole", False):
        raise RecipeError(
            "model: a language model reads as many tokens of a picture as that is large, which no forecast "
            "knows; run a few steps"
        )
    strategy, where = STRATEGIES[by], device(on, processes)
    precision = recipe.precision if recipe.precision != "auto" else "fp32" if on == "cpu" else "bf16"
    check(recipe, processes, strategy.stage or None, precision)
    step = Pretence(recipe, processes, precision == "bf16", on != "cpu", bool(strategy.stage))
    ledger = Ledger(step.model.dim, strategy.held(processes, step.chunks))
    with _pretended_group(processes):
        step.run(ledger)
    size = BYTES[precision] if strategy.stage else BYTES["fp32"]
    passes = (3 if step.chunks > 1 and recipe.task.coupled else 2) * step.chunks
    counts = (step.learned, step.fetched, size)
    buffers = strategy.buffers(processes, *counts)
    return Forecast(
        device=where,
        strategy=strategy,
        processes=processes,
        precision=precision,
        batch=recipe.data.batch,
        rows=-(-step.rows // step.chunks),
        parameters=step.parameters,
        learned=step.learned,
        memory=_added(ledger.peak, buffers),
        most=_added(ledger.most, buffers),
        sent={**strategy.sent(processes, passes, *counts), **ledger.sent} if processes > 1 else {},
        flops=ledger.flops,
    )


@contextmanager
def _pretended_group(processes: int) -> Iterator[None]:
    """A group of so many processes, of which there is one, and whose messages go nowhere."""
    import torch.distributed as dist

    if processes == 1:
        yield
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=processes, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def _added(counted: Mapping[str, int], buffers: Mapping[str, int]) -> dict[str, int]:
    return {name: counted.get(name, 0) + buffers.get(name, 0) for name in {**counted, **buffers}}


def advice(told: Forecast) -> list[str]:
    """What to change when it does not fit, the most helpful first; nothing when it does."""
    if told.fits:
        return []
    by_rows = sum(told.memory.get(name, 0) for name in GROWING)
    rest = sum(size for name, size in told.most.items() if name not in GROWING)
    rows = int(told.rows * (told.room - rest) / by_rows)
    found = []
    if rows >= 1:
        power = 2 ** (rows.bit_length() - 1)
        found.append(f"data.chunk={power}: fewer rows of one forward, and gradients stay exact")
    if told.processes > 1 and told.strategy.stage < 3 and rest > told.room / 4:
        stage = max(2, told.strategy.stage + 1)
        found.append(f"--strategy zero{stage}: processes share what each holds now")
    found.append("gradient_checkpointing=true: activations are computed again in the backward")
    return [*found, f"a device with more than {told.peak / told.device.usable / GIB:.0f} GiB"]
