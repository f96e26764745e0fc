"""What the README says of the code is what the code says."""

import runpy
from pathlib import Path


def test_the_table_of_components_is_fresh():
    script = runpy.run_path("scripts/method_table.py")
    text = Path("README.md").read_text(encoding="utf-8")
    assert script["rewritten"](text) == text, "run 'python scripts/method_table.py'"


def test_it_opens_with_the_two_commands():
    lines = Path("README.md").read_text(encoding="utf-8").splitlines()
    assert [line.split()[0] for line in lines[3:5]] == ["scripts/quickstart", "scripts/test"]
