import pytest

from tests.unit.data import pictures
from vlalign.data.near_duplicates import likeness, overlap, shingles
from vlalign.types import Item


def item(text="", *images):
    return Item(text=text, images=images)


def slow(one, other):
    """Jaccard of sets of three words, loops over words that blanks part."""
    sets = [{tuple(words[at : at + 3]) for at in range(max(len(words) - 2, 1))} for words in (one, other)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


SENTENCE = "the small cat sat on the old mat near the door of the red house while it rained all day"
LONG = SENTENCE.split()


@pytest.mark.parametrize("cut", range(12))
@pytest.mark.parametrize("least", [0.3, 0.5, 0.7, 0.9])
def test_texts_are_near_where_their_shingles_are(cut, least):
    other = [*LONG[: len(LONG) - cut], *["something"] * (cut % 3)]
    told = SENTENCE.upper() + "!", " ".join(other)
    assert overlap(*told, least) == (slow(LONG, other) >= least)
    assert overlap(*told[::-1], least) == overlap(*told, least)


def test_a_text_is_the_same_whatever_its_capitals_and_blanks():
    assert likeness(item("A  Cat"), item("a cat\n"), None) == "same"
    assert likeness(item("a cat."), item("a cat"), None) == ""
    assert likeness(item("a cat."), item("a cat"), 1.0) == "near"
    assert likeness(item("a red cat"), item("a blue cat"), 0.5) == ""


def test_words_without_blanks_and_texts_without_words():
    assert shingles("") == shingles("?!") == frozenset() and not overlap("?!", "...", 0.1)
    assert len(shingles("赤い車が木の近くにある")) == 9 and overlap(
        "赤い車が木の近くにある", "赤い車が木の近くにあった", 0.6
    )
    assert shingles("one two") == {("one", "two")}


def test_pictures_are_the_same_by_their_bytes(tmp_path):
    for name, colour in (("red", "red"), ("again", "red"), ("blue", "blue")):
        (tmp_path / name).write_bytes(pictures.encoded(pictures.plain(colour)))
    red, again, blue, none = (tmp_path / name for name in ("red", "again", "blue", "none"))
    assert likeness(item("", red), item("", again), 0.5) == "same"
    assert likeness(item("a", red), item("b", blue, again), 0.5) == "same"
    assert likeness(item("", red), item("", blue), 0.5) == likeness(item("", none), item("", none), 0.5) == ""
    # An instruction beside pictures says nothing of them.
    assert likeness(item("Find it.", red), item("Find it.", blue), 0.5) == ""
    assert likeness(item("Find it.", red), item("Find it."), 0.5) == ""
    assert likeness(item("", tmp_path), item("", tmp_path), 0.5) == ""
