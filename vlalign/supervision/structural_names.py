"""Names of pictures by votes of their clusters, Zhang et al. 2023, https://arxiv.org/abs/2308.12960 (S3A).

The paper names every cluster, by a name that nobody voted for if need be. Here such a cluster has no name of
its own, and its pictures get those of others.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlalign.supervision.clustering import counted, kmeans

NUMBERS = 1 << 24  # similarities that are held at once
CANDIDATES = 3  # names of a cluster that descriptions tell apart
TIE = 1e-9  # of a cosine, beside a share of votes: where these are equal, the likest name is taken

Describe = Callable[[list[int]], Sequence[Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """N pictures in C clusters, of which each has one of V names that no other has.

    `votes`: of a cluster's pictures, the share that is most like a name. `changed`: how many pictures have
    another name after each round than before it, the first time than their own vote; and after descriptions.
    """

    cluster: Tensor  # int64 [N], from 0 to C - 1
    name: Tensor  # int64 [N], places among V
    names: Tensor  # int64 [C]
    votes: Tensor  # sparse float64 [C, V], rows sum to 1
    changed: tuple[int, ...]


def named(
    features: Tensor,
    names: Tensor,
    clusters: int,
    rounds: int = 3,
    describe: Describe | None = None,
    seed: int = 0,
) -> Named:
    """Names for unit rows [N, D] among unit rows [V, D], from clusters of k-means on.

    `describe`: places of names -> unit rows [*, D] of what else is said of each, perhaps none. Raises
    RecipeError where there are more clusters than rows.
    """
    return realigned(features, names, kmeans(features.cpu(), clusters, seed), rounds, describe)


def realigned(
    features: Tensor, names: Tensor, cluster: Tensor, rounds: int = 3, describe: Describe | None = None
) -> Named:
    """The same from any clusters [N] on.

    In a round they vote, each gets a name, every picture the likest of these, and those of one name are the
    next clusters. At the end the first three candidates of a cluster are told apart by what describes them.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be >= 1, got {rounds}")
    vote = likest(features, names)
    name, cluster, changed = vote, cluster.to(vote.device), []
    for _ in range(rounds):
        before, name = name, _round(features, names, vote, cluster)
        cluster = counted(name)[0]
        changed.append(int((name != before).sum()))
    told = _described(names, _candidates(features, names, vote, cluster), describe) if describe else None
    if told is not None:
        asked, rows, places = told
        vote = asked[_likest_own(features, rows, places[cluster])]
        whole = names.clone()
        whole[asked] = rows
        before, name = name, _round(features, whole, vote, cluster)
        changed.append(int((name != before).sum()))
    chosen, cluster = torch.unique(name, return_inverse=True)
    return Named(
        cluster=cluster,
        name=name,
        names=chosen,
        votes=shares(vote, cluster, len(names)),
        changed=tuple(changed),
    )


def likest(features: Tensor, names: Tensor) -> Tensor:
    """The place of the name that each row is most like: int64 [N]. Few similarities are held at a time."""
    return torch.cat([(features[rows] @ names.T).argmax(1) for rows in _blocks(len(features), len(names))])


def shares(vote: Tensor, cluster: Tensor, names: int) -> Tensor:
    """How many of a cluster's rows vote for a name, as a share: sparse float64 [C, V]."""
    cluster, sizes = counted(cluster)
    ones = torch.ones(len(vote), dtype=torch.float64, device=vote.device)
    found = torch.sparse_coo_tensor(
        torch.stack([cluster, vote]), ones, (len(sizes), names), check_invariants=False
    ).coalesce()
    values = found.values() / sizes[found.indices()[0]]
    return torch.sparse_coo_tensor(
        found.indices(), values, found.shape, is_coalesced=True, check_invariants=False
    )


def assigned(votes: Tensor, ties: Tensor | None = None) -> Tensor:
    """The column of each row of [C, K], no column twice, with the largest sum; -1 where it would be a 0.

    `ties` [C, K] decide between equal sums.
    """
    from scipy.optimize import linear_sum_assignment

    worth = votes if ties is None else votes + TIE * ties.where(votes > 0, 0)
    rows, columns = map(torch.from_numpy, linear_sum_assignment(worth.cpu().numpy(), maximize=True))
    out = torch.full((len(votes),), -1)
    out[rows] = columns
    return torch.where(votes.cpu()[torch.arange(len(out)), out] > 0, out, -1).to(votes.device)


def _round(features: Tensor, names: Tensor, vote: Tensor, cluster: Tensor) -> Tensor:
    """Each picture's name [N] among those that clusters get by their votes."""
    voted, table, like = _table(features, names, vote, cluster)
    place = assigned(table, like)
    chosen = voted[place[place >= 0]].sort().values
    return chosen[likest(features, names[chosen])]


def _table(features: Tensor, names: Tensor, vote: Tensor, cluster: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Names that have a vote [K]; the shares of clusters, and the cosines of their means with them [C, K]."""
    voted, place = torch.unique(vote, return_inverse=True)
    cluster, sizes = counted(cluster)
    means = features.new_zeros(len(sizes), features.shape[1]).index_add_(0, cluster, features)
    like = normalize(means, dim=1) @ names[voted].T
    return voted, shares(place, cluster, len(voted)).to_dense(), like.double()


def _candidates(features: Tensor, names: Tensor, vote: Tensor, cluster: Tensor) -> Tensor:
    """Up to three names of each cluster that have most of its votes: [C, 3], -1 where there are fewer."""
    voted, table, like = _table(features, names, vote, cluster)
    worth, place = (table + TIE * like).topk(min(CANDIDATES, len(voted)), dim=1)
    return torch.where(table.gather(1, place) > 0, voted[place], -1)


def _described(names: Tensor, candidates: Tensor, describe: Describe) -> tuple[Tensor, Tensor, Tensor] | None:
    """The candidates [S], their rows with what is said of them [S, D], and those of a cluster [C, 3] in S.

    None where nothing is said of any.
    """
    asked = torch.unique(candidates[candidates >= 0])
    told = describe(asked.tolist())
    if not any(len(each) for each in told):
        return None
    rows = [
        torch.cat([names[at : at + 1], each.to(names)]).mean(0)
        for at, each in zip(asked.tolist(), told, strict=True)
    ]
    places = torch.searchsorted(asked, candidates.clamp(min=int(asked[0])))
    return asked, normalize(torch.stack(rows), dim=1), torch.where(candidates >= 0, places, -1)


def _likest_own(features: Tensor, rows: Tensor, own: Tensor) -> Tensor:
    """Which of [S, D] each of [N, D] is most like, of those that [N, 3] names; -1 is none."""
    found = []
    for block in _blocks(len(features), len(rows)):
        like = (features[block] @ rows.T).gather(1, own[block].clamp(min=0))
        best = like.masked_fill(own[block] < 0, -torch.inf).argmax(1, keepdim=True)
        found.append(own[block].gather(1, best)[:, 0])
    return torch.cat(found)


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    size = max(1, NUMBERS // columns)
    return (slice(start, start + size) for start in range(0, rows, size))
