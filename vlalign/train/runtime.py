"""Processes, devices and precision: accelerate, DDP and DeepSpeed meet the loop here and nowhere else."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from vlalign.recipe.schemas import TrainRecipe
from vlalign.train.diverged import FILE, STILL, diverged, finite
from vlalign.train.peers import Peers, patience
from vlalign.train.strategy import accelerator, check, precision
from vlalign.train.together import together
from vlalign.train.zero import check_stage, gathered, read_clamped
from vlalign.types import Batch, Loss


class Runtime(Peers):
    """The machines of a run, to be used in a `with`: leaving it leaves the processes' group.

    After `prepare`, `model` is wrapped and `bare` is the module itself.
    """

    def __init__(self, recipe: TrainRecipe) -> None:
        """Start the processes' group. Raises RecipeError when the machines and the recipe do not fit."""
        self.recipe, self.precision = recipe, precision(recipe)
        self.accelerator = accelerator(recipe, patience())
        super().__init__(self.accelerator.process_index, self.accelerator.num_processes)
        self.device = self.accelerator.device
        self.deepspeed = self.accelerator.distributed_type == "DEEPSPEED"
        self._reduction = ExitStack()
        share = recipe.data.batch // self.world
        self.chunked = recipe.data.chunk is not None and recipe.data.chunk < share
        stage = self.accelerator.deepspeed_plugin.zero_stage if self.deepspeed else None
        check(recipe, self.world, stage, self.precision)

    def prepare(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: Callable[[int], float]
    ) -> None:
        """Move to the device and wrap for the processes there are. Raises RecipeError."""
        self.barrier()  # one may have waited long for its weights
        self.bare: Any = model.to(self.device)
        self.schedule = schedule
        self.rates = [group["lr"] for group in optimizer.param_groups]
        if self.deepspeed:
            settings = self.accelerator.deepspeed_plugin.deepspeed_config
            settings["gradient_clipping"] = self.recipe.optim.clip  # DeepSpeed clips at 1.0 unless it is told
            settings["train_micro_batch_size_per_gpu"] = self.recipe.data.batch // self.world
            self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
            check_stage(self.model)
        else:
            with warnings.catch_warnings():  # accelerate has no other name yet for what torch renames
                warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
                self.model, self.optimizer = self.accelerator.prepare_model(model), optimizer

    def place(self, chunk: Batch) -> Batch:
        """A chunk on the device; its inputs in bf16 where DeepSpeed holds the model so."""
        dtype = torch.bfloat16 if self.deepspeed and self.precision == "bf16" else None

        def move(value: Any, inputs: bool) -> Any:
            if isinstance(value, dict):
                return {name: move(item, inputs) for name, item in value.items()}
            if not isinstance(value, Tensor):
                return value
            cast = dtype if inputs and value.is_floating_point() else None
            return value.to(self.device, cast, non_blocking=True)

        return {
            name: move(value, name in ("query", "key", "teacher", "pairs")) for name, value in chunk.items()
        }

    @contextmanager
    def micro(self, model: Any, last: bool) -> Iterator[None]:
        """One chunk's forward and backward; the last one's sends the sum of all chunks' gradients, once.

        So each process holds whole gradients between chunks, under every stage of ZeRO.
        """
        if self.deepspeed and not last and not model.inside_no_sync_ctxt:
            self._reduction.enter_context(model.coalesce_grad_reduction())
        with nullcontext() if last or self.deepspeed else self.accelerator.no_sync(model):
            yield
        if last:
            self._reduction.close()

    def backward(self, loss: Tensor) -> None:
        """Gradients of a scalar. accelerate's own would also move the parameters under DeepSpeed."""
        self.model.backward(loss) if self.deepspeed else torch.autograd.backward(loss)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of every process's tensor."""
        total: Tensor = self.accelerator.reduce(values.to(self.device), "sum")
        return total

    @contextmanager
    def whole(self) -> Iterator[Any]:
        """The module with all of every parameter."""
        with gathered(self.bare.parameters()) if self.deepspeed else nullcontext():
            yield self.bare

    @contextmanager
    def evaluating(self) -> Iterator[Any]:
        """The module with all of every parameter, in evaluation mode."""
        with self.whole() as model:
            try:
                yield model.eval()
            finally:
                model.train()

    def move(self, step: int, loss: Loss, rows: int, ids: Sequence[str]) -> dict[str, Any]:
        """The optimizer's step. Returns the numbers to log, means over all rows.

        Raises Diverged before anything has moved (DeepSpeed: a bad gradient of a finite loss is seen after).
        """
        names = sorted(loss.parts)
        sums = self.sum(torch.stack([loss.total, *(loss.parts[name] for name in names)]).float())
        mean, *parts = (sums / rows).tolist()
        groups = self.optimizer.param_groups  # looked up each time: resuming replaces the list
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate * self.schedule(step)
        norm = 0.0 if self.deepspeed else self._clip()
        self._check_finite(step, mean, norm, ids)
        if self.deepspeed:
            self.model.step()
            norm = float(self.model.get_global_grad_norm() or 0.0)
            self._check_finite(step, mean, norm, ids, "run it again to go on from the last checkpoint")
        else:
            self.optimizer.step()
            self.optimizer.zero_grad()
        numbers = {"lr": groups[0]["lr"], **self._scalars(), "norm": norm}
        return {"step": step, "loss": mean, "parts": dict(zip(names, parts, strict=True)), **numbers}

    def _check_finite(
        self, step: int, loss: float, norm: float, ids: Sequence[str], state: str = STILL
    ) -> None:
        """Loss and norm are of all processes, so all of them come here, and tell each other their rows."""
        if not finite(loss, norm):
            everyone = [row for rows in self.gather(list(ids)) for row in rows]
            with together(self, soon=True):
                raise diverged(step, loss, norm, everyone, Path(self.recipe.out) / FILE, self.main, state)

    def _clip(self) -> float:
        """The norm of the gradient of all parameters, before it is cut to `optim.clip`."""
        gradients = [p.grad for p in self.bare.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.recipe.optim.clip:
            torch.nn.utils.clip_grads_with_norm_(self.bare.parameters(), self.recipe.optim.clip, norm)
        return float(norm)

    def _scalars(self) -> dict[str, float]:
        """Clamp the scale after the step, then read it (as a multiplier) and the bias, if there are any."""
        if not hasattr(self.bare, "scale"):
            return {}
        if not self.deepspeed:
            self.bare.clamp_scale()
            return {"scale": float(self.bare.scale.detach().exp()), "bias": float(self.bare.bias.detach())}
        log_scale = read_clamped(self.bare.scale, math.log(self.bare.scale_max))
        return {"scale": math.exp(log_scale), "bias": read_clamped(self.bare.bias, math.inf)}

    def close(self) -> None:
        """Leave the processes' group, so that another run may start in this process (DeepSpeed: only one)."""
        from accelerate.state import AcceleratorState

        self.bare = self.model = self.optimizer = None
        self.accelerator.free_memory()  # DDP's threads end before the group does, or gloo aborts now and then
        self.accelerator.end_training()
        AcceleratorState._reset_state(reset_partial_state=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Raises UserError or SystemExit in place of an error of communication."""
        self.close()
        self.explain(error)
