"""What a test already stood in the training data: texts and pictures of one source that another has."""

from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from vlalign.data.items import normal
from vlalign.data.near_duplicates import picture_digest
from vlalign.data.query_rows import QueryRows
from vlalign.types import BadRow, DataError, Item

SHOWN = 3  # examples in an error


class Leak(NamedTuple):
    """Something that both sources have. `reason`: what it is in the test, such as `query_text`."""

    train: str
    test: str
    reason: str


def leaks(train: QueryRows, test: QueryRows, *, documents: bool = True) -> list[Leak]:
    """Texts and pictures of the test's queries and documents that the training data has, each of them once.

    Texts are compared without capitals, white space made even, and only those that stand alone: beside a
    picture a text is often an instruction that all rows share. Pictures are compared by the bytes of their
    files, and those that no file has by their pixels. A document is named ROW/CANDIDATE. Without `documents`
    only queries are compared, for sources that rank one corpus. Rows and pictures that cannot be read are
    passed over. Of the test a hash is held of each text and picture; the training data is read through once.
    """
    tested: dict[bytes, dict[str, str]] = {}
    for name, reason, digest in _marks(test, documents):
        tested.setdefault(digest, {}).setdefault(reason, name)
    met: dict[bytes, str] = {}
    for name, _, digest in _marks(train, documents):
        if digest in tested:
            met.setdefault(digest, name)
    found = ((digest, reason, name) for digest, names in tested.items() for reason, name in names.items())
    return [Leak(met[digest], name, reason) for digest, reason, name in found if digest in met]


def check_leakage(train: QueryRows, test: QueryRows, *, documents: bool = True) -> None:
    """Raises DataError where `leaks` finds any."""
    if found := leaks(train, test, documents=documents):
        shown = "; ".join(f"{reason}: {test} of the test is {train}" for train, test, reason in found[:SHOWN])
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise DataError(
            f"{len(found)} texts or pictures of the test {test.name} are in the training data {train.name} "
            f"({shown}{more}); take those rows out of either"
        )


def _marks(source: QueryRows, documents: bool) -> Iterator[tuple[str, str, bytes]]:
    """Name, reason and hash of each text that stands alone and of each picture."""
    for index in range(len(source)):
        with suppress(BadRow):
            for name, role, item in _items(source[index], documents):
                if not item.images:
                    yield name, f"{role}_text", _hash(b"text", normal(item.text).encode())
                for image in item.images:
                    if digest := _picture(image):
                        yield name, f"{role}_image", digest


def _items(row: dict[str, Any], documents: bool) -> Iterator[tuple[str, str, Item]]:
    yield row["id"], "query", row["query"]
    for id, item in zip(row["candidate_ids"], row["candidates"], strict=True) if documents else ():
        yield f"{row['id']}/{id}", "document", item


def _hash(*parts: bytes) -> bytes:
    return blake2b(b"\0".join(parts), digest_size=16).digest()


def _picture(image: Any) -> bytes:
    """Nothing of a file that cannot be read."""
    if isinstance(image, Path):
        return picture_digest(image)
    return _hash(b"pixels", f"{image.mode} {image.size}".encode(), image.tobytes())
