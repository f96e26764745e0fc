"""The short form of `scripts/stress_resume.py`: real processes, killed."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "stress_resume.py"


@pytest.mark.slow
def test_killed_runs_end_like_the_one_that_nobody_killed():
    done = subprocess.run([sys.executable, str(SCRIPT), "--times", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 runs equal" in done.stdout
