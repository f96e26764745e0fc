"""Queries with their candidates, a JSON object a line: what is mined, judged, learned from and reranked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlalign.data.candidate_file import CandidateFile
from vlalign.data.candidate_rows import parsed
from vlalign.data.query_rows import Parsed
from vlalign.registry import SOURCES


@SOURCES.register("candidates")
@dataclass(frozen=True, kw_only=True)
class CandidatesFile(CandidateFile):
    """Lines `{"id", "query": {"text", "image"}, "candidates": [{"id", "text", "image", "label", ...}]}`.

    A query may be a string; `image` is a path beside the file, `images` several. A candidate's numbers, such
    as `label` (above 0: right for the query; absent: 0) and a first stage's score, are what tasks may read.
    """

    def parse(self, told: dict[str, Any], line: str, folder: Path) -> Parsed:
        """A line as a row. Raises BadRow."""
        return parsed(told, line, folder)
