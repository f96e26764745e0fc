"""Hidden states turned, and the model the same: QuaRot, Ashkboos et al. 2024, https://arxiv.org/abs/2404.00456.

Only what the weights take in: h -> hQ between layers, by any orthogonal Q. The paper's Hadamard matrices
inside of attention and MLP, which cost products when the model runs, are left out.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vlalign.ops.quantization import orthogonal
from vlalign.types import UserError

# RMSNorm before each part, and no other way into hidden states
KNOWN = ("llama", "mistral", "qwen2", "qwen3")


@torch.no_grad()
def rotate(net: Any, seed: int) -> None:
    """Turn a causal language model of transformers, in place; embeddings and head are two from then on.

    Gains of norms go into the weights after them. What it answers stays the same but for rounding. Raises
    UserError.
    """
    kind = net.config.model_type
    if kind not in KNOWN:
        raise UserError(
            f"rotate: hidden states can be turned in the families {', '.join(KNOWN)}, and this model is of "
            f"{kind}; leave rotate out"
        )
    body, embeddings, head = net.get_decoder(), net.get_input_embeddings(), net.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.clone(), requires_grad=head.weight.requires_grad)
    net.config.tie_word_embeddings, net.all_tied_weights_keys = False, {}
    turn = orthogonal(embeddings.weight.shape[1], seed).to(head.weight.device)
    _fold(body.norm, [head], turn)
    embeddings.weight.copy_(embeddings.weight.double() @ turn)
    for layer in body.layers:
        attention, mlp = layer.self_attn, layer.mlp
        _fold(layer.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj], turn)
        _fold(layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj], turn)
        for writer in (attention.o_proj, mlp.down_proj):
            writer.weight.copy_(turn.T @ writer.weight.double())
            if writer.bias is not None:
                writer.bias.copy_(turn.T @ writer.bias.double())


def _fold(norm: Any, readers: Iterable[nn.Linear], turn: Tensor) -> None:
    for reader in readers:
        reader.weight.copy_((reader.weight.double() * norm.weight.double()) @ turn)
    norm.weight.fill_(1)
