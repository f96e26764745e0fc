"""Queries with hard negatives and a judge's scores as UniME-V2 has them, Gu et al. 2025, https://arxiv.org/abs/2510.13515."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlalign.data.candidate_file import PicturedFile, labelled, scores_of
from vlalign.data.items import NUMBERED, item, kind, name, several
from vlalign.data.query_rows import Parsed
from vlalign.registry import SOURCES
from vlalign.types import BadRow, Item


@SOURCES.register("unime_v2")
@dataclass(frozen=True, kw_only=True)
class UniMEV2(PicturedFile):
    """Lines, or one array, of objects with a query, a right candidate and wrong ones.

    `query_text`, `query_image`, `pos_text`, `pos_image`; `hard_negatives`: pairs of text and image. Of
    `query_pos_scores` and `hard_negatives_scores` the number `judge_score` is made, where all candidates have
    one. `<|image_1|>` is taken out of texts. A negative that comes again, to fill the list, is left out.
    """

    def parse(self, told: dict[str, Any], line: str, folder: Path) -> Parsed:
        """A line as a row. Raises BadRow."""
        query, right = (
            item(told.get(f"{which}_text"), told.get(f"{which}_image"), folder, NUMBERED)
            for which in ("query", "pos")
        )
        wrong = [_pair(each, folder) for each in several(told.get("hard_negatives"), "hard_negatives")]
        score = told.get("query_pos_scores")
        given = score if isinstance(score, list | None) else [score], told.get("hard_negatives_scores")
        scores = {"judge_score": scores_of(1, len(wrong), given, "query_pos_scores, hard_negatives_scores")}
        return labelled(name(told.get("id"), line), query, [right], wrong, scores)


def _pair(told: Any, folder: Path) -> Item:
    if not isinstance(told, list) or len(told) != 2:
        raise BadRow("not_a_pair", f"hard_negatives: expected [text, image], got {kind(told)}")
    return item(told[0], told[1], folder, NUMBERED)
