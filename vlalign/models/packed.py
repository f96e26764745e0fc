"""Weights in few bits on disk, as compressed-tensors packs them, for transformers and others to load."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vlalign.ops.quantization import Quantized

METHOD, FORMAT = "compressed-tensors", "pack-quantized"


def state(plain: Mapping[str, Tensor], found: Mapping[str, Quantized], symmetric: bool) -> dict[str, Tensor]:
    """A state dict with packed levels in place of weights. `found`: by the name of the layer in it."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    packed = {name: x for name, x in plain.items() if name.removesuffix(".weight") not in found}
    for name, (levels, scales) in found.items():
        packed[f"{name}.weight_packed"] = pack_to_int32(levels.cpu(), scales.bits)
        packed[f"{name}.weight_shape"] = torch.tensor(levels.shape)
        packed[f"{name}.weight_scale"] = scales.scale
        if not symmetric:
            zero = pack_to_int32(scales.zero.cpu(), scales.bits, packed_dim=0)
            packed[f"{name}.weight_zero_point"] = zero
    return packed


def config(
    net: nn.Module, found: Mapping[str, Quantized], bits: int, group: int | None, symmetric: bool
) -> dict[str, Any]:
    """What `config.json` says of it. `found`: by the network's names; other Linear layers are told apart."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme

    how: dict[str, Any] = {"num_bits": bits, "group_size": group, "symmetric": symmetric}
    args = QuantizationArgs(**how, strategy="group" if group else "channel")
    told = QuantizationConfig(
        config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=args)},
        format=FORMAT,
        quantization_status="compressed",
        ignore=[
            name for name, each in net.named_modules() if isinstance(each, nn.Linear) and name not in found
        ],
    )
    plain: dict[str, Any] = told.model_dump(mode="json", exclude_none=True)
    # Kept packed in memory, transformers would miss the offsets, and what learns or is saved must be plain.
    return plain | {"dequantize": True}
