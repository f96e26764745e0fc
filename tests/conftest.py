"""What the workers of the tests share out, and make once."""

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from tests.tokenizers import make_once

TRAPS = "tests/traps"  # whose files share what two processes did


class Together(LoadFileScheduling):
    """A worker gets all tests of a file, and one of them all traps."""

    def _split_scope(self, nodeid: str) -> str:
        return TRAPS if nodeid.startswith(f"{TRAPS}/") else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together | None:
    """Where `--dist loadfile` is asked for."""
    return Together(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_finish() -> None:
    """When every test is imported, and open_clip with those that use it."""
    make_once()
