"""The embeddings and fields of every rank's rows, for losses of the embeddings themselves."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from vlalign.ops.dist import Shares, shared
from vlalign.types import Batch, Embeddings, UserError


def everyone(
    features: Embeddings, batch: Batch, fields: Iterable[str]
) -> tuple[Embeddings, dict[str, Any], Shares]:
    """All rows in the order of ranks, their `fields`, and how the queries lie on the ranks.

    A row's gradient is summed over the ranks. Rows of the averaged weights come along where a batch has them.
    Raises UserError when the rows lack a field, or are no pairs.
    """
    if len(features.query) != len(features.key):
        raise UserError(
            f"embedding objectives pair each query with its key; here are {len(features.query)} queries and "
            f"{len(features.key)} keys"
        )
    queries, keys = shared([len(features.query), len(features.key)], features.query.device)
    shares = {"query": queries, "key": keys}
    shown: dict[str, Any] = {}
    names = sorted(set(fields))
    for side, each in shares.items():
        have: Mapping[str, Tensor] = batch[f"{side}_fields"]
        if missing := [name for name in names if name not in have]:
            raise UserError(
                f"an embedding objective reads the field '{missing[0]}', which the {side} rows do not have; "
                f"they have {', '.join(sorted(have))}; add it to data.annotate"
            )
        shown[f"{side}_fields"] = {name: each.gather(have[name]) for name in names}
    if "momentum" in batch:
        shown["momentum"] = {side: each.gather(batch["momentum"][side]) for side, each in shares.items()}
    query, key = queries.gather(features.query), keys.gather(features.key)
    return replace(features, query=query, key=key), shown, queries
