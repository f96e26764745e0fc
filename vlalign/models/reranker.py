"""A language model that answers yes or no about a pair; only those two rows of its head are multiplied."""

from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from vlalign.models.lora import Adapters, Lora
from vlalign.models.prompts import Prompts
from vlalign.specs import ModelSpec
from vlalign.types import Batch, Inputs, PairScores, UserError


class RerankerSpec(ModelSpec, Protocol):
    """A model spec that can also save what it built."""

    def at(self, folder: Path, trust_remote_code: bool) -> Self:
        """The same model from a saved folder."""
        ...

    def write(self, model: "Reranker", state: Mapping[str, Tensor], folder: Path) -> None:
        """Write a model that this spec built; `state` is plain (`Reranker.plain_state`)."""
        ...


class Reranker(nn.Module):
    """Prompts -> logits of two words. `net`: a causal language model of transformers; `spec` built it.

    Its vocabulary, embeddings and head, does not learn: so the rows of the two words can be kept apart, in
    float32, and stay what the saved model has, whether embeddings and head are tied or not.
    """

    spec: RerankerSpec
    answers: Tensor  # [2, width], or [1, width] without a no

    def __init__(self, net: Any, process: Prompts, lora: Lora | None) -> None:
        """Raises UserError for a model whose logits are more than hidden states times a head."""
        super().__init__()
        self.net, self.process = net, process
        _refuse_bent_logits(net.config)
        words = [process.template.yes, *([process.template.no] if process.template.no else [])]
        self.words = [process.answer(word) for word in words]
        self.register_buffer("answers", self._rows(), persistent=False)
        self.register_load_state_dict_post_hook(_keep_rows)  # type: ignore[no-untyped-call]
        self.vocabulary = False  # whether the sum over all words is wanted
        for part in (net.get_input_embeddings(), net.get_output_embeddings()):
            part.requires_grad_(False)
        self.adapters = None
        if lora is not None:
            net.requires_grad_(False)
            self.adapters = Adapters(net.get_decoder(), lora)
        self.train()

    def forward(self, batch: Batch) -> PairScores:
        """Of each pair of a batch."""
        return self.answer(self.last(batch["pairs"]))

    def answer(self, last: Tensor) -> PairScores:
        """By the hidden state at the end of each prompt, [P, width]."""
        with torch.autocast(last.device.type, enabled=False):
            hidden, answers = last.float(), self.answers.float()
            yes = hidden @ answers[0]
            no = hidden @ answers[1] if len(answers) > 1 else torch.zeros_like(yes)
            # One product, for a difference of two large logits would lose digits.
            scores = hidden @ (answers[0] - answers[1]) if len(answers) > 1 else yes
        total = None
        if self.vocabulary:
            total = self.net.get_output_embeddings()(last).float().logsumexp(-1)
        return PairScores(scores, yes, no, total)

    def last(self, inputs: Inputs, prefix: Any = None) -> Tensor:
        """The hidden state at the end of each prompt, [P, width]. `prefix`: if it was read already."""
        owner, mask, before = inputs["owner"], inputs["mask"], inputs["prefix_mask"]
        decoder = self.net.get_decoder()
        kept: dict[str, Any] = {"use_cache": False}
        if before.shape[1]:  # read once a query, its keys and values then copied to each of its prompts
            own, read = _cache(decoder), self.prefix(inputs) if prefix is None else prefix
            for index, layer in enumerate(read.layers):
                own.update(layer.keys[owner], layer.values[owner], index)
            kept = {"use_cache": True, _cache_name(decoder): own}
        states: Tensor = decoder(
            inputs["input_ids"],
            attention_mask=torch.cat([before[owner], mask], 1),
            position_ids=before.sum(1)[owner, None] + _places(mask),
            **kept,
        ).last_hidden_state
        return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]

    def prefix(self, inputs: Inputs) -> Any:
        """The cache of what the prompts of each query begin with alike, [Q, ...] a layer."""
        decoder, mask = self.net.get_decoder(), inputs["prefix_mask"]
        cache = _cache(decoder)
        kept = {"use_cache": True, _cache_name(decoder): cache}
        decoder(inputs["prefix_ids"], attention_mask=mask, position_ids=_places(mask), **kept)
        return cache

    def _rows(self) -> Tensor:
        """Those of the head for the words, a copy: under ZeRO-3 the head is in pieces later."""
        rows: Tensor = self.net.get_output_embeddings().weight[self.words]
        return rows.detach().float().clone()

    def gradient_checkpointing(self) -> None:
        """Recompute activations; what prompts share is then read with each of them."""
        self.net.gradient_checkpointing_enable({"use_reentrant": False})
        self.process.share = False

    def plain_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of this module as its network has it without adapters."""
        own = {name.removeprefix("net."): x for name, x in state.items() if name.startswith("net.")}
        return self._with_decoder(own, self.adapters.merged) if self.adapters else own

    def own_state(self, plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The reverse of `plain_state`, but for the adapters themselves."""
        own = self._with_decoder(plain, self.adapters.under) if self.adapters else plain
        return {f"net.{name}": x for name, x in own.items()}

    def write(self, state: Mapping[str, Tensor], folder: Path) -> None:
        """As its spec writes it, and its adapters in PEFT's form, as `adapter/`. `state`: its own, whole."""
        self.spec.write(self, self.plain_state(state), folder)
        if self.adapters is not None:
            own = {name.removeprefix("net."): x for name, x in state.items() if name.startswith("net.")}
            self.adapters.write(own, folder / "adapter")

    def _with_decoder(
        self, state: Mapping[str, Tensor], change: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The state of the network, that of its decoder changed."""
        inner = f"{self.net.base_model_prefix}."
        decoder = {name.removeprefix(inner): x for name, x in state.items() if name.startswith(inner)}
        rest = {name: x for name, x in state.items() if not name.startswith(inner)}
        return rest | {f"{inner}{name}": x for name, x in change(decoder).items()}


def _keep_rows(model: Any, keys: Any) -> None:
    """After other weights were loaded."""
    model.answers.copy_(model._rows())


def _places(mask: Tensor) -> Tensor:
    """Positions of tokens that are padded on the right."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def _cache(decoder: Any) -> Any:
    """An empty one."""
    from transformers import DynamicCache

    return DynamicCache(config=decoder.config)


def _cache_name(decoder: nn.Module) -> str:
    """What the version of transformers that is installed calls it."""
    return "cache" if "cache" in signature(decoder.forward).parameters else "past_key_values"


def _refuse_bent_logits(config: Any) -> None:
    """Raises UserError."""
    told = config.get_text_config()
    for name, plain in (("final_logit_softcapping", None), ("logit_scale", 1), ("logits_scaling", 1)):
        if getattr(told, name, plain) not in (None, plain):
            raise UserError(
                f"{config.model_type}: its logits are changed after the head ({name}), which a reranker of "
                "two words does not do; use a model without it"
            )
