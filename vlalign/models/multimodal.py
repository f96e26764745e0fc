"""Multimodal language models of transformers: loaded, and told apart by what of them may learn."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from vlalign.models import hf_towers
from vlalign.models.fetching import fetching
from vlalign.models.lora import Lora
from vlalign.types import UserError

Part = Literal["language", "projector", "tower"]


def load(id: str, pretrained: bool, dtype: str) -> tuple[Any, Any]:
    """The network and its processor; without pretrained random weights. Raises UserError."""
    import transformers

    from vlalign.models import grid_tower

    grid_tower.register()
    auto: Any = transformers.AutoModelForImageTextToText
    with fetching(id, "transformers"):
        if pretrained:
            net = auto.from_pretrained(id, dtype=getattr(torch, dtype))
        else:
            config = transformers.AutoConfig.from_pretrained(id)
            net = auto.from_config(config, dtype=getattr(torch, dtype))
    processor = hf_towers.processor_of("AutoProcessor", id)
    if not hasattr(processor, "image_token"):
        raise UserError(f"{id}: its processor has no token for pictures; take llm_reranker for texts")
    if not hasattr(net.base_model, "get_image_features"):
        raise UserError(f"{id}: {type(net).__name__} does not tell its features of pictures; take another")
    hf_towers.require_vocabulary(id, processor.tokenizer, net.config.get_text_config())
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return net, processor


def check(learn: Sequence[Part], lora: Lora | None, pixels: int | None) -> None:
    """Raises ValueError for fields that cannot be."""
    if pixels is not None and pixels < 1:
        raise ValueError(f"pixels must be >= 1, got {pixels}")
    if not learn or len(set(learn)) < len(learn):
        raise ValueError(f"learn must name parts of the model, each once, got {list(learn)}")
    if lora is not None and "language" not in learn:
        raise ValueError("lora puts adapters on the language model, which learn leaves out; add language")


def choose(net: Any, learn: Sequence[Part], lora: Lora | None) -> None:
    """Let some parts learn and no others; what `lora` is put on learns through it alone."""
    for part, weights in parts(net).items():
        for each in weights:
            each.requires_grad_(part in learn and not (lora and part == "language"))


def tower_of(net: Any) -> nn.Module:
    """What sees."""
    tower: nn.Module = net.get_encoder(modality="image")
    return tower


def parts(net: Any) -> dict[Part, list[nn.Parameter]]:
    """Parameters by what they are part of; those between tower and language model are the projector's."""
    words = (net.get_decoder(), net.get_output_embeddings())
    language = {id(each) for part in words for each in part.parameters()}
    sees = hasattr(net.base_model, "get_image_features")
    tower = {
        id(each)
        for name, each in (tower_of(net).named_parameters() if sees else ())
        if "merger" not in name  # Qwen's projector lies within its tower
    }
    found: dict[Part, list[nn.Parameter]] = {"language": [], "projector": [], "tower": []}
    for each in net.parameters():
        part: Part = "language" if id(each) in language else "tower" if id(each) in tower else "projector"
        found[part].append(each)
    return found
