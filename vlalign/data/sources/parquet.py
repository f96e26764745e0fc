"""A Parquet file, its pictures as paths, as bytes, or as the struct that Hugging Face `datasets` writes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from vlalign.data.catalogue import writing
from vlalign.data.hashing import hash63
from vlalign.data.images import decode_cell
from vlalign.data.index import Decoded, known
from vlalign.data.tables import Record, Table
from vlalign.files import cache_folder
from vlalign.registry import SOURCES
from vlalign.types import DataError, Limits


@SOURCES.register("parquet")
@dataclass(frozen=True, kw_only=True)
class Parquet(Table):
    """Pictures inside the file are laid out once in the cache, so that one is read without the others."""

    def records(self, path: Path) -> Iterator[tuple[int, Record]]:
        """Every row with its number; its picture is left where it is when it is bytes."""
        file = _open(path)
        for column in self.required():
            known(column, file.schema_arrow.names, str(path))
        inside = not _is_text(file.schema_arrow.field(self.image).type)
        columns = [column for column in self.required() if column != self.image or not inside]
        number = 0
        for batch in _batches(file, path, columns=columns):
            rows = [_undecoded(column).to_pylist() for column in batch.columns]
            for values in zip(*rows, strict=True):
                number += 1
                yield number, {self.image: number - 1} | dict(zip(columns, map(_text, values), strict=True))

    def reader(self, path: Path, limits: Limits) -> Callable[[Any], Decoded]:
        """By path like the other tables, or by row number from the copy in the cache."""
        if _is_text(_open(path).schema_arrow.field(self.image).type):
            return super().reader(path, limits)
        return partial(_picture, _lay_out(path, self.image), path.parent, limits)


def _open(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, UnicodeDecodeError) as error:  # the second: a damaged list of columns
        raise DataError(f"{path} is no Parquet file: {error}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _batches(file: Any, path: Path, **asked: Any) -> Iterator[Any]:
    """Record batches. Raises DataError for damaged pages: their OSError must not pass for the cache's."""
    import pyarrow

    try:
        yield from file.iter_batches(**asked)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _is_text(kind: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))


def _undecoded(column: Any) -> Any:
    """Strings as bytes: pyarrow gives up a whole batch for one that is not UTF-8."""
    import pyarrow

    kind = column.type
    if _is_text(kind):
        return column.cast(pyarrow.binary())
    if pyarrow.types.is_list(kind) and _is_text(kind.value_type):
        return column.cast(pyarrow.list_(pyarrow.binary()))
    return column


def _text(value: Any) -> Any:
    """Paths and ids as text; bytes that are no UTF-8 stay, and are counted by whoever reads them."""
    if not isinstance(value, bytes):
        return value
    return value.decode(errors="surrogateescape")


def _lay_out(path: Path, column: str) -> Path:
    """The image column as an uncompressed Arrow file in the cache, written once a state of the file."""
    import pyarrow
    from filelock import FileLock

    state = path.stat()
    folder = cache_folder() / "arrow"
    target = folder / f"{hash63(path.resolve(), column, state.st_size, state.st_mtime_ns):016x}.arrow"
    with writing(folder), FileLock(target.with_suffix(".lock")):
        if not target.exists():
            partial_file = target.with_suffix(".part")
            file = _open(path)
            schema = pyarrow.schema([file.schema_arrow.field(column)])
            with pyarrow.ipc.new_file(partial_file, schema) as writer:
                for batch in _batches(file, path, batch_size=256, columns=[column]):
                    writer.write_batch(batch)
            partial_file.replace(target)
    return target


@lru_cache(maxsize=8)
def _column(path: Path) -> Any:
    import pyarrow

    return pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).read_all().column(0)


def _picture(layout: Path, folder: Path, limits: Limits, row: int) -> Decoded:
    return decode_cell(folder, limits, _column(layout)[row].as_py())
