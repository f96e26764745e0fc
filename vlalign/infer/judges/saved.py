"""A saved model as a judge: a reranker's raw score, or the cosine of a dual encoder."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vlalign.evals.candidates import plain
from vlalign.infer.load import load
from vlalign.models.adapter import digest
from vlalign.models.layout import located
from vlalign.ops.dist import own_device
from vlalign.recipe.offline import named
from vlalign.registry import JUDGES
from vlalign.types import Item


@JUDGES.register("saved")
@dataclass(frozen=True, kw_only=True)
class Saved:
    """`model`: a folder that `vlalign train` wrote, or a Hub id, as of `revision`."""

    model: str
    revision: str | None = None

    def __post_init__(self) -> None:
        named(self, "model")

    def build(self) -> "SavedJudge":
        """Found, not yet loaded. Raises UserError."""
        return SavedJudge(self)


class SavedJudge:
    """Loads its model when it is first asked, for all may be kept already."""

    width = 1

    def __init__(self, spec: Saved) -> None:
        self.folder = located(spec.model, spec.revision)
        self.digest = f"saved {digest(self.folder)}"

    @cached_property
    def model(self) -> Any:
        """On this process's device. Raises UserError."""
        return load(self.folder, device=own_device())

    def measure(self, query: Item, candidates: Sequence[Item]) -> Iterator[Mapping[int, Sequence[float]]]:
        """All of them together."""
        [scores] = self.model.score([plain(query)], [[plain(each) for each in candidates]])
        yield {at: [score] for at, score in enumerate(scores.tolist())}
