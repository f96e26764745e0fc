"""How a bad row stops a strict run."""

from vlalign.types import DataError


def refused(row: str, reason: str, detail: str = "") -> DataError:
    """The error of a run with `on_error: raise`. `detail`: what a BadRow says besides its reason."""
    more = f": {detail}" if detail and detail != reason else ""
    return DataError(f"row '{row}' is bad: {reason}{more}; on_error: skip leaves it out")
