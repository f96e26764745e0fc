"""Accelerate's trackers. They look on: whatever goes wrong in one is told once, and the run goes on."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any


class Trackers:
    """The trackers that a recipe names and this machine has."""

    def __init__(self, names: Sequence[str], out: Path, say: Callable[[str], None], done: int = 0) -> None:
        """`done`: the steps of a resumed run; later ones that it has logged before are logged again."""
        self.say, self.done = say, done
        self.running: dict[str, Any] = {}
        for name in names:
            if find_spec(name) is None:
                say(f"log.trackers: {name} is not installed, so it is left out; pip install {name} brings it")
            else:
                self._guard(name, partial(self._start, name, out))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name."""
        for name, tracker in list(self.running.items()):
            self._guard(name, partial(tracker.log, values, step=step))

    def close(self) -> None:
        """Let each of them write what it holds."""
        for name, tracker in list(self.running.items()):
            self._guard(name, tracker.finish)

    def _start(self, name: str, out: Path) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        kind = LOGGER_TYPE_TO_CLASS[name]
        if kind.requires_logging_directory:  # TensorBoard, which is to forget what it holds of later steps
            tracker = kind(name, logging_dir=out, purge_step=self.done + 1)
        else:
            tracker = kind(out.name)
        tracker.start()
        self.running[name] = tracker

    def _guard(self, name: str, act: Callable[[], Any]) -> None:
        try:
            act()
        except Exception as error:  # a tracker is somebody else's program and network: it may raise anything
            self.running.pop(name, None)
            self.say(
                f"log.trackers: {name} stopped ({type(error).__name__}: {error}); the run goes on without it"
            )
