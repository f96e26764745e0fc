"""A caption alone as the tokens of a text: what begins one, its words, and what ends an answer."""

from collections.abc import Sequence
from typing import Any

from vlalign.models import causal
from vlalign.models.caption_prompts import ANSWER, CaptionPrompts, Said, ending
from vlalign.models.pictures import Picture
from vlalign.models.prompt import Prompt, as_text, conversation, special_names
from vlalign.types import Item

NOTHING = Picture("", 0, b"", {})


class CaptionTexts(CaptionPrompts):
    """A captioner's prompts without picture and question. Pictures of a pair are passed over, unread."""

    blind = True
    pictures: Any = None

    def __init__(self, tokenizer: Any, length: int) -> None:
        """Raises UserError for a tokenizer that has nothing to begin a text with."""
        self.tokenizer, self.length, self.first = tokenizer, length, causal.first(tokenizer)
        self.special = special_names(tokenizer, str(tokenizer.chat_template))
        before: str = tokenizer.convert_ids_to_tokens(self.first)
        self.said, self.start = Said(before, "", "", _end(tokenizer, self.special)), False

    def asked(self, image: Any) -> Prompt:
        """What begins a text, whatever the picture."""
        return self.of([])

    def of(self, ids: Sequence[int]) -> Prompt:
        """A caption that is tokens already."""
        return self._prompt([self.first, *ids], range(1, 1 + len(ids)), NOTHING)

    def _look(self, item: Item) -> Picture | str:
        return as_text(item.text, self.special).strip() or NOTHING

    def _prompt(self, ids: list[int], own: range, picture: Picture) -> Prompt:
        return Prompt(ids, own, (), ids)


def _end(tokenizer: Any, special: Sequence[str]) -> str:
    """As its own conversations end an answer, where it has them."""
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": ANSWER}]
    told = conversation(tokenizer, turns) if tokenizer.chat_template else ""
    return ending(told.rpartition(ANSWER)[2], special, tokenizer)
