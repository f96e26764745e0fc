"""One sentence of a text an epoch: the text view of ConVIRT, Zhang et al. 2020, https://arxiv.org/abs/2010.00747."""

import re
from dataclasses import dataclass
from typing import Annotated

from vlalign.data.subset import Subset
from vlalign.registry import SOURCES
from vlalign.specs import SourceSpec
from vlalign.types import Limits

# White space after a mark of the end, with a bracket or a quote perhaps, where no small letter follows ("e.g.
# the"); the place after a full-width mark; blank lines.
END = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"')\]]))\s+(?![a-z])|(?<=[。！？])\s*|\s*\n\s*\n\s*")


@SOURCES.register("sentences")
@dataclass(frozen=True, kw_only=True)
class Sentences:
    """`source` with its captions, which may be reports, cut into sentences; all are equally likely.

    Numbers and marks alone ("1.") are no sentence. Abbreviations are not known: "Dr. No" is cut.
    """

    source: Annotated[SourceSpec, SOURCES]

    def build(self, limits: Limits = Limits()) -> Subset:
        """Build the source; texts are cut as they are read. Raises DataError."""
        source = self.source.build(limits)
        return _Cut(source, range(len(source)), {}, {}, what="sentences")


class _Cut(Subset):
    def captions(self, index: int) -> tuple[str, ...]:
        return tuple(sentence for text in super().captions(index) for sentence in split(text))


def split(text: str) -> tuple[str, ...]:
    """The sentences of a text, white space made even; at least one."""
    pieces = [" ".join(piece.split()) for piece in END.split(text)]
    return tuple(piece for piece in pieces if any(map(str.isalpha, piece))) or (" ".join(text.split()),)
