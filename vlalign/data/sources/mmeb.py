"""Queries with a right and perhaps a wrong candidate as MMEB-train has them, Jiang et al. 2024, https://arxiv.org/abs/2410.05160."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlalign.data.candidate_file import PicturedFile, labelled
from vlalign.data.items import NUMBERED, item, items, name
from vlalign.data.query_rows import Parsed
from vlalign.registry import SOURCES


@SOURCES.register("mmeb")
@dataclass(frozen=True, kw_only=True)
class MMEB(PicturedFile):
    """Lines `{"qry", "qry_image_path", "pos_text", "pos_image_path", "neg_text", "neg_image_path"}`.

    Candidates may be lists; where text and picture are both empty there is none. `<|image_1|>` is taken out
    of texts. `path` may be one of MMEB-train's Parquet files.
    """

    def parse(self, told: dict[str, Any], line: str, folder: Path) -> Parsed:
        """A line as a row. Raises BadRow."""
        right, wrong = (
            items(told.get(f"{which}_text"), told.get(f"{which}_image_path"), folder, NUMBERED)
            for which in ("pos", "neg")
        )
        query = item(told.get("qry"), told.get("qry_image_path"), folder, NUMBERED)
        return labelled(name(told.get("id"), line), query, right, wrong)
