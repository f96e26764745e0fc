"""What a library raises about a model that it finds neither here nor on the Hub, as one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

from vlalign.types import UserError


@contextmanager
def fetching(what: str, library: str) -> Iterator[None]:
    """Raises UserError about `what` in place of what `library` raises for it inside the block."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # the HTTP client's

    try:
        yield
    except UserError:
        raise
    except (HTTPError, OSError) as error:
        raise UserError(
            f"{what}: {library} finds it neither on this machine nor at its source; check the name, fetch it "
            f"once where there is a network, or name a folder that has it ({line(error)})"
        ) from error
    except (RuntimeError, ValueError, ImportError, AssertionError, ZeroDivisionError) as error:
        raise UserError(f"{what}: {library} cannot build it: {line(error)}") from error


def line(error: Exception) -> str:
    """What an error says, in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__
