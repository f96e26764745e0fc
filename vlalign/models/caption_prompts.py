"""A picture, what is asked about it, and a caption as the tokens of a model's own conversation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vlalign.models.pictures import Picture, Pictures
from vlalign.models.prompt import Prompt, alike, as_text, conversation, keys, laid, special_names
from vlalign.types import BadRow, Inputs, Item, UserError

ANSWER = "ANSWER"


class CaptionPrompts:
    """Writes and tokenises conversations; to be pickled into a loader's workers.

    Each is tokenised whole: what the user says, the caption, and the token that ends the answer. Where that
    is longer than `length` tokens, the end of the caption is cut, with the token that ends it; a picture
    never is. A special token's name in a caption is text, and broken by a space.
    """

    def __init__(self, pictures: Pictures, ask: str, length: int) -> None:
        """`ask`: what the user says of the picture. Raises UserError for a model without conversations."""
        self.pictures, self.tokenizer, self.length = pictures, pictures.processor.tokenizer, length
        if pictures.processor.image_token in ask:
            raise UserError(f"ask: {pictures.processor.image_token} is written before it; leave it out")
        self.special = special_names(self.tokenizer, str(pictures.processor.chat_template))
        self.said = _said(pictures.processor, pictures.mark, ask, self.special)
        first = self.tokenizer.bos_token
        self.start = not (first and self.said.before.startswith(first))  # or a template has written it

    def read(self, query: Item, candidates: Sequence[Item]) -> list[Prompt]:
        """Of a picture and its captions, or of a caption and pictures, one each; pictures are RGB ones.

        Raises BadRow for any other pair, for an empty caption, and where no token of it would be read.
        """
        asked = self._look(query)
        return [self._one(asked, self._look(each)) for each in candidates]

    def asked(self, image: Any) -> Prompt:
        """A conversation up to where the answer begins. Raises BadRow where it is too long."""
        picture = self.pictures.read(image)
        ids = self._tokens(self._head(picture))[0]
        self._fits(len(ids))
        return self._prompt(ids, range(len(ids), len(ids)), picture)

    def join(self, read: Sequence[Sequence[Prompt]], shared: Sequence[int] | None = None) -> Inputs:
        """Prompts of several queries as `laid` has them, and what is to be written.

        `labels` [N]: the tokens of captions and what ends them; `row`, `place` [N]: the prompt of each, and
        which of its tokens after the shared ones stands before it. `shared`: none unless given, by who knows
        the pictures too: then their pixels are left out.
        """
        look = shared is None
        shared = [0] * len(read) if shared is None else shared
        rest = [(one, n) for each, n in zip(read, shared, strict=True) for one in each]
        told = [(one.ids[at], row, at - 1 - n) for row, (one, n) in enumerate(rest) for at in one.document]
        inputs = laid(read, shared, int(self.tokenizer.pad_token_id or 0), pictures=True, look=look)
        labels, rows, places = torch.tensor(told, dtype=torch.int64).reshape(-1, 3).T.contiguous()
        return {**inputs, "labels": labels, "row": rows, "place": places}

    def shared(self, read: Sequence[Prompt]) -> int:
        """How many tokens prompts begin with alike, what stands before a caption left out."""
        return min(alike(read), *(each.document.start - 1 for each in read)) if len(read) > 1 else 0

    def written(self, caption: str) -> list[int]:
        """The tokens of a caption and what ends it, as `labels` has them where nothing is cut."""
        text = as_text(caption, self.special).strip()
        ids, own = self._answered(self.said.before + self.said.after, text)
        return ids[own.start : own.stop]

    @property
    def ends(self) -> set[int]:
        """Tokens after which nothing more is said."""
        named = [self.said.end, self.tokenizer.eos_token]
        return {self.tokenizer.convert_tokens_to_ids(each) for each in named if each}

    def _one(self, one: Picture | str, other: Picture | str) -> Prompt:
        if isinstance(one, str):
            one, other = other, one
        if isinstance(one, str) or isinstance(other, Picture):
            raise BadRow("no_caption", "a pair is a picture and a text, whichever asks")
        ids, own = self._answered(self._head(one), other)
        self._fits(own.start)
        stop = min(own.stop, self.length)
        return self._prompt(ids[:stop], range(own.start, stop), one)

    def _answered(self, head: str, text: str) -> tuple[list[int], range]:
        """The tokens of a conversation, and which of them are the answer's and its end."""
        ids, offsets = self._tokens(f"{head}{self.said.gap}{text}{self.said.end}")
        own = [at for at, (first, last) in enumerate(offsets) if first < last and last > len(head)]
        return ids, range(own[0], own[-1] + 1)

    def _look(self, item: Item) -> Picture | str:
        """Raises BadRow."""
        text = as_text(item.text, self.special).strip()
        if len(item.images) + bool(text) != 1:
            raise BadRow(
                "no_caption",
                f"a pair is one picture and one text, and one side has {len(item.images)} pictures and "
                f"{'a' if text else 'no'} text",
            )
        return text or self.pictures.read(item.images[0])

    def _head(self, picture: Picture) -> str:
        return self.said.before + picture.text + self.said.after

    def _tokens(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        found = self.tokenizer(
            text, add_special_tokens=self.start, return_offsets_mapping=True, verbose=False
        )
        return found["input_ids"], found["offset_mapping"]

    def _fits(self, tokens: int) -> None:
        """Raises BadRow."""
        if tokens >= self.length:
            raise BadRow(
                "too_long",
                f"the picture and what is asked have {tokens} tokens, and {self.length} are read; set a "
                "larger length",
            )

    def _prompt(self, ids: list[int], own: range, picture: Picture) -> Prompt:
        return Prompt(ids, own, (picture,), keys(ids, (picture,), self.pictures.token))


@dataclass(frozen=True)
class Said:
    """A conversation about one picture. `gap`: white space before an answer; `end`: the token after it."""

    before: str
    after: str
    gap: str
    end: str


def _said(processor: Any, mark: str, ask: str, special: Sequence[str]) -> Said:
    """As the processor's template writes it. Raises UserError."""
    name = type(processor).__name__
    if not processor.chat_template:
        raise UserError(f"{name}: it has no chat template, and captions are answers; use an instruct model")
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ask}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]}
    text = conversation(processor, [user], add_generation_prompt=True)
    whole = conversation(processor, [user, answer])
    before, found, after = text.partition(mark)
    said, _, rest = whole.rpartition(ANSWER)
    if not found or not said:
        raise UserError(f"{name}: its chat template leaves out the {'answer' if found else 'picture'}")
    gap = said.removeprefix(text) if said.startswith(text) else ""
    return Said(before, after, gap if gap.isspace() else "", ending(rest, special, processor.tokenizer))


def ending(rest: str, special: Sequence[str], tokenizer: Any) -> str:
    """The token that ends an answer, after which `rest` follows in a conversation. Raises UserError."""
    ends = [each for each in special if rest.startswith(each)]
    end: str | None = max(ends, key=len) if ends else tokenizer.eos_token
    if not end:
        raise UserError(
            f"{type(tokenizer).__name__}: neither a chat template nor it has a token that ends an answer"
        )
    return end
