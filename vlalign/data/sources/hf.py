"""A data set of the Hugging Face `datasets` library, by Hub id or from a local folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vlalign.data.images import decode_cell
from vlalign.data.index import Decoded, Index, Indexed, known
from vlalign.data.tables import Columns
from vlalign.registry import SOURCES, suggestion
from vlalign.types import DataError, Licence, Limits

SAVED = ("state.json", "dataset_info.json", "dataset_dict.json")  # what `save_to_disk` leaves


@SOURCES.register("hf")
@dataclass(frozen=True, kw_only=True)
class HuggingFace(Columns):
    """`path`: a Hub id, a folder of `save_to_disk`, or a folder of files; `config`: the name of a subset.

    `split` may be a slice (`test[:1000]`) unless `save_to_disk` wrote the folder.
    """

    path: str
    split: str = "train"
    config: str | None = None
    revision: str | None = None

    def build(self, limits: Limits = Limits()) -> Indexed:
        """Load, and index every column but the pictures. Raises DataError."""
        import datasets

        rows = self._load()
        for column in self.required():
            known(column, rows.column_names, self.path)
        if isinstance(rows.features[self.image], datasets.Image):
            rows = rows.cast_column(self.image, datasets.Image(decode=False))
        light = rows.select_columns([column for column in self.required() if column != self.image])
        classes = {key: kind.names for key, kind in light.features.items() if hasattr(kind, "names")}
        index = Index()
        for number, record in enumerate(light):
            name = f"{self.split}:{number}"
            with index.row(name):
                index.add(self.entry({self.image: None} | _named(record, classes), name, number))
        licence = Licence(name=self.path, licence=rows.info.license or "not stated", source=self.path)
        read = partial(_picture, rows.select_columns([self.image]), Path(self.path).expanduser(), limits)
        return Indexed(index.entries, read, [licence], index.skipped, what=f"{self.path} ({self.split})")

    def _load(self) -> Any:
        import datasets

        folder = Path(self.path).expanduser()
        try:
            if not any((folder / name).is_file() for name in SAVED):
                return datasets.load_dataset(
                    str(folder), self.config, split=self.split, revision=self.revision
                )
            loaded = datasets.load_from_disk(str(folder))
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"{self.path} cannot be loaded by datasets: {error}") from error
        if not isinstance(loaded, Mapping):
            return loaded
        if self.split not in loaded:
            hint = suggestion(self.split, sorted(loaded))
            raise DataError(f"{self.path} has no split '{self.split}'.{hint} Splits: {', '.join(loaded)}")
        return loaded[self.split]


def _named(record: Mapping[str, Any], classes: Mapping[str, list[str]]) -> dict[str, Any]:
    """Numbers of a ClassLabel as the names that they stand for."""
    return {
        key: classes[key][value] if key in classes and isinstance(value, int) and value >= 0 else value
        for key, value in record.items()
    }


def _picture(rows: Any, folder: Path, limits: Limits, number: int) -> Decoded:
    (cell,) = rows[number].values()
    return decode_cell(folder, limits, cell)
