"""The Linear layers of a transformer changed one after the other, each by what it then reads.

Frantar et al. 2022, https://arxiv.org/abs/2210.17323, section 4: a layer's inputs come from those before it
as they are by then. Layers that read the same, such as queries, keys and values, are changed together.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vlalign.models.ranker import Ranker
from vlalign.models.watched import Watched, blocks, hidden
from vlalign.ops.quantization import Moments, Quantized
from vlalign.specs import Importance
from vlalign.types import UserError

Told = tuple[tuple[Any, ...], dict[str, Any]]  # what a block is called with after the hidden states
Change = Callable[[Tensor, Tensor], Quantized]  # of a weight [O, I], by the moments of its inputs [I, I]


class _Seen(Exception):
    """What was looked for has been found; the rest of a forward is not needed."""


class Layerwise:
    """`texts`: what `model.process.read` gives, each read alone. `importance`: weighs the tokens of a text by
    `weigh`, scores [T] -> weights [T].
    """

    @torch.no_grad()
    def __init__(
        self,
        model: Ranker,
        texts: Sequence[Any],
        importance: Importance | None,
        weigh: Callable[[Tensor], Tensor],
    ) -> None:
        """Raises UserError where a layer reads anything else than what the one before it gives."""
        self.net, self.blocks = model.net, blocks(model.net)
        self.importance, self.weigh = importance, weigh
        self.states: list[Tensor] = []  # [1, T, D] of each text, before the next block
        self.told: list[list[Told]] = []  # of each text, by block
        self.ids: list[Tensor] = []
        for text in texts:
            self._read(model, text)
        self.counts = torch.cat(self.ids).bincount()

    @torch.no_grad()
    def run(
        self, change: Change, progress: Callable[[int], None] = lambda count: None
    ) -> dict[str, Quantized]:
        """Change the weights in place; what they are now, by the name of their layer in the network.

        `progress` hears of blocks that are done. Raises UserError.
        """
        names, found = {module: name for name, module in self.net.named_modules()}, dict[str, Quantized]()
        for at in range(len(self.blocks)):
            weights = [self._weights(at, place) for place in range(len(self.states))]
            for layers in self._groups(at):
                moments = Moments(layers[0].in_features)
                for place, own in enumerate(weights):
                    moments.add(self._input(at, place, layers[0])[0], own)
                for layer in layers:
                    made = found[names[layer]] = change(layer.weight, moments.value)
                    layer.weight.copy_(made.weight)
            self.states = [self._output(at, place) for place in range(len(self.states))]
            progress(1)
        return found

    def _read(self, model: Ranker, text: Any) -> None:
        """Record one text's way through the network."""
        own, gone = list[Told](), list[Tensor]()

        def enter(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kwargs = dict(kwargs)
            state, args = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
            if gone and not torch.equal(state, gone[-1]):
                raise UserError(
                    f"{type(self.net).__name__}: its layers read more than the one before gives, as of "
                    "pictures; give it rows without"
                )
            if not own:
                self.states.append(state)
            own.append((args, kwargs))

        def leave(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            gone.append(hidden(output))

        hooks = [each.register_forward_pre_hook(enter, with_kwargs=True) for each in self.blocks]
        hooks += [each.register_forward_hook(leave) for each in self.blocks]
        inputs = {name: x.to(model.device) for name, x in model.process.join([[text]]).items()}
        try:
            model({"pairs": inputs})
        finally:
            for hook in hooks:
                hook.remove()
        self.told.append(own)
        self.ids.append(inputs["input_ids"][0])

    def _output(self, at: int, place: int) -> Tensor:
        args, kwargs = self.told[place][at]
        return hidden(self.blocks[at](self.states[place], *args, **kwargs))

    def _weights(self, at: int, place: int) -> Tensor | None:
        if self.importance is None:
            return None
        with Watched(self.net, at) as watched:
            self._output(at, place)
        ids = self.ids[place]
        told = watched.told(ids, self.counts[ids], getattr(self.importance, "attends", False))
        return self.weigh(self.importance(told))

    def _groups(self, at: int) -> list[list[nn.Linear]]:
        """The Linear layers of a block that read the same, in the order of reading."""
        found: list[tuple[Tensor, list[nn.Linear]]] = []

        def look(layer: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
            assert isinstance(layer, nn.Linear)
            if args[0].shape[:2] != self.states[0].shape[:2]:
                raise UserError(
                    f"{type(self.net).__name__}: a part of it reads some of the tokens, as experts do; give "
                    "a model whose layers read all"
                )
            own = next((layers for read, layers in found if read is args[0]), None)
            if own is None:
                found.append((args[0], own := []))
            own.append(layer)

        with _hooked((each for each in self.blocks[at].modules() if isinstance(each, nn.Linear)), look):
            self._output(at, 0)
        return [layers for _, layers in found]

    def _input(self, at: int, place: int, layer: nn.Linear) -> Tensor:
        """What it reads of a text, [1, T, I]."""
        found = list[Tensor]()

        def look(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            found.append(args[0])
            raise _Seen

        hook = layer.register_forward_pre_hook(look)
        try:
            self._output(at, place)
        except _Seen:
            pass
        finally:
            hook.remove()
        return found[0]


@contextmanager
def _hooked(modules: Any, look: Callable[..., None]) -> Iterator[None]:
    """Inside, `look` is called with each module, its arguments and what it gives."""
    hooks = [each.register_forward_hook(look) for each in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
