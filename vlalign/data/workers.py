"""Loader workers and signals: Ctrl-C is the parent's, and that a worker died is told at the wait for it."""

import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader

from vlalign.types import DataError

DYING = 1.0  # seconds, at most, between the last sign of a worker and its end
TORCH_SAYS = "DataLoader worker (pid"  # how the RuntimeError begins that tells of a death


def leave_interrupts_to_the_parent(worker: int) -> None:
    """What a worker does first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def attended(loader: DataLoader[Any]) -> Iterator[Any]:
    """What the workers make; after the death of one a DataError takes the place of a batch, the last."""
    found = iter(loader)
    _WATCH.take_over()
    try:
        while (batch := _WATCH.wait(found)) is not None:
            yield batch
    except RuntimeError as error:
        if not str(error).startswith(TORCH_SAYS):
            raise
        yield DataError(
            f"data.workers: {str(error).strip(' .')}; most often memory has run out: lower data.workers or "
            "data.batch, or set data.workers=0, with which the process itself tells"
        )


class _Watch:
    """The handler of SIGCHLD in place of torch's, which would raise wherever the main thread happens to be.

    That could be between two calls that all processes make together. There is one for all loaders, as of
    torch's; it lets that speak while a batch is waited for, and then of those too that died before.
    """

    def __init__(self) -> None:
        self.waits, self.torchs = False, None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.waits and self.torchs:
            self.torchs(number, frame)

    def take_over(self) -> None:
        """After a loader has set torch's handler, which it does once in a process."""
        now: Any = signal.getsignal(signal.SIGCHLD)
        if callable(now) and now is not self and threading.current_thread() is threading.main_thread():
            self.torchs = now
            signal.signal(signal.SIGCHLD, self)

    def wait(self, found: Iterator[Any]) -> Any:
        """The next batch, None after the last. Raises RuntimeError when a worker is dead."""
        self.waits = True
        try:
            self(signal.SIGCHLD, None)
            return next(found, None)
        except (ConnectionError, EOFError):  # one that is dying cannot hand over its tensors
            time.sleep(DYING)
            self(signal.SIGCHLD, None)
            raise
        finally:
            self.waits = False


_WATCH = _Watch()
