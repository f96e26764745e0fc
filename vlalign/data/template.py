"""The words that a language model is asked in, and the two answers that are compared."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

PLACES = ("instruction", "query", "document")
Chat = Callable[[Sequence[Mapping[str, str]]], str]  # a tokenizer's own way to write a conversation


@dataclass(frozen=True, kw_only=True)
class Template:
    """`text` has the places {instruction}, {query} and {document}.

    `yes`, `no`: the words that may follow, each one token; without `no` the logit of yes is the score.
    `start`: whether the tokenizer's own beginning of a text stands before it.
    """

    text: str
    instruction: str = ""
    yes: str = "yes"
    no: str | None = "no"
    start: bool = False

    def __post_init__(self) -> None:
        for place in PLACES[1:]:
            if self.text.count(f"{{{place}}}") != 1:
                raise ValueError(f"text must have the place {{{place}}} once, got {self.text!r:.80}")
        if self.text.count("{instruction}") > 1:
            raise ValueError(f"text must have the place {{instruction}} at most once, got {self.text!r:.80}")
        if not self.yes or self.yes == self.no:
            raise ValueError(f"yes and no must be two words, got {self.yes!r} and {self.no!r}")

    def whole(self, chat: Chat) -> str:
        """The text, as the tokenizer writes conversations where it is one."""
        return self.text
