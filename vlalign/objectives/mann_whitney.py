"""MW loss, Sheikholeslami et al. 2025, https://arxiv.org/abs/2510.00137, eq. 3: area over the ROC."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlalign.ops.histogram import cells
from vlalign.ops.pairs import logistic_sums
from vlalign.ops.reductions import NEGATIVES, Count, Expected
from vlalign.ops.rows import TableRows
from vlalign.ops.softplus import softplus
from vlalign.registry import OBJECTIVES

EXACT = 2**26  # pairs
BINS = 8192


@OBJECTIVES.register("mann_whitney")
@dataclass(frozen=True, kw_only=True)
class MannWhitney:
    """Each row's positive against every negative of the batch, those of other rows and ranks included.

    log(1 + exp((negative - positive) / temperature)) of cosines, the mean over negatives. The paper's batch
    form sums over them without dividing, so that its steps grow with the batch; its bound, that the share of
    pairs in the wrong order, or equal, is at most the loss over log 2, needs the mean. Several positives of a
    row enter by their mean cosine, weighted by relevance. A row without one gives its negatives to others.

    Up to 2^26 pairs are compared one by one. Where there are more, the negatives are pooled at 8,192 cosines
    from -1 to 1 in the memory of a tile; a pair's error is then below 4e-9 / temperature^2.
    """

    temperature: float = 0.01

    symmetric = coupled = True
    reductions = {"positive": Expected(temperature=1.0), "count": Count(over=NEGATIVES, temperature=1.0)}

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")

    def __call__(self, rows: TableRows) -> Tensor:
        """Losses [Q]."""
        counts = rows.everyones(rows["count"].detach().double())
        count = counts.sum()
        compare = self._pooled if count * len(counts) > EXACT else self._each
        sums: Tensor = compare(rows) / count.where(count > 0, 1)
        return sums.to(rows["positive"].dtype)

    def _each(self, rows: TableRows) -> Tensor:
        """Sums over negatives [Q], pair by pair."""
        dense = rows.dense()
        weight = (dense.weight * (dense.targets <= 0)).to(dense.cosines.dtype)
        cosines, weight = rows.everyones(dense.cosines), rows.everyones(weight)
        some = weight > 0
        return logistic_sums(rows["positive"], cosines[some], weight[some], self.temperature)

    def _pooled(self, rows: TableRows) -> Tensor:
        """Sums over negatives [Q], read between those that positives at the points would have."""
        counts, places = rows.histogram(BINS), torch.arange(1 - BINS, BINS, device=rows.valid.device)
        losses = softplus(places.double() * (-2 / (BINS - 1) / self.temperature))  # by positive - negative
        size = 2 * BINS  # what a transform of this size wraps round lies before the part that is read
        spectrum = torch.fft.rfft(counts, size) * torch.fft.rfft(losses, size)
        table = torch.fft.irfft(spectrum, size)[BINS - 1 : 2 * BINS - 1]
        cell, share = cells(rows["positive"].double(), BINS)
        return torch.lerp(table[cell], table[cell + 1], share)
