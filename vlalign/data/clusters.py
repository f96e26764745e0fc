"""Rows by cluster: what batches can be made of rows of one cluster, or of rows of as many as there are."""

from typing import NamedTuple

import numpy as np

from vlalign.specs import Ints


class Clusters(NamedTuple):
    """Rows side by side with those of their cluster, which is `rows[ends[c] - sizes[c] : ends[c]]`."""

    rows: Ints  # [N]
    sizes: Ints  # [K]
    ends: Ints  # [K]

    @classmethod
    def of(cls, labels: Ints, random: np.random.Generator) -> "Clusters":
        """The rows of each cluster in random order."""
        _, cluster, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        rows = random.permutation(len(labels))
        return cls(rows[np.argsort(cluster[rows], kind="stable")], sizes, sizes.cumsum())

    def exclusive(self, batch: int, random: np.random.Generator) -> Ints:
        """Full batches [T, batch] of different clusters: those that have most rows left give one each.

        Ties are random. So there are as many batches as can be, `most_batches`.
        """
        who = random.permutation(len(self.sizes))
        who = who[np.argsort(-self.sizes[who], kind="stable")]
        owed = -self.sizes[who]  # rows left, negative and so in ascending order, which it stays in
        places = np.empty((most_batches(self.sizes, batch), batch), np.int64)
        for step in range(len(places)):
            low, high = (np.searchsorted(owed, owed[batch - 1], side) for side in ("left", "right"))
            tied = low + random.choice(high - low, batch - low, replace=False, shuffle=False)
            chosen = np.concatenate([np.arange(low), tied])
            places[step] = self.ends[who[chosen]] + owed[chosen]
            last = high - (batch - low)  # where the chosen of the tied go, for they have fewer left now
            ahead, vacant = tied[tied < last], np.setdiff1d(np.arange(last, high), tied)
            who[ahead], who[vacant] = who[vacant], who[ahead]
            owed[:low] += 1
            owed[last:high] += 1
        return self.rows[places]

    def inclusive(self, batch: int) -> Ints:
        """Full batches [T, batch] of rows of one cluster each."""
        place = np.arange(len(self.rows)) - np.repeat(self.ends - self.sizes, self.sizes)
        return self.rows[place < np.repeat(self.sizes // batch * batch, self.sizes)].reshape(-1, batch)


def most_batches(sizes: Ints, batch: int) -> int:
    """How many full batches without a cluster twice: the largest T with sum_k min(sizes_k, T) >= batch T."""
    low, high = 0, int(sizes.sum()) // batch
    while low < high:
        middle = (low + high + 1) // 2
        if int(np.minimum(sizes, middle).sum()) >= batch * middle:
            low = middle
        else:
            high = middle - 1
    return low
