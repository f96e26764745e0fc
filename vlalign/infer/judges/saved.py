"""A saved model as a judge: a reranker's raw score, or the cosine of a dual encoder or a text encoder."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from vlalign.evals.candidates import plain
from vlalign.infer.load import load
from vlalign.infer.unit_rows import unit_rower
from vlalign.models.adapter import digest
from vlalign.models.layout import folder_digest, located
from vlalign.models.packages import PREFIX, model_folder
from vlalign.ops.dist import own_device
from vlalign.recipe.offline import named
from vlalign.registry import JUDGES
from vlalign.types import Item


@JUDGES.register("saved")
@dataclass(frozen=True, kw_only=True)
class Saved:
    """`model`: a folder that `vlalign train` wrote, or a Hub id, as of `revision`.

    Or `package:NAME` of a text encoder, which passes over the pictures of what has a text.
    """

    model: str
    revision: str | None = None

    def __post_init__(self) -> None:
        named(self, "model")

    def build(self) -> "SavedJudge | TextJudge":
        """Found, not yet loaded. Raises UserError."""
        return TextJudge(self) if self.model.startswith(PREFIX) else SavedJudge(self)


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


class TextJudge:
    """The cosine of two texts."""

    width = 1

    def __init__(self, spec: Saved) -> None:
        self.name = spec.model
        self.digest = f"saved {folder_digest(located(model_folder(spec.model), None))}"

    @cached_property
    def embed(self) -> Callable[[Sequence[Item]], Tensor]:
        """On this process's device. Raises UserError."""
        return unit_rower(self.name)

    def measure(self, query: Item, candidates: Sequence[Item]) -> Iterator[Mapping[int, Sequence[float]]]:
        """All of them together. Raises UserError for a picture without a text."""
        own, *rows = self.embed([Item(text=x.text) if x.text.strip() else x for x in (query, *candidates)])
        yield {at: [float(row @ own)] for at, row in enumerate(rows)}
