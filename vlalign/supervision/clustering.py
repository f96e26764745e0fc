"""Groups of unit rows: k-means, and groups of equal sizes."""

import torch
from torch import Tensor

from vlalign.types import RecipeError

SAMPLE = 64  # rows a cluster that k-means looks for its centres among
ROUNDS = 20  # of moving two centres, at most


def kmeans(rows: Tensor, k: int, seed: int) -> Tensor:
    """The nearest of k centres to each of [N, D]: int64 [N]. Raises RecipeError when k is more than N."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    if k > len(rows):
        raise RecipeError(f"data.annotate: k is {k}, and there are {len(rows)} rows to cluster; use fewer")
    some = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[: SAMPLE * k]
    with threadpool_limits(1, "openmp"):  # several threads add up in the order in which they are done
        found = KMeans(k, n_init=1, random_state=seed).fit(rows[some].numpy())
    return torch.from_numpy(found.predict(rows.numpy())).long()


def balanced(rows: Tensor, k: int, seed: int) -> Tensor:
    """As `kmeans`, but the sizes of groups differ by one at most: rows are halved until there are k parts.

    Each cut is that of two-means under fixed sizes, of which the best assignment is known: rows sorted by how
    much nearer they are to one centre than to the other.
    """
    random = torch.Generator().manual_seed(seed)
    labels = torch.empty(len(rows), dtype=torch.int64)
    uncut, done = [(torch.arange(len(rows)), k)], 0
    while uncut:
        places, parts = uncut.pop()
        if parts == 1:
            labels[places], done = done, done + 1
            continue
        left = parts // 2
        size = left * (len(places) // parts) + min(left, len(places) % parts)
        order = _apart(rows[places], size, random)
        uncut += [(places[order[size:]], parts - left), (places[order[:size]], left)]
    return labels


def _apart(rows: Tensor, size: int, random: torch.Generator) -> Tensor:
    """An order of rows [n], the first `size` of which are one of two clusters."""
    one = rows[torch.randint(len(rows), (1,), generator=random)[0]]
    other = rows[(rows - one).norm(dim=1).argmax()]
    order = torch.arange(len(rows))
    for _ in range(ROUNDS):
        before, order = order, (rows @ (other - one)).argsort(stable=True)
        if torch.equal(before[:size].sort().values, order[:size].sort().values):
            break
        one, other = rows[order[:size]].mean(0), rows[order[size:]].mean(0)
    return order


def counted(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Classes from 0 to K - 1 in place of labels [N], and their sizes [K]."""
    found: tuple[Tensor, ...] = torch.unique(labels, return_inverse=True, return_counts=True)
    return found[1], found[2]


def splits(sizes: Tensor) -> Tensor:
    """Subclasses of classes of these sizes [K], each about as large as the smallest class, and that as 10."""
    return (sizes // sizes.min().clamp(min=10)).clamp(min=1)
