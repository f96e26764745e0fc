"""Locked-image tuning, Zhai et al. 2021, https://arxiv.org/abs/2111.07991: towers that keep their weights."""

from dataclasses import dataclass

from torch import nn

from vlalign.types import UserError

Groups = list[list[nn.Module | nn.Parameter]]


@dataclass(frozen=True, kw_only=True)
class Lock:
    """Which part of a tower is locked: all but its last `unlocked_groups` layer groups."""

    unlocked_groups: int = 0

    def __post_init__(self) -> None:
        if self.unlocked_groups < 0:
            raise ValueError(f"unlocked_groups must be >= 0, got {self.unlocked_groups}")


def freeze(net: nn.Module, groups: Groups, unlocked: int) -> None:
    """Take gradients away from all but the last groups. Raises UserError when there are not that many."""
    if unlocked > len(groups):
        raise UserError(
            f"unlocked_groups: {unlocked} asked for, but this tower has {len(groups)} layer groups"
        )
    net.requires_grad_(False)
    for group in groups[len(groups) - unlocked :]:
        for part in group:
            part.requires_grad_(True)


def frozen_parts(net: nn.Module) -> list[nn.Module]:
    """The largest modules that have parameters, none of which learns."""
    learns = [parameter.requires_grad for parameter in net.parameters()]
    if not learns:
        return []
    if not any(learns):
        return [net]
    return [part for child in net.children() for part in frozen_parts(child)]


def stacked(net: nn.Module, layers: nn.ModuleList) -> Groups:
    """Groups of a transformer: what is registered before its layers, each layer, what comes after."""
    names = {id(parameter) for parameter in layers.parameters()}
    order = list(net.parameters())
    inside = [index for index, parameter in enumerate(order) if id(parameter) in names]
    stem: list[nn.Module | nn.Parameter] = [*order[: inside[0]]]
    top: list[nn.Module | nn.Parameter] = [*order[inside[-1] + 1 :]]
    middle: Groups = [[layer] for layer in layers]
    return [group for group in (stem, *middle, top) if group]


def longest_stack(net: nn.Module) -> nn.ModuleList:
    """The layers of a network: its longest list of modules. Raises UserError when it has none."""
    stacks = [module for module in net.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not stacks:
        raise UserError(
            f"{type(net).__name__} has no list of layers; lock it whole (lock: true) or not at all"
        )
    return max(stacks, key=len)
