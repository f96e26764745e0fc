"""Queries with right and wrong conversations as ms-swift reads them for rerankers and embedders."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlalign.data.candidate_file import PicturedFile, labelled
from vlalign.data.items import UNNUMBERED, item, kind, name, several
from vlalign.data.query_rows import Parsed
from vlalign.registry import SOURCES
from vlalign.types import BadRow, Item


@SOURCES.register("ms_swift")
@dataclass(frozen=True, kw_only=True)
class MsSwift(PicturedFile):
    """A line is a query: what the user says last in `messages`, with `images`.

    `positive_messages`, `negative_messages`: a conversation a document, which is its last message;
    `positive_images`, `negative_images`: a list of paths, or one path, a document. `<image>` is taken out of
    texts. A document that comes again is left out, so none is right and wrong.
    """

    def parse(self, told: dict[str, Any], line: str, folder: Path) -> Parsed:
        """A line as a row. Raises BadRow."""
        query = item(_said(told.get("messages"), "user"), told.get("images"), folder, UNNUMBERED)
        right, wrong = (_documents(told, which, folder) for which in ("positive", "negative"))
        return labelled(name(told.get("id"), line), query, right, wrong)


def _documents(told: dict[str, Any], which: str, folder: Path) -> list[Item]:
    conversations, images = (
        several(told.get(f"{which}_{what}"), f"{which}_{what}") for what in ("messages", "images")
    )
    if images and len(images) != len(conversations):
        detail = f"{which}_images: {len(images)} of {len(conversations)} documents"
        raise BadRow("uneven_lists", detail)
    pairs = zip(conversations, images or [None] * len(conversations), strict=True)
    return [item(_said(conversation), own, folder, UNNUMBERED) for conversation, own in pairs]


def _said(conversation: Any, role: str | None = None) -> Any:
    """The content of the last message, of those in a role."""
    messages = conversation if isinstance(conversation, list) else [conversation]
    if wrong := [each for each in messages if not isinstance(each, dict)]:
        raise BadRow("not_a_message", f"expected messages with a role and a content, got {kind(wrong[0])}")
    said = [each.get("content") for each in messages if role in (None, each.get("role"))]
    if not said:
        raise BadRow("no_message", f"there is no message of the {role or 'document'}")
    return said[-1]
