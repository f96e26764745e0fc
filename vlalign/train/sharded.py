"""A checkpoint in the shards of DeepSpeed: written, read again, and put together anew for other processes."""

import shutil
from argparse import Namespace
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from vlalign.train.folder import writing
from vlalign.train.runtime import Runtime
from vlalign.train.together import together

SHARDS = "deepspeed"  # its folder in a checkpoint's


def sharing(runtime: Runtime) -> list[int] | None:
    """The stage of ZeRO and the number of processes that share the shards; None: there are none."""
    return [runtime.model.zero_optimization_stage(), runtime.world] if runtime.deepspeed else None


def save(folder: Path, engine: Any) -> None:
    """Every process's shards. Raises what the disk refused at the end, for until then each waits for all."""
    refused: list[Exception] = []

    def write(state_dict: Any, path: str) -> None:
        try:
            with Path(path).open("wb") as file:  # given a path, torch hides why it cannot write
                torch.save(state_dict, file)
        except (OSError, RuntimeError) as error:
            refused.append(error)

    engine.checkpoint_engine.save = write
    engine._copy_recovery_script = lambda folder: None  # it would be one more file to be refused
    engine.save_checkpoint(str(folder), SHARDS, save_latest=False, exclude_frozen_parameters=True)
    if refused:
        raise refused[0]


def load(folder: Path, runtime: Runtime, written: list[int]) -> None:
    """Into the engine; what other processes have written by DeepSpeed's universal form, for a while on disk.

    Ma et al. 2024, https://arxiv.org/abs/2406.18820. Raises UserError when the disk refuses it.
    """
    if written == sharing(runtime):
        _load(folder, runtime.model)
        return
    universal = folder.with_name(f".{folder.name}.universal")
    with together(runtime), writing(folder.parent):
        if runtime.main:
            _convert(folder / SHARDS, universal / SHARDS)
    runtime.model._config.load_universal_checkpoint = True  # DeepSpeed reads it from its settings alone
    _load(universal, runtime.model)
    runtime.model._config.load_universal_checkpoint = False
    for parameter, kept in runtime.model.optimizer.optimizer.state.items():
        if "step" in kept:  # read on the host, and a fused optimizer wants it beside the parameter
            kept["step"] = torch.as_tensor(kept["step"]).to(parameter.device)
    runtime.barrier()
    if runtime.main:
        shutil.rmtree(universal)


def _load(folder: Path, engine: Any) -> None:
    engine.load_checkpoint(str(folder), SHARDS, load_module_strict=False)  # locked weights are not in it


def _convert(shards: Path, universal: Path) -> None:
    """One folder a parameter, whatever the shards were; DeepSpeed would tell every detail."""
    from deepspeed.checkpoint.ds_to_universal import main

    shutil.rmtree(universal, ignore_errors=True)
    asked = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True}
    folders = {"input_folder": str(shards), "output_folder": str(universal)}
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        main(Namespace(**asked, **folders, inject_missing_state=True))
