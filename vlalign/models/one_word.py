"""A picture or a text as a prompt of its own, which asks a language model for it in one word."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vlalign.models.pictures import Pictures
from vlalign.models.processors import fingerprint
from vlalign.models.prompt import Prompt, laid
from vlalign.models.prompts import PLACES, Prompts
from vlalign.types import BadRow, Inputs, Item, UserError

ANY = 2**31  # tokens, more than a picture has


@dataclass(frozen=True, kw_only=True)
class OneWord:
    """What is said of a picture, in the place {image}, and of a text, in the place {text}.

    `chat`: the user says it, as the model's own tokenizer writes conversations, and the answer would begin
    after it; without, the prompt is as it is written here.
    """

    image: str = "{image}\nSummarize above image in one word: "
    text: str = "{text}\nSummarize above sentence in one word: "
    chat: bool = True

    def __post_init__(self) -> None:
        for side in ("image", "text"):
            said: str = getattr(self, side)
            if said.count(f"{{{side}}}") != 1:
                raise ValueError(f"{side} must have the place {{{side}}} once, got {said!r:.80}")
            if other := PLACES.search(said):
                raise ValueError(f"{side} has the place {other[0]}, which is a reranker's; leave it out")
        if "{text}" in self.image or "{image}" in self.text:
            raise ValueError(
                "a prompt is of a picture or of a text, and one here has both places; take one out"
            )


@dataclass
class Said:
    """One of both, as `Prompts` wants a template: what is summarised is its document."""

    text: str
    chat: bool
    start: bool = True
    instruction: str = ""
    yes: str = ""
    no: str | None = None

    def whole(self, chat: Callable[[Sequence[Mapping[str, str]]], str]) -> str:
        """The text, as the tokenizer writes conversations where it is one."""
        return chat([{"role": "user", "content": self.text}]) if self.chat else self.text


class SummaryPrompts:
    """The `Processor` of both sides, and the `TextProcessor` of texts; to be pickled into a loader's workers.

    Of more than `length` tokens the end of a text is cut, and nothing else: of a picture any number is read.
    """

    def __init__(self, tokenizer: Any, prompt: OneWord, length: int, pictures: Pictures | None) -> None:
        """`pictures`: how prompts have them, None for a model that reads texts alone. Raises UserError."""
        self.tokenizer, self.length, self.pictures = tokenizer, length, pictures
        self.said = {"image": prompt.image, "text": prompt.text}
        self.sides = {
            side: self._prompts(side, text, prompt.chat)
            for side, text in self.said.items()
            if side == "text" or pictures
        }
        for side, own in self.sides.items():
            self.said[side] = f"{{{side}}}".join(own.pieces[::2])
        try:
            self.read("")
        except BadRow as error:
            raise UserError(f"model.length: {length} tokens are read, and prompt.text has more") from error

    @property
    def written(self) -> OneWord:
        """The prompt as it is read: a tokenizer's own way to write conversations may change."""
        return OneWord(**self.said, chat=False)

    def __call__(self, items: Sequence[Any]) -> Inputs:
        """Texts and RGB pictures -> `input_ids`, `mask` [N, T], padded on the right.

        Where any is a picture, also `pictures` [N], how many each has, and what `joined` says of them.
        Raises UserError.
        """
        read = [self.read(each) for each in items]
        seen = any(each.pictures for each in read)
        pad = int(self.tokenizer.pad_token_id or 0)
        inputs = laid([[each] for each in read], [0] * len(read), pad, pictures=seen)
        return {name: x for name, x in inputs.items() if name != "owner" and not name.startswith("prefix_")}

    def read(self, shown: Any) -> Prompt:
        """The prompt of a text, or of a picture. Raises UserError, BadRow for a picture it cannot read."""
        if isinstance(shown, str):
            side, item = "text", Item(text=shown)
        elif self.pictures is None:
            raise UserError("this model reads texts alone, and got a picture; take a model that sees")
        else:
            side, item = "image", Item(images=(shown,))
        own = self.sides[side]
        looks = own.look(item)
        text, start, stop = own.written(Item(), item, ((), looks))
        return own.tokens(text, [(start, stop)], looks)

    def lengths(self, inputs: Inputs) -> Tensor:
        """How many of the T tokens are a text's, [N]."""
        return inputs["mask"].sum(1)

    def describe(self) -> str:
        """Prompts, the tokenizer, and how pictures are read."""
        told = f"{self.length} {self.said} {fingerprint(self.tokenizer)}"
        if self.pictures is None:
            return told
        seen, how = self.pictures, self.pictures.processor.image_processor.to_json_string()
        return f"{told} {seen.mark} {seen.pixels} {how}"

    def _prompts(self, side: str, text: str, chat: bool) -> Prompts:
        said = Said(text.replace(f"{{{side}}}", "{document}"), chat)
        length = self.length if side == "text" else ANY
        made = Prompts(self.tokenizer, said, length, share=False, pictures=self.pictures)
        if len(made.pieces) != 3:
            raise UserError(f"prompt.{side}: the chat template of this tokenizer does not say it once")
        first = self.tokenizer.bos_token  # which a template may have written
        said.start = not (first and made.pieces[0].startswith(first))
        return made
