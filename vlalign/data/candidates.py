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
    """A reranker's: a query and candidates -> what it reads of each; several queries' -> inputs."""

    def read(self, query: Item, candidates: Sequence[Item]) -> Any:
        """Of one query. Raises BadRow."""

    def join(self, read: Sequence[Any]) -> Inputs:
        """Of several."""


@dataclass(frozen=True, kw_only=True)
class Candidates(Chunks):
    """Queries and their candidates. `source`: rows with `query`, `candidates` and `numbers` of these."""

    source: QueryRows
    process: PairProcess
    limits: Limits = Limits()

    def draw(self, index: int, epoch: int) -> dict[str, Any]:
        """So many right and wrong candidates as the source says, drawn anew. Raises BadRow."""
        row = self.source[index]
        chosen = drawn(
            row["numbers"][LABEL], self.source.positives, self.source.negatives, self.random(index, epoch)
        )
        if not chosen:
            raise BadRow("no_candidates", "none of the kind that is drawn; see positives and negatives")
        numbers = {name: [values[at] for at in chosen] for name, values in row["numbers"].items()}
        query, *drawn_ones = (
            with_pictures(each, self.limits)
            for each in (row["query"], *(row["candidates"][at] for at in chosen))
        )
        read = self.process.read(query, drawn_ones)
        return {"id": row["id"], "read": read, "numbers": numbers, "count": len(chosen)}

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
        }


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
