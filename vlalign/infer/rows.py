"""Rows of queries and candidates that a pass reads, and writes again with what it found."""

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from vlalign.data.images import headers_only
from vlalign.infer.pictures import called, kept, written
from vlalign.types import BadRow, Sample, UserError


def names(source: Any) -> Iterator[tuple[str, list[str]]]:
    """Ids of queries and of their candidates; no picture is decoded."""
    for place in range(len(source)):
        try:
            with headers_only():
                row = source.row(place)
        except BadRow:
            continue
        yield row.id, row.candidate_ids


def seal(row: Sample) -> dict[str, Any]:
    """Its id, how many candidates it has, and a digest of all that is scored but what is inside files."""
    items = [(each.text, *map(called, each.images)) for each in (row["query"], *row["candidates"])]
    told = f"{row['id']}\0{row['candidate_ids']}\0{items}"
    digest = blake2b(told.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return {"id": row["id"], "count": len(row["candidates"]), "digest": digest}


def check_same(place: int, row: Sample, told: Mapping[str, Any]) -> None:
    """Raises UserError where what was scored is not what the row has now. `told`: with its seal."""
    if seal(row)["digest"] != told.get("digest"):
        raise UserError(
            f"data: row {place} is '{row['id']}' with {len(row['candidates'])} candidates, and was "
            f"'{told['id']}' with {told['count']} when it was scored, or these said something else; bring "
            "those data back, or choose another folder with out=FOLDER"
        )


def line(row: Sample, numbers: Mapping[str, Sequence[float]], images: Path) -> str:
    """As the source `candidates` reads it. Pictures that no file has are written into `images`."""
    query, *candidates = (written(kept(each, images)) for each in (row["query"], *row["candidates"]))
    own = [
        {"id": id, **each, **{name: values[at] for name, values in numbers.items()}}
        for at, (id, each) in enumerate(zip(row["candidate_ids"], candidates, strict=True))
    ]
    return json.dumps({"id": row["id"], "query": query, "candidates": own}, allow_nan=False) + "\n"
