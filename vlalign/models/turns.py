"""Prompts whose conversation has answered pairs before its question."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from vlalign.models.pictures import Picture
from vlalign.models.prompt import Prompt, as_text
from vlalign.models.prompts import Prompts, TemplateSpec
from vlalign.types import Item, UserError

Messages = Sequence[Mapping[str, str]]


class Turn(NamedTuple):
    """A pair that a model is asked about first, and what it is told to have answered."""

    query: Item
    candidate: Item
    answer: str


class TurnPrompts:
    """Prompts as `pairs` writes them, after turns of the same conversation, which its system message opens.

    Of the documents of a prompt that is too long the longest are cut, be they the question's or a turn's.
    """

    def __init__(self, pairs: Prompts) -> None:
        """Raises UserError for a prompt that is no conversation."""
        if not is_conversation(getattr(pairs, "template", None)):
            raise UserError(
                "demonstrations: they are turns of a conversation, and this prompt is written out; use a "
                "prompt that is one, such as `chat`"
            )
        self.pairs, self.made = pairs, dict[tuple[str, ...], Prompts]()

    def read(self, query: Item, candidates: Sequence[Item], before: Sequence[Sequence[Turn]]) -> list[Prompt]:
        """Each prompt, after the turns of its own. Raises BadRow, as `Prompts.read` does, UserError."""
        seen = dict[int, Picture]()  # many prompts have the same ones
        return [self.one(query, *each, seen) for each in zip(candidates, before, strict=True)]

    def one(self, query: Item, candidate: Item, before: Sequence[Turn], seen: dict[int, Picture]) -> Prompt:
        """The prompt of a pair. `seen`: pictures by `id`, and new ones come in. Raises BadRow, UserError."""
        made = self._made(tuple(each.answer for each in before))
        sides = {
            "query": iter([*(each.query for each in before), query]),
            "document": iter([*(each.candidate for each in before), candidate]),
        }
        text, documents, pictures = "", list[tuple[int, int]](), list[Picture]()
        for index, piece in enumerate(made.pieces):  # words and places by turns
            if piece not in sides or not index % 2:
                text += made.template.instruction if index % 2 else piece
                continue
            item = next(sides[piece])
            looks = self._look(item, seen)
            pictures += looks
            text += "".join(each.text for each in looks)
            start = len(text)
            text += as_text(item.text, made.special)
            if piece == "document":
                documents.append((start, len(text)))
        return made.tokens(text, documents, pictures)

    def _look(self, item: Item, seen: dict[int, Picture]) -> list[Picture]:
        if self.pairs.pictures is None:
            return self.pairs.look(item)
        for each in item.images:
            if id(each) not in seen:
                seen[id(each)] = self.pairs.pictures.read(each)
        return [seen[id(each)] for each in item.images]

    def _made(self, answers: tuple[str, ...]) -> Prompts:
        """The prompt with so many turns, its places in the order that they are filled in."""
        if answers not in self.made:
            own, spec = self.pairs, _Longer(self.pairs.template, answers)
            made = Prompts(own.tokenizer, spec, own.length, own.share, own.pictures, own.ignore)
            for place in ("query", "document"):
                if made.pieces[1::2].count(place) != len(answers) + 1:
                    raise UserError(
                        f"demonstrations: the system message of this prompt has the place {{{place}}}, and "
                        "there are several; say that in its text alone"
                    )
            self.made[answers] = made
        return self.made[answers]


class _Longer:
    """A template with answered turns."""

    def __init__(self, own: TemplateSpec, answers: Sequence[str]) -> None:
        self.own, self.answers = own, answers
        self.instruction, self.yes, self.no, self.start = own.instruction, own.yes, own.no, own.start

    def whole(self, chat: Callable[[Messages], str]) -> str:
        """The conversation up to the answer."""

        def longer(said: Messages) -> str:
            start = next((at for at, each in enumerate(said) if each["role"] != "system"), len(said))
            told = [*said[:start]]
            for answer in self.answers:
                told += [*said[start:], {"role": "assistant", "content": after + answer}]
            return chat([*told, *said[start:]])

        after = self.own.whole(lambda said: "")
        return self.own.whole(longer)


def is_conversation(template: Any) -> bool:
    """Whether it is written as a tokenizer writes conversations."""
    said = list[Mapping[str, str]]()

    def chat(messages: Messages) -> str:
        said.extend(messages)
        return ""

    if hasattr(template, "whole"):  # models that answer nothing have prompts of another kind, or none
        template.whole(chat)
    return bool(said)
