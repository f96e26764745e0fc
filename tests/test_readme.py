"""What the README says of the code is what the code says."""

import subprocess
import sys
from pathlib import Path


def test_the_table_of_components_is_fresh():
    command = [sys.executable, "scripts/method_table.py", "--check"]
    assert subprocess.run(command, capture_output=True).returncode == 0, (
        "run 'python scripts/method_table.py'"
    )


def test_it_opens_with_the_two_commands():
    lines = Path("README.md").read_text(encoding="utf-8").splitlines()
    assert [line.split()[0] for line in lines[3:5]] == ["scripts/quickstart", "scripts/test"]
