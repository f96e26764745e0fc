"""A small multimodal model of parts: transformers' Llava over a network of timm and a causal language model.

Liu et al. 2023, https://arxiv.org/abs/2304.08485: a projector of two layers between a tower and a language
model. The tower's last grid gives a token a cell, row by row.
"""

from dataclasses import dataclass
from typing import Any

import torch

from vlalign.models import causal, checkpoints
from vlalign.models.packages import weights_file
from vlalign.types import UserError

IMAGE = "<image>"
CHAT = (  # ChatML, whose messages may be a string or a list of pictures and texts
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}" + IMAGE + "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IMAGENET: dict[str, Any] = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """`language`: a Hub id, a folder or `package:NAME`; without `pretrained` its config and random weights.

    `tower`: a convolutional network that timm knows; `weights`: its file, or `package:NAME`, None for random
    ones. `image_size` in pixels: pictures are made squares of it.
    """

    language: str
    pretrained: bool = True
    tower: str = "tf_efficientnet_lite0"
    weights: str | None = None
    image_size: int = 128

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size must be >= 1, got {self.image_size}")

    def build(self, dtype: str) -> tuple[Any, Any]:
        """The network, its projector random, and its processor. Raises UserError."""
        from transformers import AutoModelForImageTextToText, CLIPImageProcessor, LlavaConfig, LlavaProcessor

        from vlalign.models import grid_tower

        language, tokenizer = causal.load(self.language, self.pretrained, dtype)
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
        language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        eyes = self._eyes()
        config = LlavaConfig(
            vision_config=eyes.config,
            text_config=language.config,
            image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            tie_word_embeddings=language.config.tie_word_embeddings,
        )
        grid_tower.register()
        auto: Any = AutoModelForImageTextToText
        net = auto.from_config(config, dtype=getattr(torch, dtype))  # `.to` would round positions too
        net.base_model.language_model.load_state_dict(language.get_decoder().state_dict())
        net.get_output_embeddings().load_state_dict(language.get_output_embeddings().state_dict())
        net.base_model.vision_tower.load_state_dict(eyes.state_dict())
        size = {"height": self.image_size, "width": self.image_size}
        pictures = CLIPImageProcessor(size=size, do_center_crop=False, **IMAGENET)
        processor = LlavaProcessor(  # type: ignore[no-untyped-call]
            pictures,
            tokenizer,
            patch_size=self.image_size // eyes.grid(self.image_size)[-1],
            vision_feature_select_strategy="full",
            num_additional_image_tokens=0,
            chat_template=CHAT,
        )
        return net, processor

    def _eyes(self) -> Any:
        """The tower. Raises UserError."""
        from vlalign.models.grid_tower import GridTower, GridTowerConfig

        try:
            eyes = GridTower(GridTowerConfig(architecture=self.tower, image_size=self.image_size))
            grid = eyes.grid(self.image_size)
        except (RuntimeError, ImportError, AssertionError) as error:
            raise UserError(
                f"tower: timm cannot build '{self.tower}' for {self.image_size} pixels: {error}"
            ) from error
        if len(grid) != 4 or grid[1] != eyes.net.num_features:
            raise UserError(
                f"tower: '{self.tower}' gives {list(grid)} of a picture, and [1, {eyes.net.num_features}, "
                "height, width] is read; take a convolutional network"
            )
        eyes.config.hidden_size = eyes.net.num_features
        if self.weights:
            file = weights_file(self.weights)
            checkpoints.load_backbone(eyes.net, checkpoints.read(file), file)
        return eyes
