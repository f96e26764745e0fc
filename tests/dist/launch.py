"""Start a module on several processes by a launch file that is shipped."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
STRATEGIES = ("ddp", "zero1", "zero2", "zero3")


def command(processes: int, module: str, *arguments: str, by: str = "ddp") -> list[str]:
    launch: list[str] = []
    if processes > 1:
        launch = ["-m", "accelerate.commands.launch", "--config_file", f"recipes/launch/{by}.yaml"]
        launch += ["--num_processes", str(processes), "--main_process_port", "0"]
    return [sys.executable, *launch, "-m", module, *arguments]


def run(
    processes: int, module: str, *arguments: str, by: str = "ddp", code: int = 0, **environment: str
) -> str:
    """What a module said that ran on so many processes; it must end with `code`."""
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run(
        command(processes, module, *arguments, by=by),
        env=variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout + done.stderr
