"""Starts modules in forks of a process that has nothing but imports, for those take longer than most runs.

A line of standard input asks: {"module", "arguments", "environments": one of each process, "said": a file for
what each says}; a line of standard output tells their numbers, and a second how each ended, as `subprocess`
would. When one fails the others are ended, as a launcher would.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

from tests.tokenizers import make_once

IMPORTS = (
    "accelerate.commands.launch",
    "deepspeed",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "open_clip",
    "peft",
    "rich.progress",
    "tests.dist.matrix",
    "tests.traps.cases",
    "torch._dynamo",
    "vlalign.cli.main",
    "vlalign.train.loop",
    "webdataset",
)
PATIENCE = 900.0  # seconds, as the stress scripts have; on a busy machine some runs took more than 300


def become(asked: Mapping[str, Any], environment: Mapping[str, str], said: str) -> None:
    """Be the process that was asked for, until it ends."""
    for stream, file in ((0, os.devnull), (1, said), (2, said)):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), stream)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [asked["module"], *asked["arguments"]]
    runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)


def waited(processes: list[int]) -> list[int]:
    """How each ended; nothing when their time was over."""
    codes: dict[int, int] = {}
    end, told = time.monotonic() + PATIENCE, False
    while len(codes) < len(processes):
        for process in processes:
            ended, status = (0, 0) if process in codes else os.waitpid(process, os.WNOHANG)
            if ended:
                codes[process] = os.waitstatus_to_exitcode(status)
        late = time.monotonic() > end
        if late or (any(codes.values()) and not told):
            told = True
            for process in {*processes} - codes.keys():
                os.kill(process, signal.SIGKILL if late else signal.SIGTERM)
        time.sleep(0.01)
    return [] if late else [codes[process] for process in processes]


def main() -> None:
    """Until nobody asks any more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # DeepSpeed prints while it is imported
    for name in IMPORTS:
        importlib.import_module(name)
    make_once()
    gc.freeze()
    while line := sys.stdin.readline():
        asked, processes = json.loads(line), []
        for environment, said in zip(asked["environments"], asked["said"], strict=True):
            if process := os.fork():
                processes.append(process)
            else:
                return become(asked, environment, said)
        print(json.dumps(processes), file=answers, flush=True)
        print(json.dumps(waited(processes)), file=answers, flush=True)


if __name__ == "__main__":
    main()
