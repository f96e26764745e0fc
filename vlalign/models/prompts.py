"""A query and its candidates as the tokens of prompts: what they begin with alike stands once."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Protocol

import torch
from torch import Tensor

from vlalign.types import BadRow, Inputs, Item, UserError

PLACES = re.compile(r"\{(instruction|query|document)\}")


class TemplateSpec(Protocol):
    """A registered template, as a recipe has it."""

    instruction: str
    yes: str
    no: str | None
    start: bool

    def whole(self, chat: Callable[[Sequence[Mapping[str, str]]], str]) -> str:
        """The text with its places. `chat`: how the tokenizer writes a conversation."""


@dataclass(frozen=True)
class Prompt:
    """One prompt. `document`: which of its tokens are the document's own, so that they may be cut."""

    ids: list[int]
    document: range


class Prompts:
    """Writes and tokenises prompts; to be pickled into a loader's workers.

    Each prompt is tokenised whole, as the model's makers do, so no seam between its parts changes a token.
    Where it is longer than `length` tokens, the end of the document is cut, and nothing else. What a query or
    a document contains is text: a special token's name in it is broken by a space.
    """

    def __init__(self, tokenizer: Any, template: TemplateSpec, length: int, share: bool = True) -> None:
        """`share`: whether tokens that a query's prompts begin with alike are to be read once."""
        self.tokenizer, self.length, self.share = tokenizer, length, share
        self.template, self.pieces = template, PLACES.split(_whole(tokenizer, template))
        self.special = [name for name in tokenizer.get_added_vocab() if len(name) > 1]

    def read(self, query: Item, candidates: Sequence[Item]) -> list[list[int]]:
        """The tokens of each prompt. Raises BadRow where what must not be cut is too long."""
        return [self.one(query, each).ids for each in candidates]

    def join(self, read: Sequence[Sequence[Sequence[int]]]) -> Inputs:
        """Prompts of several queries -> what a reranker reads, padded on the right.

        `prefix_ids`, `prefix_mask` [Q, *]: what the prompts of a query begin with alike. `input_ids`, `mask`
        [P, *]: the rest of each, at least one token. `owner` [P]: its query.
        """
        shared = [self._shared(each) for each in read]
        prefix = self._padded([each[0][:n] if n else [] for each, n in zip(read, shared, strict=True)])
        rest = self._padded([x[n:] for each, n in zip(read, shared, strict=True) for x in each])
        owner = torch.arange(len(read)).repeat_interleave(torch.tensor([len(each) for each in read]))
        names = ("prefix_ids", "prefix_mask", "input_ids", "mask", "owner")
        return dict(zip(names, (*prefix, *rest, owner), strict=True))

    def one(self, query: Item, candidate: Item) -> Prompt:
        """The prompt of a pair. Raises BadRow for a picture, or where what must not be cut is too long."""
        if query.images or candidate.images:
            raise BadRow(
                "picture", "a query or a document has a picture, and this reranker reads texts alone"
            )
        text, start, stop = self.written(query, candidate)
        found = self.tokenizer(
            text, add_special_tokens=self.template.start, return_offsets_mapping=True, verbose=False
        )
        ids, offsets = found["input_ids"], found["offset_mapping"]
        own = [at for at, (first, last) in enumerate(offsets) if start <= first < last <= stop]
        extra = len(ids) - self.length
        if extra > len(own):
            raise BadRow(
                "too_long",
                f"the prompt without its document has {len(ids) - len(own)} tokens, and {self.length} are "
                "read; set a larger length",
            )
        first = own[0] if own else len(ids)
        kept = len(own) - max(extra, 0)
        if extra > 0:
            ids = ids[: first + kept] + ids[own[-1] + 1 :]
        return Prompt(ids, range(first, first + kept))

    def written(self, query: Item, candidate: Item) -> tuple[str, int, int]:
        """The prompt as it is read, and where in it the document begins and ends."""
        own = {
            "instruction": self.template.instruction,
            "query": self._plain(query.text),
            "document": self._plain(candidate.text),
        }
        text, start, stop = "", 0, 0
        for index, piece in enumerate(self.pieces):  # words and places by turns
            before = len(text)
            text += own[piece] if index % 2 else piece
            if index % 2 and piece == "document":
                start, stop = before, len(text)
        return text, start, stop

    def answer(self, word: str) -> int:
        """The token that says a word after a prompt. Raises UserError where it is not exactly one."""
        text, _, _ = self.written(Item(text="a"), Item(text="b"))
        read = [
            self.tokenizer(each, add_special_tokens=self.template.start)["input_ids"]
            for each in (text, text + word)
        ]
        before, after = read
        if len(after) != len(before) + 1 or after[: len(before)] != before:
            raise UserError(
                f"prompt: '{word}' after the prompt is {len(after) - len(before)} tokens more, and must be "
                "one; name the answers as this model's tokenizer knows them, with or without a capital"
            )
        token: int = after[-1]
        return token

    def _plain(self, text: str) -> str:
        for name in self.special:
            text = text.replace(name, f"{name[0]} {name[1:]}")
        return text

    def _shared(self, ids: Sequence[Sequence[int]]) -> int:
        """How many tokens they begin with alike, the last of each left out."""
        if not self.share or len(ids) < 2:
            return 0
        same = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*ids, strict=False)))
        return min(same, min(map(len, ids)) - 1)

    def _padded(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        width = max(map(len, ids), default=0)
        tokens = torch.full((len(ids), width), int(self.tokenizer.pad_token_id or 0))
        mask = torch.zeros(len(ids), width, dtype=torch.int64)
        for row, each in enumerate(ids):
            tokens[row, : len(each)] = torch.tensor(each, dtype=torch.int64)
            mask[row, : len(each)] = 1
        return tokens, mask


def _whole(tokenizer: Any, template: TemplateSpec) -> str:
    def chat(messages: Sequence[Mapping[str, str]]) -> str:
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                "prompt: it is a conversation, and this model's tokenizer has no chat template; use a prompt "
                "that is written out, such as qwen3_reranker, or give the tokenizer one"
            )
        text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return text

    return template.whole(chat)
