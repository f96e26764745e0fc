"""Multi-head attention of four Linear layers in place of torch's fused one: each can have an adapter."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PARTS = ("q_proj", "k_proj", "v_proj")


class SplitAttention(nn.Module):
    """Same outputs as the `nn.MultiheadAttention` it copies; it gives no attention weights."""

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        if fused.bias_k is not None or fused.add_zero_attn:
            raise ValueError("attention with add_bias_kv or add_zero_attn cannot be split for LoRA")
        self.heads, self.dropout, self.batch_first = fused.num_heads, fused.dropout, fused.batch_first
        joint = fused.in_proj_weight
        weights = (
            joint.chunk(3) if joint is not None else [getattr(fused, f"{part}_weight") for part in PARTS]
        )
        biases = fused.in_proj_bias.chunk(3) if fused.in_proj_bias is not None else [None] * 3
        self.q_proj, self.k_proj, self.v_proj = (linear(w, b) for w, b in zip(weights, biases, strict=True))
        self.out_proj = linear(fused.out_proj.weight, fused.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Torch's signature. Masks are added to the scores or, as bool, True where attention is forbidden."""
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = (
            getattr(self, part)(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [N, heads, T, D / heads]
            for part, x in zip(PARTS, (query, key, value), strict=True)
        )
        mask = _additive(attn_mask, q)
        if mask is not None and mask.ndim == 3:  # [N * heads, T, S]
            mask = mask.reshape(-1, self.heads, *mask.shape[1:])
        padding = _additive(key_padding_mask, q)
        if padding is not None:
            mask = padding[:, None, None, :] if mask is None else mask + padding[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)), None


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A Linear of its own copies; it draws no random numbers."""
    new = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta", dtype=weight.dtype)
    new = new.to_empty(device=weight.device)
    with torch.no_grad():
        new.weight.copy_(weight)
        if bias is not None:
            new.bias.copy_(bias)
    return new


def _additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return None if mask is None else mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))


def split(net: nn.Module) -> list[str]:
    """Replace every `nn.MultiheadAttention` inside a network; their names, for `fuse` and `unfuse`."""
    found = [
        (name, module) for name, module in net.named_modules() if isinstance(module, nn.MultiheadAttention)
    ]
    for name, module in found:
        net.set_submodule(name, SplitAttention(module).train(module.training))
    return [name for name, _ in found]


def fuse(state: dict[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """A state dict with the named attentions as torch lays them out."""
    state = dict(state)
    for name in names:
        weights = [state.pop(f"{name}.{part}.weight") for part in PARTS]
        biases = [state.pop(f"{name}.{part}.bias", None) for part in PARTS]
        if len({weight.shape for weight in weights}) == 1:
            state[f"{name}.in_proj_weight"] = torch.cat(weights)
        else:
            state |= {f"{name}.{part}_weight": w for part, w in zip(PARTS, weights, strict=True)}
        if biases[0] is not None:
            state[f"{name}.in_proj_bias"] = torch.cat([bias for bias in biases if bias is not None])
    return state


def unfuse(state: dict[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """The reverse of `fuse`."""
    state = dict(state)
    for name in names:
        joint, bias = state.pop(f"{name}.in_proj_weight", None), state.pop(f"{name}.in_proj_bias", None)
        weights = joint.chunk(3) if joint is not None else [state.pop(f"{name}.{p}_weight") for p in PARTS]
        state |= {f"{name}.{part}.weight": w for part, w in zip(PARTS, weights, strict=True)}
        if bias is not None:
            state |= {f"{name}.{part}.bias": b for part, b in zip(PARTS, bias.chunk(3), strict=True)}
    return state
