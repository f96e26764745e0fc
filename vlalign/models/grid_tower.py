"""A convolutional network of timm as the tower of a multimodal model of transformers: each cell is a token.

transformers' own wrapper of timm hands the grid [N, C, H, W] to projectors that want [N, tokens, C].
"""

from typing import Any, Self

import timm
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


class GridTowerConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """`architecture`: a name that timm knows; `image_size` in pixels."""

    model_type = "timm_grid"
    architecture: str = "tf_efficientnet_lite0"
    hidden_size: int = 1280
    image_size: int = 128


class GridTower(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Pixels [N, 3, H, W] -> the cells of the last grid [N, h w, C], row by row."""

    config_class = GridTowerConfig
    main_input_name = "pixel_values"

    def __init__(self, config: GridTowerConfig) -> None:
        super().__init__(config)
        self.net: Any = timm.create_model(config.architecture, pretrained=False, num_classes=0)
        self.post_init()  # type: ignore[no-untyped-call]
        self.train()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """The last grid, as the only layer there is."""
        cells = self.net.forward_features(pixel_values).flatten(2).transpose(1, 2)
        return BaseModelOutputWithPooling(last_hidden_state=cells, hidden_states=(cells,))

    def train(self, mode: bool = True) -> Self:
        """As any module's, but that BatchNorm keeps its statistics, as in every tower."""
        super().train(mode)
        for norm in self.modules():
            if isinstance(norm, _BatchNorm):
                norm.eval()
        return self

    @torch.no_grad()
    def grid(self, image_size: int) -> torch.Size:
        """The last grid of a picture, [1, C, h, w]."""
        found: torch.Size = self.net.forward_features(torch.zeros(1, 3, image_size, image_size)).shape
        return found

    def _init_weights(self, module: Any) -> None:
        """timm has given each module its own start."""


def register() -> None:
    """Let transformers load a saved model that has such a tower."""
    AutoConfig.register(GridTowerConfig.model_type, GridTowerConfig, exist_ok=True)
    AutoModel.register(GridTowerConfig, GridTower, exist_ok=True)
