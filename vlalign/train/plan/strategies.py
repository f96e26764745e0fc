"""How the processes share a model: what each of them holds of it, and what they send each other for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlalign.types import RecipeError

BUCKET = 500_000_000  # elements that DeepSpeed reduces at once, in a buffer of its own: its default
LIVE = 1_000_000_000  # parameters that ZeRO-3 keeps whole at a time: DeepSpeed's default


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """`stage` of ZeRO, Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054, section 5; 0 is DDP."""

    name: str
    stage: int

    def held(self, processes: int, chunks: int) -> dict[str, float]:
        """The share of each part that a process holds, 1 unless said.

        Gradients of several chunks are whole until the last one's are sent, under every stage.
        """
        part = 1 / processes
        divided = {"optimizer": 1, "gradients": 2 if chunks == 1 else 4, "weights": 3}
        return {name: part for name, stage in divided.items() if self.stage >= stage}

    def buffers(self, processes: int, learned: int, parameters: int, size: int) -> dict[str, int]:
        """Bytes that it holds besides, by part.

        `learned`, `parameters` (of modules that run): how many; `size`: bytes of each.
        """
        if processes == 1 and not self.stage:
            return {}
        if not self.stage:
            return {"gradients": learned * size}  # what DDP's buckets copy
        whole = {"weights": min(parameters, LIVE) * size} if self.stage == 3 else {}
        return whole | {"temporary": (BUCKET if self.stage < 3 else min(BUCKET, learned)) * size}

    def sent(self, processes: int, passes: int, learned: int, parameters: int, size: int) -> dict[str, int]:
        """Bytes that a process sends in a step. `passes`: forwards and backwards."""
        ring = size * (processes - 1) // processes
        found = {"gradients": learned * ring}
        if self.stage < 3:
            return {"gradients": 2 * learned * ring}  # of ZeRO: gradients there, parameters back
        return found | {"ZeRO-3 parameters": passes * parameters * ring}


STRATEGIES = {
    "ddp": Strategy(name="DDP", stage=0),
    **{f"zero{stage}": Strategy(name=f"ZeRO-{stage}", stage=stage) for stage in (1, 2, 3)},
}


def launched(settings: Mapping[str, Any], path: str) -> tuple[str, int]:
    """The strategy and the number of processes that accelerate's launch file asks for. Raises RecipeError."""
    if "distributed_type" not in settings:
        raise RecipeError(f"{path}: is no launch file, it has no distributed_type; see recipes/launch/")
    kind, count = str(settings["distributed_type"]), settings.get("num_processes", 1)
    deepspeed = settings.get("deepspeed_config") or {}
    offload = {name: where for name, where in deepspeed.items() if "offload" in name and where != "none"}
    if offload:
        raise RecipeError(
            f"{path}: {', '.join(offload)}: what is kept outside the device is not planned; set it to none"
        )
    if kind == "DEEPSPEED":
        return f"zero{deepspeed.get('zero_stage', 2)}", count
    if kind in ("NO", "MULTI_CPU", "MULTI_GPU"):
        return "ddp", count
    raise RecipeError(f"{path}: distributed_type {kind} is not supported; see recipes/launch/")
