"""One prompt as tokens and pictures, and what several begin with alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from vlalign.models.pictures import Picture, joined
from vlalign.types import UserError


@dataclass(frozen=True)
class Prompt:
    """`document`: which of its tokens are the document's own words, so that they may be cut.

    `keys`: its tokens, but that those of two pictures are alike only where the pictures are.
    """

    ids: list[int]
    document: range
    pictures: tuple[Picture, ...] = ()
    keys: Sequence[Any] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def grown(self, ids: list[int]) -> "Prompt":
        """With more tokens at its end, none of them a picture's."""
        return replace(self, ids=[*self.ids, *ids], keys=[*self.keys, *ids])

    def divided(self, shared: int) -> tuple[tuple[Picture, ...], tuple[Picture, ...]]:
        """The pictures within the first so many tokens, and the others."""
        inside = len({key for key in self.keys[:shared] if isinstance(key, tuple)})
        return self.pictures[:inside], self.pictures[inside:]


def alike(prompts: Sequence[Prompt]) -> int:
    """How many tokens they begin with alike, the last of each left out."""
    keys = [each.keys for each in prompts]
    same = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*keys, strict=False)))
    return min(same, min(map(len, keys)) - 1)


def keys(ids: Sequence[int], pictures: Sequence[Picture], picture: int) -> list[Any]:
    """Tokens, and in a picture's place its number and what it is. `picture`: the token that stands there."""
    own = ((number, each.digest) for number, each in enumerate(pictures) for _ in range(each.tokens))
    return [next(own) if id == picture else id for id in ids]


def padded(ids: Sequence[Sequence[int]], pad: int, least: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens and mask [rows, longest], padded on the right, to `least` at least."""
    width = max([least, *map(len, ids)])
    tokens, mask = torch.full((len(ids), width), pad), torch.zeros(len(ids), width, dtype=torch.int64)
    for row, each in enumerate(ids):
        tokens[row, : len(each)] = torch.tensor(each, dtype=torch.int64)
        mask[row, : len(each)] = 1
    return tokens, mask


def laid(
    read: Sequence[Sequence[Prompt]],
    shared: Sequence[int],
    pad: int,
    pictures: bool,
    least: int = 0,
    look: bool = True,
) -> dict[str, Tensor]:
    """Prompts of several queries -> what a language model reads, padded on the right.

    `prefix_ids`, `prefix_mask` [Q, *]: the first `shared` tokens of the prompts of each query, which they
    begin with alike. `input_ids`, `mask` [P, *]: the rest of each, at least one token. `owner` [P]: its
    query. With `pictures`, `prefix_pictures` [Q] and `pictures` [P]: how many there are, and with `look` what
    a tower reads of them. `least`: tokens of the widest prefix, be they padding.
    """
    pairs = [(one, n) for each, n in zip(read, shared, strict=True) for one in each]
    prefix = padded([each[0].ids[:n] for each, n in zip(read, shared, strict=True)], pad, least)
    rest = padded([one.ids[n:] for one, n in pairs], pad)
    owner = torch.arange(len(read)).repeat_interleave(torch.tensor([len(each) for each in read]))
    names = ("prefix_ids", "prefix_mask", "input_ids", "mask", "owner")
    inputs = dict(zip(names, (*prefix, *rest, owner), strict=True))
    if not pictures:
        return inputs
    before = [each[0].divided(n)[0] for each, n in zip(read, shared, strict=True)]
    after = [one.divided(n)[1] for one, n in pairs]
    for side, groups in (("prefix_", before), ("", after)):
        inputs[f"{side}pictures"] = torch.tensor([len(each) for each in groups])
        inputs |= joined([one for each in groups for one in each], side, look)
    return inputs


def conversation(words: Any, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
    """As a tokenizer or a processor writes it. Raises UserError where its template refuses the messages."""
    from jinja2 import TemplateError

    try:
        text: str = words.apply_chat_template(messages, tokenize=False, **options)
    except TemplateError as error:
        roles = " and ".join(dict.fromkeys(each["role"] for each in messages))
        raise UserError(
            f"{type(words).__name__}: its chat template takes no conversation of {roles} ({error}); if the "
            "prompt has a system message, put those words into its text"
        ) from error
    return text


def special_names(tokenizer: Any, written: str = "") -> list[str]:
    """Tokens that a tokenizer finds in a text by name, and that mean more than their letters.

    They are the special ones, and those that `written` has: what a model's prompts or template are made of.
    """
    added = tokenizer.added_tokens_decoder.values()
    names = [each.content for each in added if each.special or each.content in written]
    return [name for name in names if len(name) > 1 and not name.isspace()]


def as_text(text: str, special: Sequence[str]) -> str:
    """A text that contains no such token, each name in it broken by a space."""
    for name in special:
        text = text.replace(name, f"{name[0]} {name[1:]}")
    return text
