"""Towers: one side of a dual encoder, whatever library its network comes from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vlalign.models.lock import Groups, Lock, freeze, frozen_parts, longest_stack, stacked
from vlalign.models.lora import Adapters, Lora
from vlalign.models.patches import drop_patches
from vlalign.models.processors import Processor
from vlalign.models.soft_prompts import SoftPrompts, in_pictures
from vlalign.types import Inputs, UserError

ModelSide = Literal["image", "text"]


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """How a tower learns. `lock`: not at all, or its last groups only; `lora`: adapters on frozen weights.

    `prompts`: so many vectors, CoOp's and VPT's, learn among the tokens of a frozen tower.
    `patch_dropout`: the share of each picture's patches that a vision transformer leaves out while training.
    """

    lock: bool | Lock = False
    lora: Lora | None = None
    prompts: int = 0
    patch_dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.patch_dropout < 1:
            raise ValueError(f"patch_dropout must be >= 0 and < 1, got {self.patch_dropout}")
        if self.patch_dropout and self.lock in (True, Lock()):
            raise ValueError("patch_dropout changes nothing of a locked tower; leave one of the two out")
        if self.lock and self.lora:
            raise ValueError("lora freezes the tower's own weights already; leave lock out")
        if self.prompts < 0:
            raise ValueError(f"prompts must be >= 0, got {self.prompts}")
        if self.prompts and (self.lock or self.lora):
            raise ValueError("prompts freeze the tower's own weights already; leave lock and lora out")


class TowerSpec(Protocol):
    """The recipe's side of a tower. `sides`: which sides it can be, of `image` and `text`."""

    sides: tuple[ModelSide, ...]
    lock: bool | Lock
    lora: Lora | None
    prompts: int
    patch_dropout: float

    def build(self, side: ModelSide, dim: int) -> "TowerModule":
        """The tower, weights loaded, not yet locked. `dim`: width of the joint space."""
        ...

    def at(self, folder: Path, trust_remote_code: bool) -> Self:
        """The same tower without its weights, from what `TowerModule.write` wrote into the folder."""
        ...


class TowerModule(nn.Module):
    """Inputs -> pooled features [N, width], not normalised. BatchNorm keeps its statistics while training.

    `pools`: it gives a row a picture, and not one a patch, [N, n, width]. `projected`: its features lie in
    the joint space already, so it gets no head. `library`: the distribution that its network comes from.
    `layout`: of the whole models that it can be saved as a half of. `config`: what, besides weights and
    preprocessing, decides its output.
    """

    pools = True
    projected = False
    library = "torch"
    layout: str | None = None
    net: Any  # an nn.Module of a library that has no types
    process: Any  # a Processor; a text tower's is a TextProcessor

    def __init__(self, net: nn.Module, width: int, process: Processor, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.net, self.width, self.process, self.config = net, width, process, config
        self.adapters: Adapters | None = None
        self.prompts: SoftPrompts | None = None
        self._asleep: tuple[nn.Module, ...] = ()

    def forward(self, inputs: Inputs) -> Tensor:
        """Features [N, width]."""
        raise NotImplementedError

    def unpool(self) -> None:
        """Give features of each patch of a picture from now on, row by row. Raises UserError."""
        raise UserError(
            f"a tower of {self.library} gives a picture whole, and its patches are asked for; take timm or "
            "hf_vision"
        )

    def groups(self) -> Groups:
        """Layer groups from the stem to the top."""
        return stacked(self.net, longest_stack(self.net))

    def checkpoint_gradients(self) -> None:
        """Recompute activations in the backward, by what the library offers."""
        raise NotImplementedError

    def write(self, folder: Path) -> None:
        """Write what building the tower again needs besides weights."""
        raise NotImplementedError

    def adapt(self, how: Adaptation | TowerSpec) -> None:
        """Lock it, put adapters or prompts on it, let it leave out patches. Raises UserError."""
        if how.patch_dropout:
            drop_patches(self.net, how.patch_dropout)
        if how.prompts:
            self.requires_grad_(False)
            self.learn_prompts(how.prompts)
            self.layout = None  # which has no place for prompts
        if how.lora is not None:
            self.adapters = Adapters(self.net, how.lora)
        elif how.lock:
            freeze(self, self.groups(), how.lock.unlocked_groups if isinstance(how.lock, Lock) else 0)
            self._asleep = tuple(frozen_parts(self))

    def learn_prompts(self, count: int) -> None:
        """Let so many vectors learn among its tokens. Raises UserError."""
        self.prompts = in_pictures(self.net, count)

    def train(self, mode: bool = True) -> Self:
        """Training mode for what learns; BatchNorm and locked parts stay in eval mode."""
        super().train(mode)
        norms = [module for module in self.modules() if isinstance(module, _BatchNorm)]
        for module in (*self._asleep, *norms):
            nn.Module.train(module, False)
        return self

    def plain_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tower's state dict as a tower without adapters has it."""
        if self.adapters is None:
            return dict(state)
        return {f"net.{name}": x for name, x in self.adapters.merged(_inside(state)).items()}

    def own_state(self, plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The reverse of `plain_state`, but for the adapters themselves."""
        if self.adapters is None:
            return dict(plain)
        return {f"net.{name}": x for name, x in self.adapters.under(_inside(plain)).items()}

    def write_adapters(self, state: Mapping[str, Tensor], folder: Path) -> None:
        """Write the adapters alone as PEFT does; nothing when there are none."""
        if self.adapters is not None:
            self.adapters.write(_inside(state), folder)

    @property
    def locked(self) -> bool:
        """Whether nothing of it learns, so that its features may be cached."""
        return not any(parameter.requires_grad for parameter in self.parameters())

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.parameters()).device

    def take(self, tensor: Tensor) -> Tensor:
        """An input where its parameters are, and as precise as they are."""
        dtype = next(self.parameters()).dtype if tensor.is_floating_point() else None
        return tensor.to(self.device, dtype)


def _inside(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("net."): tensor for name, tensor in state.items()}
