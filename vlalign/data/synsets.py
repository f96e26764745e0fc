"""The database files of WordNet, Miller 1995, https://doi.org/10.1145/219717.219748: words and meanings."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vlalign.types import BadRow

LETTERS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}  # of an id, by the part of speech
MARKER = re.compile(r"\((?:a|p|ip)\)$")  # where an adjective may stand
FIRST = re.compile(r'[;:]\s*"')  # where a gloss ends and its examples begin
# What is said of a phrase in quotes is no example of it: `"lang syne" is Scottish`.
QUOTED = re.compile(r'"([^"]+)"(\s+[a-z])?')


@dataclass(frozen=True, slots=True)
class Synset:
    """Words of one meaning. `id`: a letter for the part of speech and the place in its file, `n02086723`."""

    id: str
    lemmas: tuple[str, ...]
    gloss: str  # what they mean, without the examples
    examples: tuple[str, ...]


def synsets(path: Path, part: str, skipped: dict[str, list[str]]) -> Iterator[Synset]:
    """Those of a file `data.PART`; a line that is none is told in `skipped` as `bad_synset`."""
    with path.open(encoding="latin-1") as file:
        for number, line in enumerate(file, 1):
            if not line.startswith("  "):  # the licence, above
                try:
                    yield synset(line, LETTERS[part])
                except BadRow as error:
                    skipped.setdefault(error.reason, []).append(f"{path.name}:{number}")


def synset(line: str, letter: str) -> Synset:
    """A line `offset file type count word id ... pointers | gloss; "example"`. Raises `bad_synset`."""
    head, _, told = line.partition(" | ")
    fields = head.split()
    try:
        offset, count = fields[0], int(fields[3], 16)
        words = [fields[4 + 2 * place] for place in range(count)]
    except (IndexError, ValueError) as error:
        raise BadRow("bad_synset", f"expected a line of WordNet's database, got {line[:60]!r}") from error
    first = FIRST.search(told)
    gloss = told[: first.start() if first else len(told)].strip().rstrip(";:").rstrip()
    if not (offset.isdecimal() and words and gloss):
        raise BadRow("bad_synset", f"it has no place, no word or no gloss: {line[:60]!r}")
    lemmas = tuple(MARKER.sub("", word).replace("_", " ") for word in words)
    quoted = QUOTED.findall(told, first.start()) if first else []
    examples = tuple(text.strip() for text, more in quoted if not more)
    return Synset(f"{letter}{offset}", lemmas, gloss, examples)
