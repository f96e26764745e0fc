"""A set of the multimodal reranking benchmark MRB, Dai et al. 2025, https://arxiv.org/abs/2510.14824."""

from dataclasses import dataclass
from pathlib import Path

from vlalign.data.candidate_file import PicturedFile
from vlalign.data.candidate_rows import CandidateRows
from vlalign.registry import SOURCES
from vlalign.types import Limits


@SOURCES.register("mrb")
@dataclass(frozen=True, kw_only=True)
class MRB(PicturedFile):
    """`path`: the folder of one of its 40 sets in 9 task types. As no files of theirs were found beside the
    paper and its models, a set is read in a plain form, by names that are the same for all:

    corpus.jsonl and queries.jsonl, lines `{"_id", "title", "text", "image"}` with paths of pictures in the
    folder or in `images`; qrels.tsv, `query-id corpus-id score`; and run.trec, what the first stage found,
    lines `query Q0 document rank score tag`, of which the `depth` best are candidates (the paper: 100 of
    GME-2B). They have the numbers `score` and `label`. What is relevant and was not retrieved counts as not
    found. All is as in `beir`, which takes other names.
    """

    depth: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth < 1:
            raise ValueError(f"depth must be >= 1, got {self.depth}")

    def build(self, limits: Limits = Limits()) -> CandidateRows:
        """Find the good lines of every file; a bad one is skipped and counted. Raises DataError."""
        beir = SOURCES.get("beir")(
            path=self.path,
            run=str(Path(self.path) / "run.trec"),
            qrels="qrels.tsv",
            depth=self.depth,
            images=self.images,
            licence=self.licence,
            positives=self.positives,
            negatives=self.negatives,
        )
        rows: CandidateRows = beir.build(limits)
        return rows
