"""What a bad row is called, and how it stops a strict run."""

from vlalign.types import BadRow, DataError, Source


def name_of(source: Source, index: int) -> str:
    """The id of a row, or its number where its file is gone."""
    try:
        return str(source.fields(index)["id"])
    except BadRow:
        return f"row {index}"


def refused(row: str, reason: str, detail: str = "") -> DataError:
    """The error of a run with `on_error: raise`. `detail`: what a BadRow says besides its reason."""
    more = f": {detail}" if detail and detail != reason else ""
    return DataError(f"row '{row}' is bad: {reason}{more}; on_error: skip leaves it out")
