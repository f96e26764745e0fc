"""A decoder of transformers over prompts: what several begin with alike is read once, pictures included."""

from collections.abc import Mapping, Sequence
from copy import copy
from inspect import signature
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vlalign.models.multimodal import tower_of
from vlalign.models.pictures import Pictures, joined
from vlalign.models.sight import Seen, Sight
from vlalign.types import Inputs


class Reading:
    """Hidden states of a network without its head. `net`: of transformers, with a head for words.

    `still`: modules that neither learn nor change. `pictures`: how prompts have them, None for texts alone.
    """

    def __init__(self, net: Any, pictures: Pictures | None = None) -> None:
        self.decoder: Any = net.get_decoder()
        self.body = self.decoder if pictures is None else net.base_model
        self.sight = None if pictures is None else Sight(self.body)
        self.picture = None if pictures is None else pictures.token
        self.still, self.blank = list[nn.Module](), dict[str, Tensor]()
        if pictures is not None:
            self.blank = joined([pictures.read(Image.new("RGB", (32, 32)))])
            if not any(each.requires_grad for each in tower_of(net).parameters()):
                self.still = [tower_of(net)]

    def of_batch(self, inputs: Inputs) -> Tensor:
        """Of every token that is not shared, [P, tokens, width]; a batch's pictures are looked at first."""
        before, own, zero = self.looked(inputs)
        prefix = self.prefix(inputs, before) if inputs["prefix_mask"].shape[1] else None
        return self.states(inputs, prefix, own) + zero

    def states(self, inputs: Inputs, prefix: Any, seen: Sequence[Seen] | None) -> Tensor:
        """The same where that is known. `prefix`: what `prefix` gave, None where nothing is shared.

        `seen`: the pictures after it.
        """
        inputs = _beside(inputs)
        owner, mask, before = inputs["owner"], inputs["mask"], inputs["prefix_mask"]
        kept: dict[str, Any] = {"use_cache": False}
        if prefix is not None:
            counts = owner.bincount(minlength=len(before)).tolist()
            kept = {"use_cache": True, self._cache_name(): _spread(prefix, counts)}
        # Padding after a prompt is out of its tokens' sight, and attention is faster where it needs no mask.
        both = None if prefix is None or before.all() else torch.cat([before[owner], mask], 1)
        return self._states(inputs, "", both, seen, kept)

    def prefix(self, inputs: Inputs, seen: Sequence[Seen] | None) -> Any:
        """The cache of what the prompts of each query begin with alike, [Q, ...] a layer."""
        inputs, cache = _beside(inputs), self._cache()
        kept = {"use_cache": True, self._cache_name(): cache}
        mask = None if inputs["prefix_mask"].all() else inputs["prefix_mask"]
        self._states(inputs, "prefix_", mask, seen, kept)
        return cache

    def _states(
        self, inputs: Inputs, side: str, mask: Tensor | None, seen: Sequence[Seen] | None, kept: Any
    ) -> Tensor:
        """[rows, tokens, width]. `mask` is of what was read before as well, None where all may be seen."""
        pictures = self.sight.told(seen) if seen and self.sight is not None else {}
        told = {"attention_mask": mask, "position_ids": self._places(inputs, side), **pictures, **kept}
        found: Tensor = self.body(inputs[f"{side or 'input_'}ids"], **told).last_hidden_state
        return found

    def looked(self, inputs: Inputs) -> tuple[list[Seen] | None, list[Seen] | None, Tensor | float]:
        """The pictures of prefixes, those after them, and zero with a gradient for what learns to see.

        A batch without pictures looks at a blank one: ZeRO-3 and DDP want the same modules of all processes.
        """
        if self.sight is None:
            return None, None, 0.0
        names = [name for name in self.blank if name in inputs or f"prefix_{name}" in inputs]
        told = {
            name: torch.cat([inputs[each] for each in (f"prefix_{name}", name) if each in inputs])
            for name in names
        }
        device = inputs["input_ids"].device
        seen = self.sight.look(told or {name: x.to(device) for name, x in self.blank.items()})
        if not told:
            return None, None, 0 * torch.stack([x.sum() for each in seen for x in each]).sum()
        count = int(inputs["prefix_pictures"].sum())
        return seen[:count], seen[count:], 0.0

    def _places(self, inputs: Inputs, side: str) -> Tensor:
        """Positions of tokens: [rows, tokens], or [3, rows, tokens]."""
        if self.picture is None or not hasattr(self.body, "get_rope_index"):
            if side:
                return (inputs["prefix_mask"].cumsum(1) - 1).clamp(min=0)
            own = torch.arange(inputs["mask"].shape[1], device=inputs["mask"].device)  # of padding as well
            return inputs["prefix_mask"].sum(1)[inputs["owner"], None] + own
        ids, mask, grid = inputs["prefix_ids"], inputs["prefix_mask"], inputs.get("prefix_image_grid_thw")
        if not side:
            owner = inputs["owner"]
            ids, mask = (
                torch.cat([ids[owner], inputs["input_ids"]], 1),
                torch.cat([mask[owner], inputs["mask"]], 1),
            )
            grid = _grids(inputs)
        kinds = (ids == self.picture).int()
        some = mask.any(1)  # a query of one prompt shares nothing
        places = ids.new_zeros(3, *ids.shape)
        told = {"image_grid_thw": grid, "attention_mask": mask[some]}
        places[:, some] = self.body.get_rope_index(ids[some], kinds[some], **told)[0]
        return places[..., -inputs[f"{side}mask"].shape[1] :]

    @property
    def shares(self) -> bool:
        """Whether it keeps all of a prefix as keys and values, and no state that what comes after changes."""
        return all(hasattr(layer, "keys") for layer in self._cache().layers)

    def _cache(self) -> Any:
        """An empty one."""
        from transformers import DynamicCache

        return DynamicCache(config=self.decoder.config)

    def _cache_name(self) -> str:
        """What the version of transformers that is installed calls it."""
        return "cache" if "cache" in signature(self.body.forward).parameters else "past_key_values"


