"""A first stage's ranking over a corpus in the form of BEIR, Thakur et al. 2021, https://arxiv.org/abs/2104.08663."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vlalign.data.candidate_file import PicturedFile
from vlalign.data.candidate_rows import CandidateRows
from vlalign.data.documents import Documents
from vlalign.data.items import item, name, plain
from vlalign.data.json_rows import JsonFile, record
from vlalign.data.query_rows import LABEL, Parsed
from vlalign.data.rankings import Ranking, judgements, rankings
from vlalign.registry import SOURCES
from vlalign.types import BadRow, DataError, Item, Licence, Limits

CORPUS, QUERIES = "corpus.jsonl", "queries.jsonl"


@SOURCES.register("beir")
@dataclass(frozen=True, kw_only=True)
class BEIR(PicturedFile):
    """`path`: a folder of corpus.jsonl (`_id`, `title`, `text`, `image`), queries.jsonl (`_id`, `text`,
    `image`) and `qrels`, a table of BEIR's or of TREC's form; `run`: a ranking of TREC's form.

    Candidates are the `depth` best of the run, null for all, with the numbers `score` and `label`, 0 where
    nothing is judged. `missing`: relevant documents that are not among them are kept out, which `reranking`
    counts as not found, or are added with the score of the last. Rows are the queries of the run and of
    `qrels`; one without candidates is skipped as `not_retrieved`. Queries without a relevant document stay:
    the rows' `noted` counts them as `no_relevant`, those of which a relevant document is left out as
    `not_retrieved`, and as `no_positive` those without a label above 0, for either reason.
    """

    run: str
    qrels: str = "qrels/test.tsv"
    depth: int | None = 100
    missing: Literal["keep_out", "add"] = "keep_out"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth is not None and self.depth < 1:
            raise ValueError(f"depth must be >= 1 or null, got {self.depth}")

    def build(self, limits: Limits = Limits()) -> CandidateRows:
        """Find the good lines of every file; a bad one is skipped and counted. Raises DataError."""
        folder, run = Path(self.path).expanduser(), Path(self.run).expanduser()
        for path in (folder / CORPUS, folder / QUERIES, folder / self.qrels, run):
            if not path.is_file():
                there = ", ".join(sorted(each.name for each in path.parent.glob("*"))) or "nothing"
                raise DataError(f"{path} is no file; in its folder there is {there:.200}")
        documents = Documents(folder / CORPUS, "_id", partial(_document, self.folder(folder / CORPUS)))
        labels, bad_labels = judgements(folder / self.qrels)
        found, bad_ranks = rankings(run, self.depth)
        parse = partial(_row, labels, found, documents, self.missing == "add")
        rows = self.rows(folder / QUERIES, parse, documents)
        known = set(_ids(folder / QUERIES))
        lost = {"missing_query": [id for id in {**found, **labels} if id not in known]}
        every = [rows.skipped, bad_labels, bad_ranks, lost]
        reasons = dict.fromkeys(reason for each in every for reason, names in each.items() if names)
        rows.skipped = {
            reason: [name for each in every for name in each.get(reason, ())] for reason in reasons
        }
        rows.licences = [Licence(name=folder.name, licence=self.licence, source=str(folder))]
        return rows


def _row(
    labels: Mapping[str, Mapping[str, float]],
    found: Mapping[str, Ranking],
    documents: Documents,
    add: bool,
    told: dict[str, Any],
    line: str,
    folder: Path,
) -> Parsed | None:
    id = _id(told)
    if id not in found and id not in labels:
        return None
    ranking, judged = found.get(id, Ranking()), labels.get(id, {})
    ids, scores = ranking.ids, list(ranking.scores)
    relevant = [document for document, label in judged.items() if label > 0]
    lost = sorted(set(relevant) - set(ids))
    if add:
        absent = documents.lacks(lost)
        added = [document for document in lost if document not in absent]
        ids, lost = ids + added, absent
        scores += [scores[-1] if scores else 0.0] * len(added)
    if not ids:
        raise BadRow("not_retrieved", "the run has no candidates for it")
    return Parsed(
        id=id,
        query=item(told.get("text"), told.get("image"), folder),
        candidates=(),
        candidate_ids=ids,
        numbers={LABEL: [judged.get(document, 0.0) for document in ids], "score": scores},
        noted=("not_retrieved",) if lost else () if relevant else ("no_relevant",),
        lost={document: judged[document] for document in lost},
    )


def _document(folder: Path, told: dict[str, Any]) -> Item:
    """Title and text with a space between, as BEIR's own code joins them."""
    text = f"{plain(told.get('title'))} {plain(told.get('text'))}".strip()
    return item(text, told.get("image"), folder)


def _id(told: dict[str, Any]) -> str:
    if not (id := name(told.get("_id"), "")):
        raise BadRow("no_id", "a query has no '_id'")
    return id


def _ids(path: Path) -> Iterator[str]:
    for _, _, content in JsonFile.of(path).objects():
        with suppress(BadRow):
            yield _id(record(content))
