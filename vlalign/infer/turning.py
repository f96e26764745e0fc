"""Demonstrations as turns of a conversation with a model of our own."""

from collections.abc import Sequence
from typing import Any

from vlalign.infer.questions import Demonstration
from vlalign.models.turns import Turn, is_conversation

Shown = Sequence[Sequence[Demonstration]]  # of each candidate, what stands before its question


def takes_turns(model: Any) -> bool:
    """Whether the prompt of a model, as a recipe has it, is a conversation, which answered pairs can open."""
    return is_conversation(getattr(model, "prompt", None))


def turns(shown: Shown, right: str, wrong: str) -> list[list[Turn]]:
    """With the answers that the model is told to have given."""
    return [
        [Turn(each.query, each.candidate, right if each.right else wrong) for each in own] for own in shown
    ]
