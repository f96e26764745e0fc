"""Queries with right and wrong texts as FlagEmbedding writes them, teacher scores included."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlalign.data.candidate_file import CandidateFile, labelled, scores_of
from vlalign.data.items import item, name, several
from vlalign.data.query_rows import Parsed
from vlalign.registry import SOURCES


@SOURCES.register("flag_embedding")
@dataclass(frozen=True, kw_only=True)
class FlagEmbedding(CandidateFile):
    """Lines `{"query", "pos": [], "neg": [], "pos_scores": [], "neg_scores": []}`; `neg` and scores may lack.

    Scores become the number `teacher_score` where all candidates of a line have one. `prompt` is not read: a
    model's own template says what is asked. A text that comes again is left out, so none is right and wrong.
    """

    def parse(self, told: dict[str, Any], line: str, folder: Path) -> Parsed:
        """A line as a row. Raises BadRow."""
        right, wrong = (
            [item(text, None, folder) for text in several(told.get(x), x)] for x in ("pos", "neg")
        )
        given = told.get("pos_scores"), told.get("neg_scores")
        scores = {"teacher_score": scores_of(len(right), len(wrong), given, "pos_scores, neg_scores")}
        query = item(told.get("query"), None, folder)
        return labelled(name(told.get("id"), line), query, right, wrong, scores)
