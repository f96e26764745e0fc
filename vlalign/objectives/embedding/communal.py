"""gCooL, Li, Jing and Tong 2022, https://arxiv.org/abs/2110.14863: communities found and contrasted."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from vlalign.ops.neighbours import neighbour_pairs
from vlalign.ops.precision import wide
from vlalign.registry import EMBEDDING_OBJECTIVES
from vlalign.types import Context, Embeddings, Side


@EMBEDDING_OBJECTIVES.register("communal")
@dataclass(frozen=True, kw_only=True)
class Communal:
    """Rows are members of learned `communities`, by a softmax of cosines with their centres.

    DeCA, by which the centres alone learn, asks that neighbours share a community: the graph joins a row to
    the `neighbours` nearest by the frozen field `graph` of the keys; `inter` weighs edges between two.

    The contrast tells the mean of the community that a row's partner is in from the means of the others on
    the partner's side. Those are weighed by exp(-`gamma` d^2), d^2 the squared distance of two means over its
    average, for on plain distances the released code's gamma, 8e-5, does nothing. Communities without rows
    are left out; the released code counts them, and as it is shipped it weighs none of them.

    `constant`: the mean of both losses; `paper`: DeCA's share falls as exp(-t), and both fade until t = 0.2,
    t being the fraction of all steps. It makes the field that the selector `communal` reads.
    """

    communities: int = 10
    temperature: float = 0.4
    neighbours: int = 10
    inter: float = 1.0
    gamma: float = 1.0
    graph: str = "text_features"
    schedule: Literal["constant", "paper"] = "constant"

    makes = ("communities",)

    def __post_init__(self) -> None:
        for name in ("communities", "neighbours"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("inter", "gamma"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")

    @property
    def fields(self) -> tuple[str, ...]:
        """What it reads of the rows."""
        return (self.graph,)

    def head(self, dim: int) -> nn.Module:
        """`weight` [K, D]: the centres."""
        return nn.Linear(dim, self.communities, bias=False)

    @torch.no_grad()
    def make(self, features: Embeddings) -> Mapping[Side, Mapping[str, Tensor]]:
        """Fields for the batch before the table is built: memberships [N, K] of each side's rows."""
        sides: tuple[Side, Side] = ("query", "key")
        return {side: {"communities": self._members(getattr(features, side), features)} for side in sides}

    def __call__(self, features: Embeddings, context: Context) -> Tensor:
        """Losses [N]; DeCA's is the batch's."""
        rows = len(features.query)
        query, key = wide(features.query), wide(features.key[:rows])
        of_query, of_key = self._members(query, features), self._members(key, features)
        edges = neighbour_pairs(context.batch["key_fields"][self.graph][:rows], self.neighbours)
        density = (self._density(of_query, edges) + self._density(of_key, edges)) / 2
        contrast = (self._contrast(query, key, of_key) + self._contrast(key, query, of_query)) / 2
        alpha, rho = self._shares(context.step / context.total_steps)
        return alpha * (rho * density + (1 - rho) * contrast)

    def _shares(self, done: float) -> tuple[float, float]:
        return (1.0, 0.5) if self.schedule == "constant" else (max(0.0, 1 - done / 0.2), exp(-done))

    def _members(self, rows: Tensor, features: Embeddings) -> Tensor:
        centres = normalize(wide(features.extras["weight"]), dim=1)
        return (wide(rows).detach() @ centres.T / self.temperature).softmax(1)

    def _density(self, members: Tensor, edges: Tensor) -> Tensor:
        """DeCA []: edges between communities, less those within, over the pairs of rows and the rows."""
        rows = len(members)
        shared = members[edges[0]].T @ members[edges[1]]  # [K, K]
        within = shared.trace()
        between = (shared.sum() - within) / max(rows * (rows - 1), 1)
        return self.inter * between - (within - members.square().sum() / 2) / rows

    def _contrast(self, rows: Tensor, others: Tensor, members: Tensor) -> Tensor:
        """Losses [N] of one side against the means of the other's communities."""
        own = members.argmax(1)
        joins = one_hot(own, self.communities).to(rows.dtype)  # [N, K]
        sizes = joins.sum(0)
        means = (joins.T @ others.detach()) / sizes.clamp(min=1)[:, None]
        apart = (means[:, None] - means).square().sum(2)
        pairs = (sizes > 0) & (sizes > 0)[:, None]
        scale = apart[pairs].sum() / max(int(pairs.sum()) - int((sizes > 0).sum()), 1)
        log_weights = -self.gamma * apart / scale.clamp(min=torch.finfo(apart.dtype).tiny)  # own: 0
        scores = rows @ means.T / self.temperature
        weighed = (scores + log_weights[own]).masked_fill(sizes == 0, -torch.inf)
        return weighed.logsumexp(1) - scores.gather(1, own[:, None])[:, 0]
