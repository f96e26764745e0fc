"""The processes of a run among themselves, and what is told when one of them does not answer."""

import os
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as torch_dist

from vlalign.types import RecipeError, UserError

MINUTES = "VLALIGN_TIMEOUT_MINUTES"
LONG = timedelta(hours=24)  # between steps, where processes do unlike work: features, evaluations, outputs
GRACE = 10.0  # seconds in which every process that lives notices that another does not


def patience() -> timedelta:
    """How long a step waits for the slowest process. Raises RecipeError for what is no number of minutes."""
    asked = os.environ.get(MINUTES, "10")
    try:
        minutes = float(asked)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        raise RecipeError(f"{MINUTES}: must be a number of minutes above 0, got {asked!r}")
    return timedelta(minutes=minutes)


class Peers:
    """What processes tell each other besides tensors: by gloo, on their hosts, whatever the devices use."""

    def __init__(self, rank: int, world: int) -> None:
        """Every process must make it at the same time."""
        self.rank, self.world, self.main = rank, world, rank == 0
        if world > 1:
            self._soon: Any = torch_dist.new_group(backend="gloo", timeout=patience())
            self._late: Any = torch_dist.new_group(backend="gloo", timeout=LONG)

    def total(self, count: int) -> int:
        """The sum of every process's count."""
        counts = torch.tensor(count)
        if self.world > 1:
            torch_dist.all_reduce(counts, group=self._soon)
        return int(counts)

    def barrier(self) -> None:
        """Wait for every process, for hours where need be: call it at the end of unlike work."""
        if self.world > 1:
            torch_dist.barrier(self._late)

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, of any kind that pickles, in the order of ranks; waits as `barrier` does."""
        values = [value] * self.world
        if self.world > 1:
            torch_dist.all_gather_object(values, value, group=self._late)
        return values

    def explain(self, error: BaseException | None) -> None:
        """Raise what an error of communication means; other errors are left alone. Every process comes here.

        Raises UserError on the first of the processes that still live, and SystemExit on the others, which
        leave at once, so that nobody waits for them.
        """
        if self.world == 1 or not isinstance(error, RuntimeError) or not _is_of_communication(error):
            return
        late = any(sign in str(error) for sign in ("Timed out", "timeout"))
        silent = self._silent(wait=self.main or late)
        if not self.main and (0 not in silent or not late):
            raise SystemExit(1) from None
        who = ", ".join(map(str, sorted(silent))) or "unknown"
        did = f"not answered within {patience() / timedelta(minutes=1):g} minutes" if late else "ended"
        raise UserError(
            f"of {self.world} processes, {who} has {did}, so the others leave; look for its own message or "
            "the system's (memory, disk, network), and run it again to go on from the last checkpoint; with "
            f"{MINUTES}=30 a step waits longer"
        ) from None

    def _silent(self, wait: bool) -> set[int]:
        """Say that this process lives; if it may wait, the ranks that do not say so in a while."""
        silent = set(range(self.world)) - {self.rank}
        try:
            store: Any = torch_dist.TCPStore(  # type: ignore[attr-defined]
                os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=timedelta(seconds=GRACE)
            )
            store.set(f"vlalign/lives/{self.rank}", "")
            end = time.monotonic() + GRACE
            while wait and silent and time.monotonic() < end:
                silent = {rank for rank in silent if not store.check([f"vlalign/lives/{rank}"])}
                time.sleep(0.1)
        except (torch_dist.DistError, RuntimeError):  # the store goes with the process that holds it
            pass
        return silent


def _is_of_communication(error: RuntimeError) -> bool:
    """torch has a class of errors for NCCL and for its store, and none for gloo."""
    signs = ("gloo", "Application timeout caused pair closure")
    return isinstance(error, torch_dist.DistError) or any(sign in str(error) for sign in signs)
