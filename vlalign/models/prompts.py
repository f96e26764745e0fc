"""A query and its candidates as the tokens of prompts: what they begin with alike stands once."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from vlalign.models.pictures import Picture, Pictures, refuse
from vlalign.models.prompt import Prompt, alike, as_text, conversation, keys, laid, special_names
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


class Prompts:
    """Writes and tokenises prompts; to be pickled into a loader's workers.

    Each prompt is tokenised whole, as the model's makers do, so no seam between its parts changes a token.
    Where it is longer than `length` tokens, the end of the document's words is cut, and nothing else; a
    picture stays whole. What a query or a document contains is text: a special token's name in it is broken
    by a space. Pictures of an item stand before its words.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: TemplateSpec,
        length: int,
        share: bool = True,
        pictures: Pictures | None = None,
        ignore: bool = False,
    ) -> None:
        """`share`: whether tokens that a query's prompts begin with alike are to be read once.

        `ignore`: without `pictures`, whether those of an item that has a text are passed over.
        """
        self.tokenizer, self.length, self.share, self.pictures = tokenizer, length, share, pictures
        self.ignore = ignore
        self.words = pictures.processor if pictures else tokenizer  # who writes conversations
        self.template, self.pieces = template, PLACES.split(_whole(self.words, template))
        if pictures and pictures.processor.image_token in "".join(self.pieces):
            raise UserError(
                f"prompt: it contains {pictures.processor.image_token}, and pictures are written before the "
                "words of their query or document; leave it out"
            )
        self.special = special_names(tokenizer, "".join(self.pieces))

    def read(self, query: Item, candidates: Sequence[Item]) -> list[Prompt]:
        """Each prompt; pictures are RGB ones. Raises BadRow where what must not be cut is too long."""
        asked = self.look(query)
        return [self.one(query, each, asked) for each in candidates]

    def join(self, read: Sequence[Sequence[Prompt]], shared: Sequence[int] | None = None) -> Inputs:
        """Prompts of several queries, as `laid` has them.

        `shared`: tokens that are read once, known to who knows the pictures too: their pixels are left out.
        """
        look = shared is None
        shared = [self.shared(each) for each in read] if shared is None else shared
        pad, pictures = int(self.tokenizer.pad_token_id or 0), self.pictures is not None
        return laid(
            read, shared, pad, pictures, int(self.share), look
        )  # ZeRO-3 wants a prefix of all or of none

    def one(
        self,
        query: Item,
        candidate: Item,
        asked: Sequence[Picture] | None = None,
        shown: Sequence[Picture] | None = None,
    ) -> Prompt:
        """The prompt of a pair. `asked`, `shown`: the pictures of either, if they were read already.

        Raises BadRow for a picture where only texts are read, or where what must not be cut is too long.
        """
        looks = (
            tuple(self.look(query) if asked is None else asked),
            tuple(self.look(candidate) if shown is None else shown),
        )
        text, start, stop = self.written(query, candidate, looks)
        pictures = looks[0] + looks[1] if self.query_first else looks[1] + looks[0]
        return self.tokens(text, [(start, stop)], pictures)

    def tokens(self, text: str, documents: Sequence[tuple[int, int]], pictures: Sequence[Picture]) -> Prompt:
        """Of a prompt; `documents`: where in it their words begin and end. Of several the longest are cut.

        Raises BadRow where what must not be cut is too long.
        """
        found = self.tokenizer(
            text, add_special_tokens=self.template.start, return_offsets_mapping=True, verbose=False
        )
        ids, offsets = found["input_ids"], found["offset_mapping"]
        own = [
            [at for at, (first, last) in enumerate(offsets) if start <= first < last <= stop]
            for start, stop in documents
        ]
        kept, extra = list(map(len, own)), len(ids) - self.length
        if extra > sum(kept):
            raise BadRow(
                "too_long",
                f"the prompt without its document has {len(ids) - sum(kept)} tokens, and {self.length} are "
                "read; set a larger length",
            )
        for _ in range(extra):
            kept[kept.index(max(kept))] -= 1
        if extra > 0:
            lost = {at for each, keep in zip(own, kept, strict=True) for at in each[keep:]}
            ids = [id for at, id in enumerate(ids) if at not in lost]
        first = own[0][0] if own[0] else len(ids)
        return Prompt(
            ids,
            range(first, first + kept[0]),
            tuple(pictures),
            keys(ids, pictures, self.pictures.token) if self.pictures else ids,
        )

    def written(
        self, query: Item, candidate: Item, looks: tuple[Sequence[Picture], Sequence[Picture]] = ((), ())
    ) -> tuple[str, int, int]:
        """The prompt as it is read, and where in it the document's words begin and end."""
        shown = "".join(each.text for each in looks[1])
        document = shown + as_text(candidate.text, self.special)
        text, start = self.filled(query, looks[0], document)
        return text, start + len(shown), start + len(document)

    def filled(self, query: Item, looks: Sequence[Picture], document: str) -> tuple[str, int]:
        """The prompt of a document as it is read, and where in it that begins."""
        own = {
            "instruction": self.template.instruction,
            "query": "".join(each.text for each in looks) + as_text(query.text, self.special),
            "document": document,
        }
        text, start = "", 0
        for index, piece in enumerate(self.pieces):  # words and places by turns
            if index % 2 and piece == "document":
                start = len(text)
            text += own[piece] if index % 2 else piece
        return text, start

    @property
    def query_first(self) -> bool:
        """Whether a query stands before its document."""
        places = self.pieces[1::2]
        return places.index("query") < places.index("document")

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

    def shared(self, read: Sequence[Prompt]) -> int:
        """How many tokens of a query's prompts are read once."""
        return alike(read) if self.share and len(read) > 1 else 0

    def look(self, item: Item) -> list[Picture]:
        """Its pictures, none where they are passed over. Raises BadRow where only texts are read."""
        if self.pictures is None:
            refuse(item, self.ignore)
            return []
        return [self.pictures.read(image) for image in item.images]


def _whole(words: Any, template: TemplateSpec) -> str:
    def chat(messages: Sequence[Mapping[str, str]]) -> str:
        if not getattr(words, "chat_template", None):
            raise UserError(
                "prompt: it is a conversation, and this model's tokenizer has no chat template; use a prompt "
                "that is written out, such as qwen3_reranker, or give the tokenizer one"
            )
        told: list[Any] = list(messages)
        if hasattr(words, "image_processor"):  # texts and pictures are parts of what is said
            told = [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in messages]
        return conversation(words, told, add_generation_prompt=True)

    return template.whole(chat)
