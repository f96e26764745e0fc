"""Patch dropout, Li et al. 2023 (FLIP), https://arxiv.org/abs/2212.00794: fewer patches to learn from."""

from typing import Any

from vlalign.types import UserError


def drop_patches(net: Any, share: float) -> None:
    """Let a network leave out that share of a picture's patches, others each time, while it trains.

    They go after their positions were added and before the first block, so that no block computes them.
    Raises UserError for anything but a vision transformer of open_clip or timm.
    """
    from open_clip.transformer import VisionTransformer as OfOpenClip
    from timm.layers.patch_dropout import PatchDropout
    from timm.models.vision_transformer import VisionTransformer as OfTimm

    net = getattr(net, "trunk", net)  # open_clip's wrapper of a network of timm
    if isinstance(net, OfOpenClip):
        net.patch_dropout = PatchDropout(share)  # open_clip's own draws on the CPU, whatever the device
    elif isinstance(net, OfTimm):
        net.patch_drop = PatchDropout(share, net.num_prefix_tokens)
    else:
        raise UserError(
            f"patch_dropout: only vision transformers of open_clip and timm can leave patches out, this is "
            f"{type(net).__name__}; use patch_dropout: 0"
        )
