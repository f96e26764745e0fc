"""A set that MMEB evaluates on; its first target is right. Jiang et al. 2024, https://arxiv.org/abs/2410.05160."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlalign.data.candidate_file import PicturedFile, labelled
from vlalign.data.candidate_rows import CandidateRows
from vlalign.data.items import NUMBERED, item, items, name, plain, several
from vlalign.data.query_rows import Parsed
from vlalign.registry import SOURCES
from vlalign.types import BadRow, DataError, Licence, Limits

SHARD = "test-*.parquet"


@SOURCES.register("mmeb_eval")
@dataclass(frozen=True, kw_only=True)
class MMEBEval(PicturedFile):
    """`path`: the folder of a set, as TIGER-Lab/MMEB-eval has `ImageNet-1K/test-00000-of-00001.parquet`, or a
    file of such rows, Parquet or JSON: `{"qry_text", "qry_img_path", "tgt_text": [], "tgt_img_path": []}`.

    `images`: where images.zip was unpacked; null for the folder above the set's, or that of the file. The
    sets' own score is P@1. Rows of MMEB-V2's picture sets (MMEB_Test_Instruct) have `qry_inst` besides, which
    stands before the query's text as in VLM2Vec; `tgt_inst` is left out, as Qwen3-VL-Reranker's evaluation
    leaves it. `<|image_1|>` is taken out. V2's visual documents are corpora with judgements: see `beir`.
    """

    def build(self, limits: Limits = Limits()) -> CandidateRows:
        """Find the good rows; a bad one is skipped and counted. Raises DataError."""
        path = Path(self.path).expanduser()
        rows = self.rows(_file(path), self.parse)
        rows.licences = [Licence(name=path.name, licence=self.licence, source=str(path))]
        return rows

    def folder(self, path: Path) -> Path:
        """Where paths of pictures begin."""
        above = self.images is None and Path(self.path).expanduser().is_dir()
        return path.parent.parent if above else super().folder(path)

    def parse(self, told: dict[str, Any], line: str, folder: Path) -> Parsed:
        """A row. Raises BadRow."""
        asked = [plain(told.get(column)).strip() for column in ("qry_inst", "qry_text")]
        query = item(" ".join(filter(None, asked)), told.get("qry_img_path"), folder, NUMBERED)
        targets = _targets(told, folder)
        return labelled(name(told.get("id"), line), query, targets[:1], targets[1:])


def _targets(told: dict[str, Any], folder: Path) -> Sequence[Any]:
    texts, images = (several(told.get(column), column) for column in ("tgt_text", "tgt_img_path"))
    if not any(plain(text).strip() for text in texts):
        texts = []
    found = items(texts, images, folder, NUMBERED)
    if len(found) < max(len(texts), len(images)):  # were one dropped, another might be the first
        raise BadRow("no_text", "a target has neither a text nor a picture")
    return found


def _file(path: Path) -> Path:
    """The file of a set. Raises DataError."""
    if not path.is_dir():
        return path
    found = sorted(path.glob(SHARD))
    if len(found) != 1:
        there = ", ".join(sorted(each.name for each in path.iterdir())) or "nothing"
        raise DataError(
            f"{path}: expected one {SHARD} in the folder of a set, got {len(found)}; there is {there:.200}"
        )
    return found[0]
