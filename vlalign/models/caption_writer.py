"""A captioner for people who have pictures and texts, not tokens."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vlalign.models.prompt import Prompt
from vlalign.models.rerank_scorer import RerankScorer
from vlalign.types import BadRow, Item, UserError


class CaptionWriter(RerankScorer):
    """Writes captions, and tells how likely given ones are.

    As a Scorer it takes pictures with candidate captions, and texts with candidate pictures: a score is the
    mean log-probability of the caption's tokens, and of the one that ends it, where the picture is shown. A
    pair of two texts or of two pictures is refused, and so is an item of both.
    """

    model: Any

    def caption(self, images: Sequence[Any], tokens: int = 32, batch: int = 16) -> list[str]:
        """The likeliest caption of each picture, token by token, of at most so many tokens.

        `images`: PIL images or paths; `batch` of them in a forward. Raises UserError.
        """
        for name, value in (("tokens", tokens), ("batch", batch)):
            if value < 1:
                raise UserError(f"{name} must be >= 1, got {value}")
        process, found = self.model.process, list[str]()
        with self._in_use():
            for start in range(0, len(images), batch):
                try:
                    heads = [process.asked(self.opening(each)) for each in images[start : start + batch]]
                except BadRow as error:
                    raise UserError(f"a picture cannot be captioned: {error}") from error
                for ids in self.model.answers(heads, tokens):
                    found.append(process.tokenizer.decode(ids, skip_special_tokens=True).strip())
        return found

    def losses(self, images: Sequence[Any], captions: Sequence[str]) -> list[Tensor]:
        """The cross-entropy of each token of each picture's caption, [tokens] float32 on the CPU.

        Raises UserError.
        """
        if len(images) != len(captions):
            raise UserError(f"give a caption for each of {len(images)} pictures, got {len(captions)}")
        process, read = self.model.process, []
        for image, caption in zip(images, captions, strict=True):
            try:
                read += process.read(Item(images=(self.opening(image),)), [Item(text=caption)])
            except BadRow as error:
                raise UserError(f"the caption {caption!r:.80} cannot be scored: {error}") from error
        return self.losses_of(read)

    def losses_of(self, read: Sequence[Prompt]) -> list[Tensor]:
        """The same of prompts."""
        with self._in_use():
            found: list[Tensor] = self.model.losses(
                read, self._batches([len(each) for each in read]), self.seen
            )
        self._forget()
        return found
