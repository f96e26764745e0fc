"""A recipe's model, optimizer and batch without contents, and one step of them."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vlalign.data.sampler import parts, share
from vlalign.ops import table
from vlalign.recipe.schemas import TrainRecipe
from vlalign.specs import KNOWN_TEXTS
from vlalign.train.ema import Average, with_momentum
from vlalign.train.features import kept
from vlalign.train.model import GIVEN
from vlalign.train.plan.blueprint import blueprint
from vlalign.train.plan.disguise import as_on_accelerators
from vlalign.train.plan.ledger import Ledger, pretended
from vlalign.train.rescalers import teach_rescalers
from vlalign.train.step import cached, separable
from vlalign.types import Batch, Embeddings, Inputs, Loss

LONG = "word " * 4096  # longer than any tower reads, so that it is cut to the full context


class Machine:
    """One process of the step: nothing crosses, for the messages of gradients are known without running."""

    device = torch.device("cpu")

    def micro(self, model: nn.Module, last: bool) -> Any:
        """Nothing to hold back."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Gradients of a scalar."""
        torch.autograd.backward(loss)

    def sum(self, values: Tensor) -> Tensor:
        """Those of one process."""
        return values


class Charged:
    """A task whose loss, and the backward of it down to the features, is charged to the score table."""

    def __init__(self, task: Any, ledger: Ledger) -> None:
        self.task, self.ledger = task, ledger

    def loss(self, features: Embeddings, batch: Batch, step: int, total: int) -> Loss:
        """The task's own."""
        self.ledger.part = "score table"
        for side in (features.query, features.key):
            if side.requires_grad:
                side.register_hook(self._reached)  # type: ignore[no-untyped-call]
        loss: Loss = self.task.loss(features, batch, step, total)
        return loss

    def _reached(self, gradient: Tensor) -> None:
        self.ledger.part = "temporary"


