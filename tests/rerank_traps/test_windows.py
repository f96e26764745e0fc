"""Layers that look near, that look at another's keys, or that keep a state: sharing changes nothing."""

import pytest
import torch
import transformers

from tests.language_models import SIZES, inputs, tokenizer
from vlalign.models.rerank_scorer import RerankScorer
from vlalign.registry import MODELS

GROUPS = [
    ("a red car", ["a red car near a tree", "a cat", "no"]),
    ("a small cat and a dog in the house", ["a dog", "the small cat"]),  # more tokens that are shared
    ("a tree", ["a tree in the house"]),
]
HEADS = {"num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.2}


def near():
    return transformers.MistralForCausalLM, transformers.MistralConfig, {"sliding_window": 40}


def near_and_far():
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    more = {"sliding_window": 40, "layer_types": kinds}
    return transformers.Gemma3ForCausalLM, transformers.Gemma3TextConfig, more


def one_for_two():
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    more = {"sliding_window": 40, "layer_types": kinds, "num_kv_shared_layers": 1, "global_head_dim": 8}
    more |= {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 600}
    return transformers.Gemma4ForCausalLM, transformers.Gemma4TextConfig, more


def states():
    kinds = ["linear_attention", "full_attention", "linear_attention"]
    sizes = {f"linear_{name}_head_dim": 8 for name in ("key", "value")}
    more = {"layer_types": kinds, "linear_num_value_heads": 4, "linear_num_key_heads": 2, **sizes}
    return transformers.Qwen3_5ForCausalLM, transformers.Qwen3_5TextConfig, more


@pytest.fixture(params=[near, near_and_far, one_for_two, states], ids=lambda each: each.__name__)
def model(request, tmp_path):
    kind, config, more = request.param()
    words = tokenizer()
    torch.manual_seed(0)
    net = kind(config(**SIZES, **HEADS, vocab_size=len(words), max_position_embeddings=512, **more))
    net.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    return MODELS.decode({"name": "llm_reranker", "id": str(tmp_path), "prompt": "qwen3_reranker"}).build()


def answers(model, *groups) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Scores, and the gradient of their sum of squares."""
    model.zero_grad()
    scores = model(inputs(model, *groups)).scores
    scores.square().sum().backward()
    return scores.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_scores_and_gradients_are_those_of_each_prompt_read_whole(model):
    shared, gradients = answers(model, *GROUPS)
    model.process.share = False
    pairs = [(query, [each]) for query, several in GROUPS for each in several]
    alone = [answers(model, each) for each in pairs]
    torch.testing.assert_close(shared, torch.cat([scores for scores, _ in alone]), atol=1e-5, rtol=1e-5)
    for name, found in gradients.items():
        wanted = torch.stack([each[name] for _, each in alone]).sum(0)
        torch.testing.assert_close(found, wanted, atol=1e-4 * max(1.0, float(wanted.abs().max())), rtol=0)


def test_batches_score_alike_and_share_where_that_is_right(model):
    queries, candidates = zip(*GROUPS, strict=True)
    together = RerankScorer(model).score(queries, candidates)
    stateful = "linear_attention" in (getattr(model.net.config, "layer_types", None) or [])
    assert (inputs(model, *GROUPS)["pairs"]["prefix_ids"].shape[1] > 20) is not stateful
    model.process.share = False
    for mine, other in zip(together, RerankScorer(model, tokens=1).score(queries, candidates), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)
