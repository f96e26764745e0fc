"""Start a module on several processes by a launch file that is shipped."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import count
from pathlib import Path

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
    """What a module said that ran on so many processes; it must end with `code`."""
    done = subprocess.run(
        command(processes, module, *arguments, by=by),
        env=os.environ | OWN,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


def forked(processes: int, module: str, *arguments: str, by: str = "ddp", code: int = 0) -> str:
    """As `run`, by forks of one process that has imported it all, each told what its launcher would."""
    [port] = ports(1)
    environments = [own | {"MASTER_PORT": port} for own in told(processes, by)]
    with tempfile.NamedTemporaryFile("r") as said:
        codes = fork(module, arguments, environments, [said.name] * processes)
        text = said.read()
    assert codes, f"they did not end in time, and said: {text[-6000:]}"
    ended = codes[0] if processes == 1 else int(any(codes))  # a launcher ends with 1 when a process fails
    assert ended == code, (codes, text[-6000:])
    return text


def fork(
    module: str, arguments: Sequence[str], environments: Sequence[Mapping[str, str]], said: Sequence[str]
) -> list[int]:
    """How each process ended, as `subprocess` tells it, or nothing when their time was over; what one says is
    added to its file of `said`."""
    forks = parent()
    assert forks.stdin and forks.stdout
    full = [{**os.environ, **own, **OWN} for own in environments]
    asked = {"module": module, "arguments": arguments, "environments": full, "said": said}
    forks.stdin.write(json.dumps(asked) + "\n")
    forks.stdin.flush()
    codes: list[int] = json.loads(forks.stdout.readline())
    return codes


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
