"""The traps of rerankers are numbered, so that none is forgotten; some lie by an objective or in `dist`."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PLACES = ("rerank_traps", "dist", "unit/objectives/answers")
TRAPS = {
    1: "a score that depends on padding, or on what else is in the batch",
    2: "answers looked up alone, not after the prompt that they follow",
    3: "a prompt that is not its makers', or is another in training than in use",
    4: "a length that cuts the end of the prompt instead of the document",
    5: "a picture of which some tokens are cut away",
    6: "a picture that cannot be read and is scored nevertheless",
    7: "two logits subtracted in bf16, where scores become equal",
    8: "ranks by probabilities, which are 1 for many",
    9: "ties that are broken by the order of a file",
    10: "queries that nothing is right for, or whose right document was not found",
    11: "groups that are guessed from labels, and those in which all is wrong",
    12: "a negative that is the positive, or nearly so, under another id",
    13: "queries or documents that are in training and in the test",
    14: "weight and direction of a loss that are not those of its gradient",
    15: "adapters that learn nothing where activations are recomputed",
    16: "rows of a head that lies in parts on several processes",
    17: "gradients of chunks that are not those of the batch, with pictures or without",
    18: "the rows of two words that drag a gradient of the whole vocabulary along",
    19: "an adapter that scores otherwise once it is merged, saved or loaded",
    20: "queries that are lost or doubled where processes share them unevenly",
}


def numbered(folder: Path) -> dict[int, list[str]]:
    """Names of test functions by the traps that their names tell, `test_16_20_...` two of them."""
    found: dict[int, list[str]] = {}
    for path in sorted(folder.glob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and (told := re.match(r"test((?:_\d\d)+)_[a-z]", node.name)):
                for number in told[1].split("_")[1:]:
                    found.setdefault(int(number), []).append(f"{path.name}::{node.name}")
    return found


FOUND = [numbered(TESTS / place) for place in PLACES]


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: f"{trap:02}")
def test_every_trap_has_a_test(trap: int) -> None:
    assert any(trap in found for found in FOUND), f"no test of trap {trap:02}: {TRAPS[trap]}"


def test_no_test_has_a_number_that_is_no_trap() -> None:
    strange = {trap: names for found in FOUND for trap, names in found.items() if trap not in TRAPS}
    assert list(TRAPS) == list(range(1, 21)) and not strange
