"""The pictures of one chunk, each with one of its captions: what a loader's worker does for a captioner."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlalign.data.candidates import PairProcess
from vlalign.data.chunks import Chunks
from vlalign.types import Batch, Item


@dataclass(frozen=True, kw_only=True)
class Captions(Chunks):
    """Pictures and what is to be written about them. `source`: of pairs; `process`: a captioner's."""

    process: PairProcess

    def draw(self, index: int, epoch: int) -> dict[str, Any]:
        """One of its captions. Raises BadRow."""
        row = self._row(index)
        captions = row["captions"]
        which = int(self.random(index, epoch).integers(len(captions)))
        read = self.process.read(Item(images=row["images"]), [Item(text=captions[which])])
        return {"id": row["id"], "read": read, "conversions": row.get("conversions", ())}

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """The captions' tokens, and `labels` of these that are learned."""
        return {"pairs": self.process.join([row["read"] for row in rows]), "ids": [row["id"] for row in rows]}

    def _row(self, index: int) -> Mapping[str, Any]:
        """With `images`; none is decoded for a process that looks at none."""
        if getattr(self.process, "blind", False):
            return {**self.source.fields(index), "captions": self.source.captions(index), "images": ()}
        row = self.source[index]
        return {**row, "images": (row["image"],)}
