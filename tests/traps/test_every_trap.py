"""The traps are numbered, so that none is forgotten."""

import re
from pathlib import Path


def test_every_number_is_there_once():
    files = Path(__file__).parent.glob("test_*.py")
    found = [int(name) for file in files for name in re.findall(r"^def test_(\d\d)_", file.read_text(), re.M)]
    assert sorted(found) == list(range(1, 29))
