"""Queries that name documents of a corpus, as Tevatron has them."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vlalign.data.candidate_file import PicturedFile, labelled
from vlalign.data.candidate_rows import CandidateRows
from vlalign.data.documents import Documents
from vlalign.data.items import item, name, several
from vlalign.data.query_rows import Parsed
from vlalign.registry import SOURCES
from vlalign.types import BadRow, Item, Limits


@SOURCES.register("tevatron")
@dataclass(frozen=True, kw_only=True)
class Tevatron(PicturedFile):
    """`path`: lines of `query_id`, `query_text`, `query_image`, `positive_document_ids` and
    `negative_document_ids`; `corpus`: lines of `docid`, `document_text` and `document_image`.

    A query is skipped as `missing_document` where it names one that the corpus lacks, or whose line there is
    bad. `images` is of both files. A document that is named again is left out, so none is right and wrong.
    """

    corpus: str

    def build(self, limits: Limits = Limits()) -> CandidateRows:
        """Find the good lines of both files; a bad one is skipped and counted. Raises DataError."""
        corpus = Path(self.corpus).expanduser()
        documents = Documents(corpus, "docid", partial(_document, self.folder(corpus)))
        return self.rows(Path(self.path).expanduser(), self.parse, documents)

    def parse(self, told: dict[str, Any], line: str, folder: Path) -> Parsed:
        """A line as a row. Raises BadRow."""
        query = item(told.get("query_text"), told.get("query_image"), folder)
        right, wrong = (_ids(told, f"{which}_document_ids") for which in ("positive", "negative"))
        return labelled(name(told.get("query_id"), line), query, right, wrong)


def _document(folder: Path, told: dict[str, Any]) -> Item:
    return item(told.get("document_text"), told.get("document_image"), folder)


def _ids(told: dict[str, Any], which: str) -> list[str]:
    ids = [name(each, "") for each in several(told.get(which), which)]
    if not all(ids):
        raise BadRow("bad_id", f"{which}: the id of a document is empty")
    return ids