class Pretence:
    """A step of one process of several, each of which has `rows` of the batch, cut into `chunks`."""

    def __init__(
        self, recipe: TrainRecipe, processes: int, bf16: bool, accelerator: bool, zero: bool
    ) -> None:
        """`zero`: under DeepSpeed, which holds a bf16 model and float32 copies of what learns."""
        self.recipe, self.bf16, self.accelerator, self.zero = recipe, bf16, accelerator, zero
        self.rows = recipe.data.batch // processes
        self.chunks = parts(recipe.data.batch, recipe.data.chunk, processes)
        model: Any = blueprint(recipe)
        self.model = model
        self.idle: list[str] = []  # sides whose tower never runs
        self.samples = self._samples()
        self.parameters = sum(p.numel() for p in self.model.parameters())
        idle = [p for side in self.idle for p in model.tower(side).parameters()]
        self.fetched = self.parameters - sum(p.numel() for p in idle)
        self.learned = sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def _samples(self) -> tuple[Inputs, Inputs]:
        """What the towers, or behind locked ones the heads, read of one row."""
        model, samples = self.model, []
        for side, row in (("image", Image.new("RGB", (64, 64))), ("text", LONG)):
            if kept(self.recipe, model, side):
                self.idle.append(side)
                samples.append({"features": torch.empty(self._shape(side, row))})
            else:
                samples.append(model.tower(side).process([row]))
        return samples[0], samples[1]

    @torch.no_grad()
    def _shape(self, side: str, row: Any) -> Sequence[int]:
        """Of the features of one row."""
        tower = self.model.tower(side)
        if tower.pools:
            return (1, tower.width)
        found: Tensor = tower({name: tower.take(x) for name, x in tower.process([row]).items()})
        return found.shape

    def run(self, ledger: Ledger) -> None:
        """The second step of a run: the optimizer has its states."""
        recipe, model = self.recipe, self.model
        if self.zero and self.bf16:
            model.bfloat16()
        with ledger.fake:
            model.to_empty(device="cpu")
        for tensor in (*model.parameters(), *model.buffers()):
            ledger.charge(tensor, "weights")
        with ledger:
            optimizer = self._optimizer(ledger)
            if recipe.ema:
                with ledger.charging("averaged weights"):
                    self.average = Average(model, recipe.ema)  # alive while the step runs
            chunks = [self._chunk(ledger, index) for index in range(self.chunks)]
            ledger.forget()
            forward = model.forward

            def charged(chunk: Batch) -> Embeddings:
                with ledger.charging("activations"), self._autocast():
                    features: Embeddings = forward(chunk)
                return features

            model.forward = charged
            backward = cached if recipe.task.coupled and self.chunks > 1 else separable
            task = self._task()
            with as_on_accelerators(self.bf16 and not self.zero) if self.accelerator else nullcontext():
                if recipe.ema and getattr(task, "momentum", False):
                    chunks = with_momentum(self.average, model, chunks)
                charged_task: Any = Charged(task, ledger)
                backward(Machine(), model, chunks, charged_task, step=1, total=2, divisor=self.rows)
                teach_rescalers(Machine(), model, task, chunks, backward, step=1, total=2)
            ledger.part = "temporary"
            if not self.zero:  # DeepSpeed's step has less than its backward
                optimizer.step()

    def _task(self) -> Any:
        """The recipe's, with the tiles that an accelerator's table has where the recipe leaves them open."""
        task: Any = self.recipe.task
        if not self.accelerator or getattr(task, "tile", ()) is not None:
            return task
        return replace(task, tile=table.GPU_TILE)

    def _optimizer(self, ledger: Ledger) -> torch.optim.Optimizer:
        """With the states that its first step makes; from then on gradients are known as such."""
        optimizer = self.recipe.optim.build(self.model)
        learned = [p for group in optimizer.param_groups for p in group["params"]]
        for parameter in learned:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        states = [tensor for state in optimizer.state.values() for tensor in state.values()]
        if self.zero:
            states = [torch.empty(x.shape, dtype=torch.float32) for x in (*states, *learned)]
            self.master = states
            optimizer.state.clear()
        for tensor in states:
            ledger.charge(tensor, "optimizer")
        for parameter in learned:
            parameter.register_post_accumulate_grad_hook(lambda p: ledger.charge(p.grad, "gradients"))
        return optimizer

    def _chunk(self, ledger: Ledger, index: int) -> Batch:
        """One chunk of the batch."""
        start, stop = share(0, self.rows, index, self.chunks)
        names = dict.fromkeys((*GIVEN, *getattr(self.recipe.task, "reads_fields", ())))
        fields = {name: self._field(name, stop - start) for name in names}
        texts = getattr(self.recipe.task, "texts", 1)
        if texts > 1:
            fields[KNOWN_TEXTS] = torch.ones(stop - start, texts - 1, dtype=torch.bool)
        shown = dict(zip(("query", "key"), self.samples, strict=True))
        if self.recipe.data.augment.teacher == "whole":
            shown["teacher"] = self.samples[0]
        rows = {
            side: {
                name: self._repeated(x, (stop - start) * (texts if side == "key" else 1))
                for name, x in sample.items()
            }
            for side, sample in shown.items()
        }
        made: Batch = pretended(rows | {"query_fields": fields, "key_fields": dict(fields)}, ledger, "inputs")
        return {**made, "ids": [""] * (stop - start)}

    def _field(self, name: str, rows: int) -> Tensor:
        """Of so many rows. A saved model's embeddings are taken to be as wide as this one's."""
        how: Any = self.recipe.data.annotate.get(name)
        if not getattr(how, "vectors", False):
            return torch.zeros(rows, dtype=torch.int64)
        return torch.zeros(rows, self.model.tower(how.side).width if how.model is None else self.model.dim)

    def _repeated(self, x: Tensor, rows: int) -> Tensor:
        x = x.bfloat16() if self.bf16 and self.zero and x.is_floating_point() else x
        return x.expand(rows, *x.shape[1:])

    def _autocast(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bf16 and not self.zero)
