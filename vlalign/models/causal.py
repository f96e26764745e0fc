"""Causal language models of transformers: loaded, cut to their first layers, written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlalign.models import checkpoints, hf_towers
from vlalign.models.fetching import fetching
from vlalign.models.packages import model_folder
from vlalign.types import UserError

BENT = {  # by what: the value that changes nothing
    "final_logit_softcapping": None,
    "logits_soft_cap": None,
    "logit_scale": 1,
    "logits_scaling": 1,
    "lm_head_multiplier": 1,
}


def load(id: str, pretrained: bool, dtype: str) -> tuple[Any, Any]:
    """The network and its tokenizer; without pretrained random weights. Raises UserError.

    `id`: a Hub id, a folder, or `package:NAME`.
    """
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    id = model_folder(id)
    with fetching(id, "transformers"):
        if pretrained:
            net = auto.from_pretrained(id, dtype=getattr(torch, dtype))
        else:
            config = transformers.AutoConfig.from_pretrained(id)
            net = auto.from_config(config, dtype=getattr(torch, dtype))
    return net, hf_towers.tokenizer_of(id, net.config.get_text_config(), trust_remote_code=False)


def cut(net: Any, layers: int, id: str) -> None:
    """Keep the first layers and the last norm, in place. Raises UserError."""
    decoder, config = net.get_decoder(), net.config.get_text_config()
    have = len(decoder.layers)
    if layers > have:
        raise UserError(f"model.layer: {layers} layers are to be kept, and {id} has {have}")
    decoder.layers = decoder.layers[:layers]
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]


def write(net: Any, words: Any, state: Mapping[str, Tensor], folder: Path) -> None:
    """A folder that `from_pretrained` loads. `words`: a tokenizer, or the processor that has one.

    `state`: by the network's own names; tied weights stand once.
    """
    tied = {name for name in getattr(net, "all_tied_weights_keys", None) or {}}
    net.config.save_pretrained(str(folder))
    if net.generation_config is not None:
        net.generation_config.save_pretrained(str(folder))
    words.save_pretrained(str(folder))
    checkpoints.write(
        {name: x for name, x in state.items() if name not in tied}, folder / "model.safetensors"
    )


def first(tokenizer: Any) -> int:
    """The token that begins a text, of a tokenizer without one what ends it. Raises UserError."""
    for id in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if id is not None:
            return int(id)
    raise UserError(f"{type(tokenizer).__name__}: it has no token that begins or ends a text")


def refuse_bent_logits(net: Any) -> None:
    """Raises UserError for a model whose logits are more than hidden states times a head."""
    told = net.config.get_text_config()
    bent = [name for name, plain in BENT.items() if getattr(told, name, plain) not in (None, plain)]
    if getattr(net.get_output_embeddings(), "bias", None) is not None:
        bent.append("a bias")
    if bent:
        raise UserError(
            f"{net.config.model_type}: its logits are more than hidden states times a head "
            f"({', '.join(bent)}), which no model here does; use a model without it"
        )


def refuse_longer(net: Any, length: int, name: str) -> None:
    """Raises UserError where a model has no positions for so many tokens."""
    config = net.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or length
    if longest < length:
        raise UserError(
            f"model.{name}: {length} tokens are to be read, and {config.model_type} has positions for "
            f"{longest}"
        )
