"""Tiny models with random weights, built from configs: nothing is downloaded."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

WORDS = [
    "a",
    "photo",
    "of",
    "the",
    "red",
    "green",
    "blue",
    "cat",
    "dog",
    "car",
    "tree",
    "house",
    "sky",
    "with",
    "two",
    "small",
    "large",
    "and",
    "in",
    "on",
]
TEXTS = [
    "a photo of a cat",
    "two small red car in the house with a large tree and a dog",
    "sky",
    "the blue dog",
]
OPEN_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PREPROCESS = {
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.3, 0.4],
    "interpolation": "bilinear",
    "resize_mode": "squash",
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def texts() -> list[str]:
    return list(TEXTS)


@pytest.fixture
def images() -> list[Image.Image]:
    noise = np.random.default_rng(0)
    sizes = [(40, 50), (64, 64), (33, 70), (90, 41)]
    return [Image.fromarray(noise.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in sizes]


def open_clip_folder(folder: Path, config: dict | None = None) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    told = {"model_cfg": config or OPEN_CLIP, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(told))
    return f"local-dir:{folder}"


@pytest.fixture
def open_clip_id(tmp_path: Path) -> str:
    return open_clip_folder(tmp_path / "open_clip")


def word_tokenizer(ends: tuple[str, str], pad: str, **options):
    """A tokenizer of whole words that puts `ends` around a text."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = list(dict.fromkeys([pad, *ends, "[UNK]"]))
    ordered = [*special, *WORDS] if pad not in ends else ["[UNK]", *WORDS, *ends]
    vocabulary = {word: index for index, word in enumerate(ordered)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{ends[0]} $A {ends[1]}", special_tokens=[(end, vocabulary[end]) for end in ends]
    )
    names = {"unk_token": "[UNK]", "pad_token": pad, "bos_token": ends[0], "eos_token": ends[1]}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **options)


@pytest.fixture
def bert_id(tmp_path: Path) -> str:
    from transformers import BertConfig, BertModel

    tokenizer = word_tokenizer(("[CLS]", "[SEP]"), "[PAD]", model_max_length=20)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    return str(tmp_path / "bert")


@pytest.fixture
def vit_id(tmp_path: Path) -> str:
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**sizes, image_size=32, patch_size=16)).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    return str(tmp_path / "vit")


@pytest.fixture
def hf_clip_id(tmp_path: Path) -> str:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    tokenizer = word_tokenizer(("<start>", "<end>"), "<end>", model_max_length=20)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    text = {
        **sizes,
        **ends,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 20,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(
        text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 16}, projection_dim=16
    )
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPModel(config).save_pretrained(tmp_path / "hf_clip")
    CLIPProcessor(images, tokenizer).save_pretrained(tmp_path / "hf_clip")
    return str(tmp_path / "hf_clip")


@pytest.fixture
def siglip_id(tmp_path: Path) -> str:
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel, SiglipProcessor

    options = {"model_max_length": 16, "model_input_names": ["input_ids"]}
    tokenizer = word_tokenizer(("[CLS]", "[SEP]"), "[PAD]", **options)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    text = {**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "projection_size": 32}
    config = SiglipConfig(text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 16})
    model = SiglipModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(4.7651)  # multiplies by 117, as the released ones do
        model.logit_bias.fill_(-12.9)
    model.save_pretrained(tmp_path / "siglip")
    SiglipProcessor(SiglipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(
        tmp_path / "siglip"
    )
    return str(tmp_path / "siglip")
