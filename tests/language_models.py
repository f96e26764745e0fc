"""Tiny random language models with tokenizers of their own, in folders that transformers reads."""

from pathlib import Path
from typing import Any

import torch

from vlalign.registry import MODELS
from vlalign.types import Item

SENTENCES = [
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided.",
    'Note that the answer can only be "yes" or "no". Yes No True False yes no',
    "Given a web search query, retrieve relevant passages that answer the query",
    "a red car and a small cat near a tree, with a dog in the house",
    "system user assistant <Instruct>: <Query>: <Document>: think",
]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}


def tokenizer():
    """Byte-level BPE with ChatML's special tokens; `yes` and `no` are one token each."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[*SPECIAL, "<think>", "</think>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = [word for sentence in SENTENCES for word in sentence.replace('"', " ").split()]
    own.train_from_iterator(
        [*SENTENCES * 20, *words * 20, *["yes", "no", "Yes", "No", "True", "False"] * 50], trainer
    )
    made = PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made.chat_template = CHATML
    return made


def reranker(folder: Path, family: str = "qwen3", tied: bool = True, **fields: Any) -> Any:
    """A reranker over such a model, in evaluation mode."""
    told = {
        "name": "llm_reranker",
        "id": str(language_model(folder, family, tied)),
        "prompt": "qwen3_reranker",
    }
    return MODELS.decode(told | fields).build().eval()


def inputs(model: Any, *groups: tuple[str, list[str]]) -> dict[str, Any]:
    """A batch of queries with candidates, all texts."""
    read = [model.process.read(Item(text=query), [Item(text=x) for x in texts]) for query, texts in groups]
    return {"pairs": model.process.join(read)}


def language_model(folder: Path, family: str = "qwen3", tied: bool = True, seed: int = 0) -> Path:
    """A folder with a model of the family `qwen3` or `llama` (SmolLM2's), and a tokenizer."""
    import transformers

    words = tokenizer()
    sizes = SIZES | {"num_key_value_heads": 2, "vocab_size": len(words), "tie_word_embeddings": tied}
    config, kind = {
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    }[family]
    torch.manual_seed(seed)
    more = {"head_dim": 8} if family == "qwen3" else {}
    net = kind(config(**sizes, **more, max_position_embeddings=512, initializer_range=0.2))
    net.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
