"""Tiny random multimodal language models with processors of their own, in folders that transformers reads."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.language_models import SIZES, tokenizer
from vlalign.registry import MODELS

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}{% if part.type == 'image' %}IMAGE{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
SMOL = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
SMOL += [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
FAMILIES = ("qwen2_5_vl", "qwen3_vl", "smolvlm", "llava")
MROPE = {"rope_type": "default", "rope_theta": 10000.0}


def picture(seed: int, width: int = 40, height: int = 40) -> Image.Image:
    """Of colours that are its own."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.NEAREST)


def reranker(folder: Path, family: str = "qwen3_vl", **fields: Any) -> Any:
    """A reranker over such a model, in evaluation mode."""
    told = {
        "name": "mllm_reranker",
        "id": str(multimodal_model(folder, family)),
        "prompt": "qwen3_vl_reranker",
    }
    return MODELS.decode(told | fields).build().eval()


def multimodal_model(folder: Path, family: str = "qwen3_vl", seed: int = 0) -> Path:
    """A folder with a model of one of `FAMILIES`, and its processor."""
    if not folder.exists():
        torch.manual_seed(seed)
        net, processor = {"smolvlm": _smolvlm, "llava": _llava}.get(family, _qwen)(family)
        for weights in net.get_decoder().parameters():
            weights.data.mul_(3)  # far from uniform answers, and float32 still tells them to 1e-5
        net.save_pretrained(folder)
        processor.save_pretrained(folder)
    return folder


def _words(special: list[str], mark: str) -> tuple[Any, dict[str, Any]]:
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": special})
    words.chat_template = CHATML.replace("IMAGE", mark)
    sizes = SIZES | {"num_key_value_heads": 2, "vocab_size": len(words), "max_position_embeddings": 1024}
    return words, sizes | {"tie_word_embeddings": True, "pad_token_id": words.pad_token_id}


def _qwen(family: str) -> tuple[Any, Any]:
    import transformers

    words, sizes = _words(QWEN, "<|vision_start|><|image_pad|><|vision_end|>")
    start, end, image, video = words.convert_tokens_to_ids(QWEN)
    tokens = {"image_token_id": image, "video_token_id": video, "vision_start_token_id": start}
    tokens |= {"vision_end_token_id": end, "tie_word_embeddings": True}
    patches = {"patch_size": 8, "temporal_patch_size": 2, "merge_size": 2}
    size = {"shortest_edge": 256, "longest_edge": 4096}
    readers = {
        "image_processor": transformers.Qwen2VLImageProcessor(**patches, size=size),
        "tokenizer": words,
        "chat_template": words.chat_template,
    }
    eyes = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 8}
    if family == "qwen3_vl":
        video_processor = transformers.Qwen3VLVideoProcessor(**patches)
        processor = transformers.Qwen3VLProcessor(**readers, video_processor=video_processor)
        eyes |= {"out_hidden_size": 32, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
        rope = MROPE | {"mrope_section": [2, 1, 1], "mrope_interleaved": True}
        text = sizes | {"head_dim": 8, "rope_parameters": rope}
        config = transformers.Qwen3VLConfig(text_config=text, vision_config=eyes, **tokens)
        return transformers.Qwen3VLForConditionalGeneration(config), processor
    video_processor = transformers.Qwen2VLVideoProcessor(**patches)
    processor = transformers.Qwen2_5_VLProcessor(**readers, video_processor=video_processor)
    eyes |= {"out_hidden_size": 32, "fullatt_block_indexes": [1], "window_size": 32}
    text = sizes | {"rope_parameters": MROPE | {"mrope_section": [2, 1, 1]}}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=eyes, **tokens)
    return transformers.Qwen2_5_VLForConditionalGeneration(config), processor


def _smolvlm(family: str) -> tuple[Any, Any]:
    import transformers

    words, sizes = _words(SMOL, "<image>")
    size = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
    processor = transformers.Idefics3Processor(
        transformers.Idefics3ImageProcessor(**size), words, image_seq_len=4, chat_template=words.chat_template
    )
    eyes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    eyes |= {"image_size": 32, "patch_size": 8}
    config = transformers.SmolVLMConfig(
        vision_config=eyes,
        text_config=sizes | {"model_type": "llama"},
        scale_factor=2,
        image_token_id=words.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=True,
    )
    return transformers.SmolVLMForConditionalGeneration(config), processor


def _llava(family: str) -> tuple[Any, Any]:
    import transformers

    words, sizes = _words(["<image>"], "<image>")
    eyes = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48}
    eyes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config = transformers.LlavaConfig(
        vision_config=eyes,
        text_config=sizes | {"model_type": "llama"},
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(**size),
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=words.chat_template,
    )
    return transformers.LlavaForConditionalGeneration(config), processor
