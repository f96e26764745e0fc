"""LoRA, Hu et al. 2022, https://arxiv.org/abs/2106.09685, by PEFT; open_clip's attention included."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlalign.models import attention, checkpoints
from vlalign.models.fetching import line
from vlalign.types import UserError

ADAPTER = "default"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # PEFT's names
DOWN, UP = (f".lora_{part}.weight" for part in "AB")
# What files raise that are not of this network, or no adapter's
MISFITS = (OSError, ValueError, LookupError, AttributeError, RuntimeError, TypeError, ArithmeticError)


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Adapters W + alpha / rank * B A. `target`: names of Linear layers (`q_proj`), or all of the tower's."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target: Literal["all-linear"] | tuple[str, ...] = "all-linear"

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(f"rank must be >= 1 and alpha > 0, got {self.rank} and {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be >= 0 and < 1, got {self.dropout}")

    def layers(self, net: nn.Module) -> list[str]:
        """The Linear layers that get an adapter. Raises UserError when a target, or the net, has none."""
        linears = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
        if not linears:
            raise UserError("lora: this tower has no Linear layer to put an adapter on; leave lora out")
        if self.target == "all-linear":
            return linears
        for target in self.target:
            if not any(_ends(name, target) for name in linears):
                known = ", ".join(sorted({name.rpartition(".")[2] for name in linears}))
                raise UserError(
                    f"lora.target: no Linear layer of this tower is named '{target}'; it has: {known}"
                )
        return [name for name in linears if any(_ends(name, target) for target in self.target)]


def _ends(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


class Adapters:
    """What was done to a network to train adapters on it, so that saving can undo it."""

    def __init__(self, net: nn.Module, spec: Lora) -> None:
        """Split the attentions, freeze the network and put adapters on its layers, in place."""
        from peft import LoraConfig, inject_adapter_in_model

        self.attentions = attention.split(net)
        self.layers = spec.layers(net)
        self.scaling = spec.alpha / spec.rank
        options: dict[str, Any] = {"r": spec.rank, "lora_alpha": spec.alpha, "lora_dropout": spec.dropout}
        self.config = LoraConfig(**options, target_modules=list(self.layers))
        inject_adapter_in_model(
            LoraConfig(**options, target_modules=list(self.layers)), net, adapter_name=ADAPTER
        )
        for name, weights in net.named_parameters():
            if ".lora_" in name:  # small steps would be lost in bfloat16
                weights.data = weights.data.float()

    def merged(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state of the network as it was before, the adapters added to its weights."""
        plain = dict(state)
        for layer in self.layers:
            down, up = (plain.pop(f"{layer}.lora_{part}.{ADAPTER}.weight") for part in "AB")
            weight = plain.pop(f"{layer}.base_layer.weight")
            plain[f"{layer}.weight"] = _changed(weight, down, up, self.scaling)
            bias = plain.pop(f"{layer}.base_layer.bias", None)
            if bias is not None:
                plain[f"{layer}.bias"] = bias
        return attention.fuse(plain, self.attentions)

    def under(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state of the network as it was before, renamed to lie under the adapters."""
        plain = attention.unfuse(dict(state), self.attentions)
        for layer in self.layers:
            for part in ("weight", "bias"):
                if f"{layer}.{part}" in plain:
                    plain[f"{layer}.base_layer.{part}"] = plain.pop(f"{layer}.{part}")
        return plain

    def write(self, state: Mapping[str, Tensor], folder: Path) -> None:
        """PEFT's folder: `adapter_config.json` and `adapter_model.safetensors`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.config.save_pretrained(str(folder))
        own = {
            f"base_model.model.{name.replace(f'.{ADAPTER}.weight', '.weight')}": tensor
            for name, tensor in state.items()
            if ".lora_" in name
        }
        checkpoints.write(own, folder / WEIGHTS)


@torch.no_grad()
def merge(net: nn.Module, folder: Path) -> None:
    """Add what `Adapters.write` wrote to the weights of a network, in place; what learned whole replaces.

    Raises UserError.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        told = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        state = checkpoints.unwrap(load_file(folder / WEIGHTS))
        scaling = told["lora_alpha"] / told["r"]
        for name in [name for name in state if name.endswith(DOWN)]:
            layer, down = name.removesuffix(DOWN), state.pop(name)
            weight = net.get_parameter(f"{layer}.weight")
            weight.copy_(_changed(weight, down, state.pop(f"{layer}{UP}"), scaling))
        for name, tensor in state.items():
            net.get_parameter(name).copy_(tensor)
    except (SafetensorError, *MISFITS) as error:
        raise UserError(f"{folder}: this adapter does not fit its base model: {line(error)}") from error


def _changed(weight: Tensor, down: Tensor, up: Tensor, scaling: float) -> Tensor:
    """A weight with its adapter added, rounded once."""
    change = (up.float() @ down.float()).to(weight.device) * scaling
    return (weight.float() + change).to(weight.dtype)
