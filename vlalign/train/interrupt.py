"""Ctrl-C and SIGTERM: finish the step, save, then leave."""

import os
import signal
import threading
from types import FrameType
from typing import Any


class Interrupt:
    """Context in which the first SIGINT or SIGTERM is remembered and the second acts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.process = os.getpid()
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python does not allow handlers
            self.before = {
                number: signal.signal(number, self.note) for number in (signal.SIGINT, signal.SIGTERM)
            }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: FrameType | None) -> None:
        """Remember a signal. A loader's worker, forked with this handler, leaves Ctrl-C to its parent."""
        if os.getpid() != self.process:
            if number == signal.SIGTERM:
                os._exit(128 + number)
        elif self.signal is None:
            self.signal = number
        else:
            raise KeyboardInterrupt

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 143 after SIGTERM, as shells have it."""
        return 128 + (self.signal or signal.SIGTERM)
