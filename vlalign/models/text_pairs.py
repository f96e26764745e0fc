"""A query and a document as one sequence, the way that BERT reads two texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from vlalign.models.pictures import refuse
from vlalign.models.prompt import as_text, special_names
from vlalign.types import BadRow, Inputs, Item


@dataclass(frozen=True)
class TextPair:
    """`tokens`: lists of equal lengths, by the names of the network's arguments."""

    tokens: Mapping[str, list[int]]

    def __len__(self) -> int:
        return len(self.tokens["input_ids"])


class TextPairs:
    """Tokenises pairs; to be pickled into a loader's workers.

    Where a pair is longer than `length` tokens, the end of the document is cut, and nothing else. What a
    query or a document contains is text: a special token's name in it is broken by a space. `ignore`: whether
    pictures of what has a text are passed over.
    """

    def __init__(self, tokenizer: Any, length: int, ignore: bool = False) -> None:
        self.tokenizer, self.length, self.ignore = tokenizer, length, ignore
        self.special = special_names(tokenizer)

    def read(self, query: Item, candidates: Sequence[Item]) -> list[TextPair]:
        """Each pair. Raises BadRow for a picture, and for a query that leaves no token for a document."""
        for each in (query, *candidates):
            refuse(each, self.ignore)
        if not candidates:
            return []
        alone = len(self._tokenised(query, [Item()])[0])
        if alone >= self.length:
            raise BadRow(
                "too_long",
                f"the query without a document has {alone} tokens, and {self.length} are read; set a larger "
                "length",
            )
        return self._tokenised(query, candidates, truncation="only_second", max_length=self.length)

    def join(self, read: Sequence[Sequence[TextPair]]) -> Inputs:
        """Pairs of several queries -> what the network reads, [P, T], padded on the right."""
        pairs = [pair.tokens for each in read for pair in each]
        fill = {"input_ids": self.tokenizer.pad_token_id, "token_type_ids": self.tokenizer.pad_token_type_id}
        return {
            name: pad_sequence([torch.tensor(each[name]) for each in pairs], True, fill.get(name, 0))
            for name in pairs[0]
        }

    def _tokenised(self, query: Item, candidates: Sequence[Item], **cut: Any) -> list[TextPair]:
        asked, *documents = (as_text(each.text, self.special) for each in (query, *candidates))
        found = self.tokenizer([asked] * len(documents), documents, verbose=False, **cut)
        return [TextPair({name: ids[at] for name, ids in found.items()}) for at in range(len(documents))]
