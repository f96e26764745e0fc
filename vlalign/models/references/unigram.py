"""How rare a token is in the captions that are learned from, wherever it stands: a control for PRIOR."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlalign.registry import REFERENCES
from vlalign.types import Source


@REFERENCES.register("unigram")
@dataclass(frozen=True, kw_only=True)
class Unigram:
    """The log of a token's share of all tokens of all captions of `data.train`, each counted once more."""

    gives = "log_probability"

    def build(self, process: Any, source: Source, device: torch.device) -> "Shares":
        """Every caption is tokenised once, and no picture decoded."""
        return Shares(1 + occurrences(process, source))


def occurrences(process: Any, source: Source) -> np.ndarray[Any, np.dtype[np.int64]]:
    """How often each token stands in all captions."""
    counts = np.zeros(len(process.tokenizer), np.int64)
    for index in range(len(source)):
        for caption in source.captions(index):
            np.add.at(counts, process.written(caption), 1)
    return counts


class Shares:
    """Of each token, by its number."""

    def __init__(self, counts: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        self.digest = f"unigram {blake2b(counts.tobytes(), digest_size=16).hexdigest()}"
        self.log_share = torch.from_numpy(np.log(counts / counts.sum())).float()

    def __call__(self, captions: Sequence[Sequence[int]]) -> list[Tensor]:
        """Looked up."""
        return [self.log_share[torch.tensor(each)] for each in captions]
