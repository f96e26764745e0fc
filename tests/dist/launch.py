"""Start a module on several processes by a launch file that is shipped."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import count
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
STRATEGIES = ("ddp", "zero1", "zero2", "zero3")
OWN = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def command(processes: int, module: str, *arguments: str, by: str = "ddp") -> list[str]:
    launch: list[str] = []
    if processes > 1:
        launch = ["-m", "accelerate.commands.launch", "--config_file", f"recipes/launch/{by}.yaml"]
        launch += ["--num_processes", str(processes), "--main_process_port", "0"]
    return [sys.executable, *launch, "-m", module, *arguments]


def run(processes: int, module: str, *arguments: str, by: str = "ddp", code: int = 0) -> str:
    """What a module said that accelerate's launcher, itself a fork, ran on so many processes; it must end
    with `code`."""
    _, _, module, *arguments = command(processes, module, *arguments, by=by)
    return _said(module, arguments, [{}], code)


def forked(processes: int, module: str, *arguments: str, by: str = "ddp", code: int = 0) -> str:
    """As `run`, by forks of one process that has imported it all, each told what its launcher would."""
    [port] = ports(1)
    return _said(module, arguments, [own | {"MASTER_PORT": port} for own in told(processes, by)], code)


class Forks:
    """Processes of a module that were started, as `subprocess.Popen` of their launcher; what one says is
    added to its file of `said`. No others can be until they have ended."""

    returncode: int | None = None
    codes: Sequence[int] = ()  # of each process, when they have ended; still none when their time was over

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        environments: Sequence[Mapping[str, str]],
        said: Sequence[str],
    ) -> None:
        forks = parent()
        assert forks.stdin and forks.stdout
        full = [{**os.environ, **own, **OWN} for own in environments]
        asked = {"module": module, "arguments": arguments, "environments": full, "said": said}
        forks.stdin.write(json.dumps(asked) + "\n")
        forks.stdin.flush()
        self.answers = forks.stdout
        self.pids: list[int] = json.loads(self.answers.readline())

    def poll(self) -> int | None:
        """How they ended, if they have."""
        if self.returncode is None and not any(psutil.pid_exists(pid) for pid in self.pids):
            self.codes = json.loads(self.answers.readline())
            several = len(self.pids) > 1  # whose launcher ends with 1 when a process fails
            self.returncode = int(not self.codes or any(self.codes)) if several else [*self.codes, -9][0]
        return self.returncode

    def wait(self, timeout: float = math.inf) -> int:
        """How they ended. Raises TimeoutExpired after so many seconds."""
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("forks", timeout)
            time.sleep(0.005)
        return code

    def kill(self) -> None:
        """End them all, so that others can be started."""
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.wait()


def _said(module: str, arguments: Sequence[str], environments: Sequence[Mapping[str, str]], code: int) -> str:
    with tempfile.NamedTemporaryFile("r") as said:
        forks = Forks(module, arguments, environments, [said.name] * len(environments))
        ended, text = forks.wait(), said.read()
    assert forks.codes, f"they did not end in time, and said: {text[-6000:]}"
    assert ended == code, (forks.codes, text[-6000:])
    return text


def ports(number: int) -> list[str]:
    """Free ones, below those that a system hands out unasked: until they are used, nobody else gets them."""
    free: list[str] = []
    while len(free) < number:
        port = next(_numbers())
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            free.append(str(port))
    return free


@cache
def _numbers() -> Iterator[int]:
    """A worker of the tests has a range of its own, and begins it anywhere."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    return (10_000 + 1000 * (worker % 20) + (os.getpid() + each) % 1000 for each in count())


@cache
def parent() -> subprocess.Popen[str]:
    """What forks; it ends with this process."""
    forks, pipe = [sys.executable, "-m", "tests.dist.forks"], subprocess.PIPE
    return subprocess.Popen(forks, cwd=ROOT, env=os.environ | OWN, stdin=pipe, stdout=pipe, text=True)


@cache
def told(processes: int, by: str) -> list[dict[str, str]]:
    """The variables that a launch file's processes start with, beyond those of a launcher's own store."""
    if processes == 1:
        return [{}]
    with tempfile.TemporaryDirectory() as folder:
        run(processes, "tests.dist.variables", folder, by=by)
        each = [json.loads((Path(folder) / str(rank)).read_text()) for rank in range(processes)]
    return [{name: x for name, x in own.items() if not name.startswith("TORCHELASTIC")} for own in each]
