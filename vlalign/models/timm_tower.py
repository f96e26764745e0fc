"""Image towers of timm."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vlalign.models.lock import Groups
from vlalign.models.open_clip_towers import timm_groups
from vlalign.models.processors import Processor
from vlalign.models.tower import TowerModule
from vlalign.types import Inputs, UserError


class TimmImage(TowerModule):
    """A network of timm without its classifier, pooled as timm pools it."""

    library = "timm"

    def __init__(self, net: Any, process: Processor, config: Mapping[str, Any]) -> None:
        super().__init__(net, getattr(net, "head_hidden_size", net.num_features), process, config)

    def forward(self, inputs: Inputs) -> Tensor:
        """`pixels` [N, 3, H, W] -> features [N, width], or of patches [N, n, width]."""
        if self.pools:
            features: Tensor = self.net(inputs["pixels"])
            return features
        cells: Tensor = self.net.forward_features(inputs["pixels"])
        if cells.ndim == 3:
            return cells[:, getattr(self.net, "num_prefix_tokens", 0) :]
        return cells.flatten(1, 2) if self.channels_last else cells.flatten(2).mT

    def unpool(self) -> None:
        """The cells of a last grid, or a transformer's tokens but those that are no patch.

        What only pooling needs learns nothing from then on. Raises UserError.
        """
        self.pools, self.width = False, self.net.num_features
        self.channels_last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"
        self.config = {**self.config, "pool": "patches"}
        pixels = self.take(self.process([Image.new("RGB", (64, 64))])["pixels"])
        used = set[nn.Module]()
        hooks = [each.register_forward_pre_hook(lambda own, _: used.add(own)) for each in self.net.modules()]
        with torch.no_grad():
            cells = self.net.eval().forward_features(pixels)
        for hook in hooks:
            hook.remove()
        known = hasattr(self.net, "num_prefix_tokens") or not hasattr(self.net, "cls_token")
        if not isinstance(cells, Tensor) or not (cells.ndim == 4 or cells.ndim == 3 and known):
            raise UserError(
                f"{type(self.net).__name__} of timm does not tell which of its features are patches; take "
                "one that ends in a grid, or a plain vision transformer"
            )
        for part in self.net.children():
            if used.isdisjoint(part.modules()):
                part.requires_grad_(False)

    def groups(self) -> Groups:
        """As timm groups layers."""
        return timm_groups(self.net)

    def checkpoint_gradients(self) -> None:
        """By timm. Raises UserError for a network that does not offer it."""
        try:
            self.net.set_grad_checkpointing(True)
        except AssertionError as error:
            raise UserError(
                f"gradient_checkpointing: timm cannot do it for {type(self.net).__name__}: {error}"
            ) from error

    def write(self, folder: Path) -> None:
        """timm's `config.json`, for a network whose config came from the Hub; timm knows its own by name."""
        if ":" in self.config["id"]:
            from timm.models._hub import save_config_for_hf

            folder.mkdir(parents=True, exist_ok=True)
            save_config_for_hf(self.net, str(folder / "config.json"))
