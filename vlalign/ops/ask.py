"""What one term wants of one direction of a table."""

from collections.abc import Mapping
from dataclasses import dataclass

from vlalign.ops.mixing import Mix
from vlalign.ops.reductions import Reduction
from vlalign.ops.tile import Cell, Lens
from vlalign.types import Selector, Side, Targets


@dataclass(frozen=True, kw_only=True)
class Ask:
    """Reductions by name, what is relevant, which pairs count.

    `mix`: how synthetic negatives are made, that join each row's own.
    """

    reductions: Mapping[str, Reduction]
    side: Side
    targets: Targets
    selectors: tuple[Selector, ...] = ()
    mix: Mix | None = None

    @property
    def lens(self) -> Lens:
        """How it sees the table."""
        return Lens(self.side, self.targets, self.selectors)

    def cells(self) -> dict[str, Cell]:
        """Its reductions, each with what is given to it. Raises ValueError if that is not named before."""
        cells: dict[str, Cell] = {}
        for name, reduction in self.reductions.items():
            missing = [given for given in reduction.asked() if given not in cells]
            if missing:
                raise ValueError(
                    f"the reduction '{name}' is given '{missing[0]}', which is not among those before it "
                    f"({', '.join(cells) or 'none'}); name it first"
                )
            cells[name] = Cell(reduction, self.lens, tuple(cells[given] for given in reduction.asked()))
        return cells
