"""A dual encoder of one tower, a language model of transformers, which reads pictures and texts alike."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlalign.models import causal, multimodal
from vlalign.models.fetching import fetching
from vlalign.models.hf_towers import HFTower
from vlalign.models.lora import Adapters, Lora
from vlalign.models.one_word import SummaryPrompts
from vlalign.models.packages import model_folder
from vlalign.models.pair import Bias, DualEncoder, Scale, side_state
from vlalign.models.reading import Reading, ends
from vlalign.types import Inputs, UserError

Pool = Literal["last", "mean"]


def load(id: str, pretrained: bool, dtype: str) -> tuple[Any, Any, Any]:
    """The network, its tokenizer, and its processor where it sees, else None. Raises UserError.

    `id`: a Hub id, a folder, or `package:NAME`; without pretrained random weights.
    """
    import transformers

    from vlalign.models import grid_tower

    grid_tower.register()
    id = model_folder(id)
    with fetching(id, "transformers"):
        config = transformers.AutoConfig.from_pretrained(id)
    if not hasattr(config, "vision_config"):
        return *causal.load(id, pretrained, dtype), None
    net, processor = multimodal.load(id, pretrained, dtype)
    return net, processor.tokenizer, processor


class LanguageTower(HFTower):
    """The state of a prompt's last token, or the mean of all of its tokens, the last layer's norm included.

    Its vocabulary, embeddings and head, does not learn.
    """

    projected = True

    def __init__(
        self,
        net: Any,
        process: SummaryPrompts,
        pool: Pool,
        learn: Sequence[multimodal.Part] = ("language",),
        lora: Lora | None = None,
    ) -> None:
        """`learn`: the parts whose weights change; with `lora` the language model's are adapters.

        Raises UserError.
        """
        causal.refuse_longer(net, process.length, "length")
        config = net.config.get_text_config()
        told = {**net.config.to_dict(), "pool": pool}
        super().__init__(net, config.hidden_size, process, told, ())
        self.pool = pool
        if process.pictures is not None:
            multimodal.choose(net, learn, None)
        elif tuple(learn) != ("language",):
            raise UserError(f"model.learn: this model has no part that sees, got {list(learn)}")
        for part in (net.get_input_embeddings(), net.get_output_embeddings()):
            part.requires_grad_(False)
        self.reading = Reading(net, process.pictures)
        self._asleep = tuple(self.reading.still)
        if lora is not None:
            self._lay(lora)

    def forward(self, inputs: Inputs) -> Tensor:
        """What `SummaryPrompts` gives of N items -> features [N, width]."""
        ids = inputs["input_ids"]
        none = {"prefix_ids": ids.new_zeros(len(ids), 0), "prefix_mask": ids.new_zeros(len(ids), 0)}
        counts = {name: ids.new_zeros(len(ids)) for name in ("prefix_pictures", "pictures")}
        inputs = {**none, **counts, **inputs, "owner": torch.arange(len(ids), device=ids.device)}
        sight = self.reading.sight if "picture_rows" in inputs else None
        seen = None if sight is None else sight.look(inputs)
        states = self.reading.states(inputs, None, seen)  # [N, T, width]
        if self.pool == "last":
            return ends(states, inputs)
        weight = inputs["mask"].unsqueeze(-1).to(states.dtype)
        return (states * weight).sum(1) / weight.sum(1)

    def of_pictures(self) -> list[nn.Parameter]:
        """What reads pictures alone."""
        if self.reading.sight is None:
            return []
        found = multimodal.parts(self.net)
        return [*found["tower"], *found["projector"]]

    def _lay(self, lora: Lora) -> None:
        """Adapters on the language model, as layers of the whole network; what else learns still does."""
        decoder = self.net.get_decoder()
        [name] = [name for name, module in self.net.named_modules() if module is decoder]
        own = {id(each) for each in decoder.parameters()}
        others = [each for each in self.net.parameters() if each.requires_grad and id(each) not in own]
        layers = tuple(f"{name}.{layer}" for layer in lora.layers(decoder))
        self.adapters = Adapters(self.net, replace(lora, target=layers))
        for each in others:
            each.requires_grad_(True)


class OneTower(DualEncoder):
    """Both sides are one tower, whose parameters are there once: its weights are called `image`'s."""

    image: LanguageTower

    def __init__(self, tower: LanguageTower, scale: Scale, bias: Bias) -> None:
        super().__init__(tower, tower, dim=tower.width, scale=scale, bias=bias)
        del self.text
        object.__setattr__(self, "text", tower)  # outside of the tree of modules

    @property
    def net(self) -> Any:
        """The network of transformers."""
        return self.image.net

    def rest(self, side: str) -> None:
        """No text is read by what reads pictures; all else reads both."""
        if side == "image":
            for each in self.image.of_pictures():
                each.requires_grad_(False)

    def write(self, state: Mapping[str, Tensor], folder: Path) -> None:
        """As its spec writes it, and the adapters in PEFT's form, as `adapter/`. `state`: its own, whole."""
        self.spec.write(self, self.plain_state(state), folder)
        self.image.write_adapters(side_state(state, "image"), folder / "adapter")

    def _by_tower(self, state: Mapping[str, Tensor], change: str) -> dict[str, Tensor]:
        rest = {name: x for name, x in state.items() if not name.startswith("image.")}
        own = getattr(self.image, change)(side_state(state, "image"))
        return rest | {f"image.{name}": x for name, x in own.items()}
