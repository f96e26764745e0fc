"""Learned prompts of frozen towers: CoOp, Zhou et al. 2022, https://arxiv.org/abs/2109.01134 (texts), and
shallow VPT, Jia et al. 2022, https://arxiv.org/abs/2203.12119 (pictures).
"""

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from vlalign.types import UserError

STD = 0.02  # CoOp's
FEWEST = 3  # tokens that a text needs: its first, a word, its last


class SoftPrompts(nn.Module):
    """`count` vectors [P, W], the same in every row, that stand after its first token while a network reads.

    Hooks of the network put them in and take them out again, so that pooling sees a row's own tokens alone.
    """

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.count, self.vectors = count, nn.Parameter(torch.randn(count, width) * STD)

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, T, W] -> [N, T + P, W]."""
        return _among(tokens, self.vectors.to(tokens.dtype).expand(len(tokens), -1, -1))

    def without(self, tokens: Tensor) -> Tensor:
        """[N, T + P, W] -> [N, T, W]."""
        return torch.cat([tokens[:, :1], tokens[:, 1 + self.count :]], dim=1)

    # Bound methods, not functions of this object, so that a copy of a network calls its own copy of this.
    def enter(self, module: nn.Module, inputs: Any, tokens: Tensor) -> Tensor:
        """After the module whose output the layers read."""
        return self.forward(tokens)

    def leave(self, module: nn.Module, inputs: Any, tokens: Tensor) -> Tensor:
        """After the layers."""
        return self.without(tokens)

    def enter_words(self, net: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Before a text model of transformers: vectors in place of ids, to which it adds positions."""
        given = {**given, "inputs_embeds": self(net.get_input_embeddings()(given["input_ids"]))}
        del given["input_ids"]
        if (mask := given.get("attention_mask")) is not None:
            given["attention_mask"] = _among(mask, mask.new_ones(len(mask), self.count))
        return args, given

    def leave_words(self, net: Any, inputs: Any, output: Any) -> Any:
        """After a text model of transformers."""
        output.last_hidden_state = self.without(output.last_hidden_state)
        return output


def between(first: nn.Module, last: nn.Module, count: int, width: int) -> SoftPrompts:
    """Prompts that enter after the first module and leave after the last."""
    prompts = SoftPrompts(count, width)
    first.register_forward_hook(prompts.enter)
    last.register_forward_hook(prompts.leave)
    return prompts


def in_pictures(net: Any, count: int) -> SoftPrompts:
    """Prompts among a picture's patches; they have no positions.

    Raises UserError for anything but a plain vision transformer of open_clip, timm or transformers.
    """
    from open_clip.transformer import VisionTransformer as OfOpenClip
    from timm.models.vision_transformer import VisionTransformer as OfTimm

    net = getattr(net, "trunk", net)  # open_clip's wrapper of a network of timm
    if isinstance(net, OfOpenClip):
        return between(net.ln_pre, net.transformer, count, net.transformer.width)
    if isinstance(net, OfTimm):
        return between(net.norm_pre, net.norm, count, net.embed_dim)
    if type(net).__name__ in ("ViTModel", "Dinov2Model"):
        return between(net.embeddings, net.layernorm, count, net.config.hidden_size)
    raise UserError(
        f"prompts: only plain vision transformers of open_clip, timm and transformers (ViT, DINOv2), hf_text "
        f"and causal texts of open_clip take prompts, this is {type(net).__name__}; use prompts: 0, or lora"
    )


def in_words(net: Any, tokenizer: Any, count: int) -> SoftPrompts:
    """Prompts in a text model of transformers. Raises UserError for one that cannot have them."""
    if tokenizer.padding_side == "left":
        raise UserError(
            "prompts: this tower's tokenizer pads on the left, where they would stand among the padding; use "
            "prompts: 0, or lora"
        )
    if "inputs_embeds" not in signature(net.forward).parameters:
        raise UserError(
            f"prompts: {type(net).__name__} takes token ids, and no vectors in their place; use prompts: 0, "
            "or lora"
        )
    prompts = SoftPrompts(count, net.get_input_embeddings().embedding_dim)
    net.register_forward_pre_hook(prompts.enter_words, with_kwargs=True)
    net.register_forward_hook(prompts.leave_words)
    return prompts


def room(longest: int, count: int) -> int:
    """Tokens that are left to a text. Raises UserError when they are too few for any."""
    if longest - count < FEWEST:
        raise UserError(
            f"prompts: this tower reads {longest} tokens, and {count} prompts leave too few to a text; take "
            f"at most {longest - FEWEST}"
        )
    return longest - count


def _among(tokens: Tensor, others: Tensor) -> Tensor:
    """Others after the first token."""
    return torch.cat([tokens[:, :1], others, tokens[:, 1:]], dim=1)
