"""What a checkpoint holds: learned tensors, the optimizer, the average, and a record of plain values."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlalign.train.ema import Average
from vlalign.train.runtime import Runtime
from vlalign.types import UserError

MODEL, OPTIMIZER, AVERAGE, RECORD, SHARDS = (
    "model.safetensors", "optimizer.pt", "average.safetensors", "record.json", "deepspeed",
)  # fmt: skip


def learned(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that training may change, and buffers; locked weights come from the recipe."""
    kept = model.state_dict()
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    names += [name for name, _ in model.named_buffers() if name in kept]
    return {name: kept[name] for name in names}


def frozen_digest(model: nn.Module) -> str:
    """A hash of the locked weights, which a checkpoint does not hold."""
    digest = hashlib.blake2b(digest_size=16)
    for name, p in sorted(model.named_parameters()):
        if not p.requires_grad:
            digest.update(name.encode())
            digest.update(p.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save(folder: Path, runtime: Runtime, average: Average | None, record: Mapping[str, Any]) -> None:
    """Fill a checkpoint's folder; every process calls it."""
    from safetensors.torch import save_file

    if runtime.deepspeed:
        runtime.model.save_checkpoint(str(folder), SHARDS, exclude_frozen_parameters=True)
    if not runtime.main:
        return
    (folder / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
    if runtime.deepspeed:
        return
    save_file(_plain(learned(runtime.bare)), folder / MODEL)
    with (folder / OPTIMIZER).open("wb") as file:  # given a path, torch hides why it cannot write
        torch.save(runtime.optimizer.state_dict(), file)
    if average:
        save_file(_plain(average.shadow), folder / AVERAGE)


def restore(folder: Path, runtime: Runtime, average: Average | None, frozen: str) -> dict[str, Any]:
    """Put a verified checkpoint into the model, the optimizer and the average; returns its record.

    Raises UserError when its locked weights or its sharding are not this run's.
    """
    from safetensors.torch import load_file

    record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    if record["frozen"] != frozen:
        raise UserError(
            f"{folder} was trained on other locked weights than the recipe gives now; bring those back, "
            "or choose another folder with out=FOLDER"
        )
    sharded = (folder / SHARDS).is_dir()
    if sharded != runtime.deepspeed or (sharded and record["processes"] != runtime.world):
        how = "under DeepSpeed" if sharded else "without DeepSpeed"
        raise UserError(
            f"{folder} was written by {record['processes']} processes {how}; resume it in the same way"
        )
    if sharded:
        runtime.model.load_checkpoint(
            str(folder), SHARDS, load_module_strict=False
        )  # locked weights are not in it
        return record
    tensors = load_file(folder / MODEL)
    wanted = learned(runtime.bare)
    if tensors.keys() != wanted.keys():
        odd = ", ".join(sorted(tensors.keys() ^ wanted.keys())[:5])
        raise UserError(f"{folder} holds another model: {odd}; choose another folder with out=FOLDER")
    runtime.bare.load_state_dict(tensors, strict=False)
    runtime.optimizer.load_state_dict(torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True))
    if average:
        average.load(load_file(folder / AVERAGE))
    return record


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
