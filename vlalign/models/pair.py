"""The dual encoder: two towers, two heads, a learned multiplier and a bias."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlalign.models.heads import Head, MethodHead, projection
from vlalign.models.processors import Processor
from vlalign.models.tower import Adaptation, TowerModule, TowerSpec
from vlalign.specs import ModelSpec
from vlalign.types import Batch, Embeddings, Inputs, UserError

SIDES = ("image", "text")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What cosines are multiplied by: `init` and `max` are multipliers (1 / temperature)."""

    init: float = 14.3
    max: float = 100.0
    learn: bool = True

    def __post_init__(self) -> None:
        if not (0 < self.init <= self.max and math.isfinite(self.max)):
            raise ValueError(f"scale must be 0 < init <= max, finite, got init {self.init}, max {self.max}")


@dataclass(frozen=True, kw_only=True)
class Bias:
    """What is added to logits."""

    init: float = 0.0
    learn: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.init):
            raise ValueError(f"bias.init must be finite, got {self.init}")


class PairSpec(ModelSpec, Protocol):
    """A model spec that can also save what it built."""

    def at(self, folder: Path, trust_remote_code: bool) -> Self:
        """The same model from a saved folder."""

    def write(self, model: "DualEncoder", state: Mapping[str, Tensor], folder: Path) -> None:
        """Write a model that this spec built; `state` is plain (`DualEncoder.plain_state`)."""


class DualEncoder(nn.Module):
    """Images (query) and texts (key) -> unit rows of one space.

    `scale` [1] holds the logarithm of the multiplier, `bias` [1] is added to logits. `spec` is what built it.
    """

    spec: PairSpec

    def __init__(
        self,
        image: TowerModule,
        text: TowerModule,
        *,
        dim: int,
        head: Head = "linear",
        scale: Scale,
        bias: Bias,
    ) -> None:
        super().__init__()
        self.image, self.text, self.dim, self.scale_max = image, text, dim, scale.max
        self.image_head, self.text_head = (
            nn.Identity() if tower.projected else projection(tower.width, dim, head)
            for tower in (image, text)
        )
        self.scale = nn.Parameter(torch.tensor([math.log(scale.init)]), requires_grad=scale.learn)
        self.bias = nn.Parameter(torch.tensor([bias.init]), requires_grad=bias.learn)
        self.heads = nn.ModuleDict()

    def learn_for(self, heads: Mapping[str, nn.Module]) -> None:
        """Let methods' own modules learn with it; they leave `forward` as `extras`, and are not saved."""
        self.heads.update({name: MethodHead(module) for name, module in heads.items()})

    def adapt(self, image: Adaptation | TowerSpec, text: Adaptation | TowerSpec) -> None:
        """Lock the towers or put adapters on them, and enter training mode. Raises UserError."""
        for side, how in (("image", image), ("text", text)):
            try:
                self.tower(side).adapt(how)
            except ValueError as error:
                raise UserError(f"model.{side}: {error}") from error
        self.train()

    def tower(self, side: str) -> TowerModule:
        """The tower of `image` or `text`."""
        return {"image": self.image, "text": self.text}[side]

    def forward(self, batch: Batch) -> Embeddings:
        """Both sides of a batch, by its `towers`: of pairs, pictures and texts."""
        towers = batch.get("towers", SIDES)
        query, key = map(self._encode, towers, (batch["query"], batch["key"]))
        # As the rows, float32, also where parameters are bfloat16, which would round the multiplier again.
        scale, bias = self.scale.to(query.dtype).exp(), self.bias.to(query.dtype)
        extras = {
            f"{head}.{name}": x.to(query.dtype)
            for head, learnt in self.heads.items()
            for name, x in learnt().items()
        }
        return Embeddings(query, key, scale, bias, extras)

    def encode_image(self, inputs: Inputs) -> Tensor:
        """Unit rows [N, D], float32."""
        return self._encode("image", inputs)

    def encode_text(self, inputs: Inputs) -> Tensor:
        """Unit rows [N, D], float32."""
        return self._encode("text", inputs)

    def combined(self, image: Tensor, text: Tensor, fusion: float = 0.5) -> Tensor:
        """Unit rows [N, D] of what has both: `fusion` of the image's rows and the rest of the text's."""
        return F.normalize(fusion * image + (1 - fusion) * text, dim=-1)

    def _encode(self, side: str, inputs: Inputs) -> Tensor:
        features = inputs["features"] if "features" in inputs else self.tower(side)(inputs)
        return F.normalize((self.image_head if side == "image" else self.text_head)(features).float(), dim=-1)

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Keep the multiplier at most `scale_max`, in place."""
        self.scale.clamp_(max=math.log(self.scale_max))

    @property
    def locked(self) -> set[str]:
        """Sides whose tower does not learn, so that its features may be cached."""
        return {side for side in SIDES if self.tower(side).locked}

    def rest(self, side: str) -> None:
        """Let what reads that side alone learn nothing."""
        for part in (self.tower(side), getattr(self, f"{side}_head")):
            part.requires_grad_(False)

    def processors(self) -> tuple[Processor, Processor]:
        """Picklable callables for images and for texts."""
        return self.image.process, self.text.process

    def gradient_checkpointing(self) -> None:
        """Recompute the activations of the towers that learn."""
        for side in set(SIDES) - self.locked:
            self.tower(side).checkpoint_gradients()

    def plain_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of this model as the model without adapters and methods' heads has it."""
        kept = {name: x for name, x in state.items() if not name.startswith("heads.")}
        return self._by_tower(kept, "plain_state")

    def own_state(self, plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The reverse of `plain_state`, but for the adapters themselves."""
        return self._by_tower(plain, "own_state")

    def write(self, state: Mapping[str, Tensor], folder: Path) -> None:
        """As its spec writes it, and the adapters of each tower in PEFT's form. `state`: its own, whole."""
        self.spec.write(self, self.plain_state(state), folder)
        for side in SIDES:
            self.tower(side).write_adapters(side_state(state, side), folder / f"{side}_adapter")

    def _by_tower(self, state: Mapping[str, Tensor], change: str) -> dict[str, Tensor]:
        changed = {name: x for name, x in state.items() if not name.startswith(("image.", "text."))}
        for side in SIDES:
            own = getattr(self.tower(side), change)(side_state(state, side))
            changed |= {f"{side}.{name}": x for name, x in own.items()}
        return changed


def side_state(state: Mapping[str, Tensor], side: str) -> dict[str, Tensor]:
    """The part of a state dict that is one side's tower."""
    return {name.removeprefix(f"{side}."): x for name, x in state.items() if name.startswith(f"{side}.")}


def take_over(
    image: TowerModule,
    text: TowerModule,
    dim: int,
    log_scale: Tensor,
    bias: Tensor | None,
    given: tuple[Scale | None, Bias | None],
) -> DualEncoder:
    """A dual encoder of two projected towers that came as one model, its scale and bias kept unless given.

    A multiplier above 100 is kept; a bias learns when the model has one.
    """
    own_scale = Scale(init=log_scale.exp().item(), max=max(100.0, log_scale.exp().item()))
    own_bias = Bias(init=0.0 if bias is None else bias.item(), learn=bias is not None)
    model = DualEncoder(image, text, dim=dim, scale=given[0] or own_scale, bias=given[1] or own_bias)
    if given[0] is None:
        model.scale.data.copy_(log_scale.detach().reshape(1))
    return model
