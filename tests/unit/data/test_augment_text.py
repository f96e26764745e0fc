from collections import Counter

import numpy as np
import pytest

from vlalign.data.augment_text import augment_text
from vlalign.recipe.augmentation import Words

TEXT = "a small  black dog runs over the wet grass"
WORDS = TEXT.split()


def changed(how, text=TEXT, count=2000):
    return [augment_text(text, np.random.default_rng(seed), how) for seed in range(count)]


def test_a_caption_is_a_pure_function_of_the_generator():
    how = Words(swap=0.4, drop=0.4)
    assert changed(how, count=50) == changed(how, count=50) and len(set(changed(how, count=50))) > 20


def test_a_swap_exchanges_two_places_all_pairs_alike():
    found = Counter()
    for text in changed(Words(swap=1.0)):
        places = [
            place for place, pair in enumerate(zip(text.split(), WORDS, strict=True)) if len(set(pair)) > 1
        ]
        assert len(places) == 2 and sorted(text.split()) == sorted(WORDS)
        found[tuple(places)] += 1
    assert len(found) == 36 and all(abs(times - 2000 / 36) < 40 for times in found.values())


def test_dropping_keeps_the_order_and_the_share():
    lengths = []
    for text in changed(Words(drop=1.0, dropped=0.3)):
        left = iter(WORDS)
        assert all(word in left for word in text.split())
        lengths.append(len(text.split()))
    assert abs(np.mean(lengths) - 0.7 * 9) < 0.15


def test_nothing_is_ever_emptied():
    assert {text for text in changed(Words(drop=1.0, dropped=1.0), count=200)} == set(WORDS)
    for text in ("dog", "犬", "  ", ""):
        assert changed(Words(swap=0.5, drop=0.5, dropped=1.0), text, count=20) == [text] * 20


def test_shares_of_captions():
    found = changed(Words(swap=0.3, drop=0.2, dropped=0.5))
    kinds = Counter(
        "same" if text == TEXT else "swap" if len(text.split()) == 9 else "drop" for text in found
    )
    for kind, share in (("swap", 0.3), ("drop", 0.2), ("same", 0.5)):
        assert abs(kinds[kind] / 2000 - share) < 0.045
    assert set(changed(Words(), count=20)) == {TEXT}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"swap": 1.1}, "swap must be between 0 and 1, got 1.1"),
        ({"drop": -0.1}, "drop must be between 0 and 1, got -0.1"),
        ({"dropped": 2}, "dropped must be between 0 and 1, got 2"),
        ({"swap": 0.6, "drop": 0.6}, "swap and drop must be at most 1 together, got 0.6 and 0.6"),
    ],
)
def test_ranges(fields, told):
    with pytest.raises(ValueError, match=told):
        Words(**fields)
