"""The stress scripts with runs that are forks, which import nothing: a fraction of the time."""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import psutil
import pytest
from stress_resume import Launch, Running

from tests.dist.launch import Forks, ports, told


@dataclass(frozen=True)
class Forked(Running):
    """There is no launcher but who forks, and ends the others when one process fails."""

    launcher: Forks

    def rank(self, number: int) -> psutil.Process:
        return psutil.Process(self.launcher.pids[number])

    def family(self) -> list[psutil.Process]:
        alive = [psutil.Process(pid) for pid in self.launcher.pids if psutil.pid_exists(pid)]
        return [*alive, *(child for each in alive for child in each.children(recursive=True))]


def start(launch: Launch, recipe: Path, *overrides: str) -> Forked:
    """In the place of `Launch.start`, in the environment that its launch file gives."""
    said, [port] = recipe.with_suffix(".said"), ports(1)
    said.write_text("", encoding="utf-8")
    environments = [own | {"MASTER_PORT": port} for own in told(launch.processes, launch.how)]
    forks = Forks("vlalign", ["train", str(recipe), *overrides], environments, [str(said)] * launch.processes)
    return Forked(forks, launch.processes, said)


def stressed(script: ModuleType, *arguments: str) -> int:
    """The exit code of a script's command line."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Launch, "start", start)
        patched.setattr(sys, "argv", [script.__name__, *arguments])
        return script.main()
