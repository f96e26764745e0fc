"""What every model that scores pairs is: a network of transformers, its reading, adapters on a part."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from vlalign.models.lora import Adapters, Lora
from vlalign.specs import ModelSpec
from vlalign.types import Batch, PairScores, TokenLogits


class RankerSpec(ModelSpec, Protocol):
    """A model spec that can also save what it built."""

    def at(self, folder: Path, trust_remote_code: bool) -> Self:
        """The same model from a saved folder."""
        ...

    def write(self, model: Any, state: Mapping[str, Tensor], folder: Path) -> None:
        """Write a model that this spec built; `state` is plain (`Ranker.plain_state`)."""
        ...


class Ranker(nn.Module):
    """`process.read` gives what is read of each pair, whose `len` is its tokens; `process.join` the inputs.

    `taught` does the same for training, where more may be read. `spec` is what built it.
    """

    spec: RankerSpec

    def __init__(self, net: Any, process: Any) -> None:
        super().__init__()
        self.net, self.process, self.taught = net, process, process
        self.still: list[nn.Module] = []  # modules that neither learn nor change
        self.adapters: Adapters | None = None
        self._adapted = ""  # what names of the part with adapters begin with

    @abstractmethod
    def forward(self, batch: Batch) -> PairScores | TokenLogits:
        """Of each pair of a batch, or of the tokens of each."""

    @abstractmethod
    def scores(
        self, read: Sequence[Any], batches: Iterable[list[int]], seen: MutableMapping[bytes, Any]
    ) -> Tensor:
        """Of one query's pairs as `process.read` gives them, read together where their places are.

        `seen`: what was computed of pictures, by their digest, for a model to find and to add to; the caller
        empties it when the weights change. [C] float32 on the CPU.
        """

    def train(self, mode: bool = True) -> Self:
        """As any module's, but that what is still is as it is in use: its norms, no dropout."""
        super().train(mode)
        for part in self.still:
            part.eval()
        return self

    @abstractmethod
    def gradient_checkpointing(self) -> None:
        """Recompute activations."""

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.parameters()).device

    def adapt(self, part: nn.Module, lora: Lora) -> Adapters:
        """Freeze a part of the network, and put adapters on it."""
        [name] = [name for name, module in self.net.named_modules() if module is part]
        self.adapters, self._adapted = Adapters(part, lora), f"{name}."
        return self.adapters

    def plain_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of this module as its network has it without adapters."""
        own = _inside(state, "net.")
        return self._changed(own, self.adapters.merged) if self.adapters else own

    def own_state(self, plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The reverse of `plain_state`, but for the adapters themselves."""
        own = self._changed(plain, self.adapters.under) if self.adapters else plain
        return {f"net.{name}": x for name, x in own.items()}

    def write(self, state: Mapping[str, Tensor], folder: Path) -> None:
        """As its spec writes it, and its adapters in PEFT's form, as `adapter/`. `state`: its own, whole."""
        self.spec.write(self, self.plain_state(state), folder)
        if self.adapters is not None:
            self.adapters.write(_inside(state, "net."), folder / "adapter")

    def _changed(
        self, state: Mapping[str, Tensor], change: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The state of the network, that of the part with adapters changed."""
        rest = {name: x for name, x in state.items() if not name.startswith(self._adapted)}
        part = change(_inside(state, self._adapted))
        return rest | {f"{self._adapted}{name}": x for name, x in part.items()}


def _inside(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What begins so, named without it."""
    return {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}
