"""What a checkpoint holds: learned tensors, the optimizer, the average, and a record of plain values."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlalign.train import sharded
from vlalign.train.ema import Average
from vlalign.train.runtime import Runtime
from vlalign.types import UserError

MODEL, OPTIMIZER, AVERAGE = "model.safetensors", "optimizer.pt", "average.safetensors"
RECORD = "record.json"


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
        sharded.save(folder, runtime.model)
    if not runtime.main:
        return
    told = {**record, "shards": sharded.sharing(runtime)}
    (folder / RECORD).write_text(json.dumps(told, indent=1, ensure_ascii=False), encoding="utf-8")
    if runtime.deepspeed:
        return
    save_file(_plain(learned(runtime.bare)), folder / MODEL)
    with (folder / OPTIMIZER).open("wb") as file:  # given a path, torch hides why it cannot write
        torch.save(runtime.optimizer.state_dict(), file)
    if average:
        save_file(_plain(average.shadow), folder / AVERAGE)


def checked(folder: Path, runtime: Runtime, frozen: str) -> dict[str, Any]:
    """The record of a verified checkpoint. Raises UserError when this run cannot go on from it.

    A whole one fits any number of processes, and so do the shards of ZeRO-1 and 2 at the same stage. Those of
    ZeRO-3 do not: DeepSpeed 0.19.8 gives others a different optimizer, such as one weight decay for all.
    """
    from safetensors import safe_open

    record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    if record["frozen"] != frozen:
        raise UserError(
            f"{folder} was trained on other locked weights than the recipe gives now; bring those back, "
            "or choose another folder with out=FOLDER"
        )
    before, now = (_tell(shards) for shards in (record["shards"], sharded.sharing(runtime)))
    if before != now:
        raise UserError(
            f"{folder} was written {before}, and this run would go on {now}; launch it as it was, or begin "
            "another one with out=FOLDER"
        )
    if not runtime.deepspeed:
        with safe_open(folder / MODEL, framework="pt") as file:
            odd = file.keys() ^ learned(runtime.bare).keys()
        if odd:
            named = ", ".join(sorted(odd)[:5])
            raise UserError(f"{folder} holds another model: {named}; choose another folder with out=FOLDER")
    return record


def restore(folder: Path, record: Mapping[str, Any], runtime: Runtime, average: Average | None) -> None:
    """Put a checked checkpoint into the model, the optimizer and the average."""
    from safetensors.torch import load_file

    if runtime.deepspeed:
        sharded.load(folder, runtime, record["shards"])
        return
    runtime.bare.load_state_dict(load_file(folder / MODEL), strict=False)
    runtime.optimizer.load_state_dict(torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True))
    if average:
        average.load(load_file(folder / AVERAGE))


def _tell(shards: list[int] | None) -> str:
    if shards is None:
        return "without DeepSpeed"
    stage, processes = shards
    return f"by DeepSpeed at stage {stage} of ZeRO" + (f" on {processes} processes" if stage == 3 else "")


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
