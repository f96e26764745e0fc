"""A word in use: where a text has it, with regular endings, and a word without a meaning in its place."""

import re
from collections.abc import Container
from itertools import count

from vlalign.data.hashing import hash63

TOKEN = re.compile(r"\w+(?:-\w+)*")
SHORT = 2  # letters: `as` is no plural of `a`
# Regular endings can follow these words without another change: blick, blicks, blicked, blicking.
SOUNDS = (
    "b bl br d dr f fl fr g gl gr h j k kl kr l m n p pl pr r s sk sl sm sn sp st t tr v w y z",
    "a e i o u ai ee oo ou",
    "b d f g k l lb lm lt m mb n nd nt p r rb rg rm rt sk t v z",
    "a e i o u ai ee oo ou",
    "b ck ft k l lb lk lm lp m mp n nk nt p r rb rk rm rn rp sk sp t",
)


def uses(text: str, lemma: str) -> list[tuple[int, int, str]]:
    """Start and stop of every use of a lemma in a text, and its ending: nothing, s, ed or ing."""
    words, gaps = TOKEN.findall(lemma.casefold()), TOKEN.split(lemma)[1:-1]
    tokens = list(TOKEN.finditer(text))
    found: list[tuple[int, int, str]] = []
    for at in range(len(tokens) - len(words) + 1 if words else 0):
        own = tokens[at : at + len(words)]
        endings = [_ending(token.group().casefold(), word) for token, word in zip(own, words, strict=True)]
        start, stop = own[0].start(), own[-1].end()
        same = None not in endings and TOKEN.split(text[start:stop])[1:-1] == gaps
        if same and (not found or start >= found[-1][1]):
            found.append((start, stop, next(filter(None, endings), "")))
    return found


def replaced(text: str, lemma: str, by: str) -> str:
    """The text with another word in place of every use of the lemma, endings and capitals as they were."""
    for start, stop, ending in reversed(uses(text, lemma)):
        word = by.capitalize() if text[start].isupper() else by
        text = text[:start] + word + ending + text[stop:]
    return text


def nonce(lemma: str, known: Container[str]) -> str:
    """A word of two syllables that is not among the known ones, always the same for a lemma."""
    for attempt in count():
        number, made = hash63("nonce", lemma, attempt), ""
        for sounds in map(str.split, SOUNDS):
            number, place = divmod(number, len(sounds))
            made += sounds[place]
        if made not in known:
            return made
    raise AssertionError("unreachable")


def _ending(form: str, word: str) -> str | None:
    """What a form of a word ends with, None where it is a form of another."""
    if form == word:
        return ""
    if len(word) <= SHORT or form[: len(word) - 1] != word[:-1]:
        return None
    stems = {word, word + word[-1], word.removesuffix("e"), re.sub("y$", "i", word)}
    for ending in ("ing", "ed", "es", "s"):
        if form.endswith(ending) and form.removesuffix(ending) in stems:
            return "s" if ending == "es" else ending
    return None