def ends(states: Tensor, inputs: Inputs) -> Tensor:
    """The state of each prompt's last token, [P, width]."""
    return states[torch.arange(len(states), device=states.device), inputs["mask"].sum(1) - 1]


def _beside(inputs: Inputs) -> Inputs:
    """With the padding of prefixes before them: a window of attention counts places, not tokens."""
    mask = inputs["prefix_mask"]
    places = torch.arange(mask.shape[1], device=mask.device) + mask.sum(1, keepdim=True)
    places = places % max(mask.shape[1], 1)
    return {**inputs, **{name: inputs[name].gather(1, places) for name in ("prefix_ids", "prefix_mask")}}


def _spread(prefix: Any, counts: Sequence[int]) -> Any:
    """A cache that begins with what `prefix` has of each query, as often as it has prompts."""
    own = copy(prefix)
    own.layers = [copy(layer) for layer in prefix.layers]
    for layer in own.layers:
        if layer.keys is not None:  # some layers look at those of another
            layer.keys, layer.values = (_rows(x, counts) for x in (layer.keys, layer.values))
    return own


def _rows(x: Tensor, counts: Sequence[int]) -> Tensor:
    """Each row so many times: a view where there is one, and cheaper to differentiate than by an index."""
    each = [row.expand(count, *row.shape) for row, count in zip(x.unbind(), counts, strict=True)]
    return each[0] if len(each) == 1 else torch.cat(each)


def _grids(inputs: Mapping[str, Tensor]) -> Tensor | None:
    """Of the pictures of each prompt, those of its prefix before its own."""
    none = inputs["owner"].new_zeros(0, 3)
    before, own = (
        torch.split(inputs.get(f"{side}image_grid_thw", none), inputs[f"{side}pictures"].tolist())
        for side in ("prefix_", "")
    )
    owners = inputs["owner"].tolist()
    found = torch.cat([x for q, each in zip(owners, own, strict=True) for x in (before[q], each)])
    return found if len(found) else None
