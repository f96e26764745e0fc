"""The queries of one chunk, each with candidates drawn for it: what a loader's worker does for a reranker."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from vlalign.data.chunks import Chunks
from vlalign.data.hashing import hash63
from vlalign.data.images import with_pictures
from vlalign.data.query_rows import LABEL, QueryRows
from vlalign.types import BadRow, Batch, Inputs, Item, Limits


class PairProcess(Protocol):
    """A reranker's: a query and candidates -> what it reads of each; several queries' -> inputs.

    One that `refers` reads these beside a right answer of the query, which it is given too.
    """

    def read(self, query: Item, candidates: Sequence[Item], *right: Item) -> Any:
        """Of one query. Raises BadRow."""

    def join(self, read: Sequence[Any]) -> Inputs:
        """Of several."""


@dataclass(frozen=True, kw_only=True)
class Candidates(Chunks):
    """Queries and their candidates. `source`: rows with `query`, `candidates` and `numbers` of these.

    `asks`: whether a batch holds these as they are too, for a teacher: `asked` (query, drawn candidates).
    """

    source: QueryRows
    process: PairProcess
    limits: Limits = Limits()
    asks: bool = False

    def draw(self, index: int, epoch: int) -> dict[str, Any]:
        """So many right and wrong candidates as the source says, drawn anew. Raises BadRow."""
        row = self.source[index]
        chosen = drawn(
            row["numbers"][LABEL], self.source.positives, self.source.negatives, self.random(index, epoch)
        )
        if not chosen:
            raise BadRow("no_candidates", "none of the kind that is drawn; see positives and negatives")
        numbers = {name: [values[at] for at in chosen] for name, values in row["numbers"].items()}
        candidates = [row["candidates"][at] for at in chosen]
        query, *drawn_ones = (with_pictures(each, self.limits) for each in (row["query"], *candidates))
        read = self.process.read(query, drawn_ones, *self._beside(row))
        asked = (row["query"], candidates)
        return {"id": row["id"], "read": read, "numbers": numbers, "count": len(chosen), "asked": asked}

    def _beside(self, row: Mapping[str, Any]) -> list[Item]:
        """The right answer that is read beside each candidate, if any is. Raises BadRow."""
        if not getattr(self.process, "refers", False):
            return []
        return [with_pictures(right_answer(row, LABEL), self.limits)]

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Pairs side by side, `group` [P] telling whose they are."""
        counts = torch.tensor([row["count"] for row in rows])
        names = set.intersection(*(set(row["numbers"]) for row in rows))
        return {
            "pairs": self.process.join([row["read"] for row in rows]),
            "group": torch.arange(len(rows)).repeat_interleave(counts),
            "query_fields": {"row": torch.tensor([hash63(row["id"]) for row in rows])},
            "key_fields": {
                name: torch.tensor([x for row in rows for x in row["numbers"][name]], dtype=torch.float32)
                for name in sorted(names)
            },
            "ids": [row["id"] for row in rows],
            **({"asked": [row["asked"] for row in rows]} if self.asks else {}),
        }


def right_answer(row: Mapping[str, Any], label: str) -> Item:
    """The first candidate whose number `label` is above 0. Raises BadRow."""
    right = zip(row["candidates"], row["numbers"][label], strict=True)
    found: Item | None = next((each for each, number in right if number > 0), None)
    if found is None:
        raise BadRow(
            "no_right_answer", f"no candidate has a number '{label}' above 0, and each is read beside one"
        )
    return found


def drawn(
    labels: Sequence[float], positives: int | None, negatives: int | None, random: np.random.Generator
) -> list[int]:
    """Places of so many candidates of either kind, None for all, in any order: a list must not tell more."""
    right = np.array(labels) > 0
    found: list[int] = []
    for among, count in ((right, positives), (~right, negatives)):
        places = np.flatnonzero(among)
        if count is not None and len(places) > count:
            places = random.choice(places, count, replace=False)
        found += places.tolist()
    shuffled: list[int] = random.permutation(found).tolist()
    return shuffled
