from collections import Counter

import numpy as np
import pytest
from PIL import Image

from vlalign.data.pair_counts import count, grams_of, more_grams, words_of
from vlalign.data.sources import align_filter as module
from vlalign.data.sources.align_filter import AlignFilter
from vlalign.types import BadRow, DataError

OFF = dict.fromkeys(("texts_per_image", "images_per_text", "words", "frequent", "short_side", "aspect"))


class Crawl:
    """Rows of (size, captions, url); a row without a size cannot be opened. It builds itself."""

    licences = ()

    def __init__(self, rows, skipped=None):
        self.rows, self.skipped, self.opened = rows, skipped or {}, 0

    def build(self, limits=None):
        return self

    def __len__(self):
        return len(self.rows)

    def captions(self, index):
        return self.rows[index][1]

    def fields(self, index):
        return {"id": f"r{index}", "url": self.rows[index][2]}

    def __getitem__(self, index):
        size, captions, _ = self.rows[index]
        self.opened += 1
        if size is None:
            raise BadRow("truncated")
        return {**self.fields(index), "captions": captions, "image": Image.new("1", size)}


def built(rows, **rules):
    return AlignFilter(source=Crawl(rows), **(OFF | rules)).build()


def ids(source):
    return [source.fields(index)["id"] for index in range(len(source))]


def one(size=(300, 300), *captions, url="u"):
    return size, captions or ("a red cat",), url


def noisy(rows=200, seed=0):
    """A crawl with boilerplate, rare words, odd shapes and pictures that come again."""
    random = np.random.default_rng(seed)
    words = [f"w{rank}" for rank in (random.zipf(1.5, size=5000) % 200)]
    texts = [" ".join(random.choice(words, random.integers(1, 25))) for _ in range(rows)] + [
        "image not found"
    ] * 30
    sizes = [tuple(map(int, random.integers(100, 900, 2))) for _ in range(rows)]
    return [
        (sizes[row], tuple(random.choice(texts, random.integers(1, 4))), f"u{random.integers(rows // 3)}")
        for row in range(rows)
    ]


RULES = {
    "texts_per_image": 6, "images_per_text": 4, "words": (3, 20), "frequent": 400, "short_side": 200,
    "aspect": 3.0, "image": "url",
}  # fmt: skip


def naive(rows, texts_per_image, images_per_text, words, frequent, short_side, aspect, image):
    """What is left of each row, by a loop over all rows for each of them."""
    pairs = [(url, text.casefold()) for _, captions, url in rows for text in captions]
    grams = Counter(gram for _, text in pairs for gram in grams_of(text.split()))
    least = sorted(grams.values(), reverse=True)[frequent - 1] if frequent <= len(grams) else 0
    kept = {}
    for number, (size, captions, url) in enumerate(rows):
        if len({text for other, text in pairs if other == url}) > texts_per_image:
            continue
        left = [
            text
            for text in captions
            if len({other for other, same in pairs if same == text.casefold()}) <= images_per_text
            and words[0] <= len(text.split()) <= words[1]
            and all(grams[gram] >= least for gram in grams_of(text.casefold().split()))
        ]
        if left and min(size) > short_side and max(size) / min(size) < aspect:
            kept[number] = tuple(left)
    return kept


@pytest.mark.parametrize("seed", range(3))
def test_equals_a_loop_and_the_counts_of_rules_sum_to_the_drops(seed):
    rows = noisy(seed=seed)
    source, expected = built(rows, **RULES), naive(rows, **RULES)
    assert {int(source.fields(n)["id"][1:]): source.captions(n) for n in range(len(source))} == expected
    assert all(source[n]["captions"] == source.captions(n) for n in range(len(source)))
    dropped = [name for names in source.skipped.values() for name in names]
    assert sorted(dropped + ids(source)) == sorted(f"r{number}" for number in range(len(rows)))
    assert set(source.skipped) == set(RULES) - {"image"} and 5 < len(source) < 150


def test_rules_are_met_in_order_and_the_last_captions_rule_counts():
    rows = [
        one((100, 900), "cat", url="a"),
        one((100, 900)),
        one((300, 900)),
        one(None),
        one((300, 300), "dog", "a b c"),
    ]
    source = built(rows, words=(3, 20), short_side=200, aspect=3.0)
    assert source.skipped == {"words": ["r0"], "short_side": ["r1"], "aspect": ["r2"], "truncated": ["r3"]}
    assert source.captions(0) == ("a b c",)
    assert source.source.opened == 4  # the row without a text is not opened


def test_idempotent_given_frozen_counts():
    rows = noisy()
    how = AlignFilter(source=Crawl(rows), **RULES)
    once = how.build()
    counts = count((url, text) for _, captions, url in rows for text in captions)
    twice = how.select(once, counts)
    assert ids(twice) == ids(once) and twice.skipped == once.skipped
    assert [twice.captions(n) for n in range(len(twice))] == [once.captions(n) for n in range(len(once))]


@pytest.mark.parametrize(
    ("rule", "loose_to_tight"),
    [
        ("texts_per_image", [None, 9, 6, 3]),
        ("images_per_text", [None, 9, 4, 1]),
        ("words", [None, (2, 30), (3, 20), (4, 10)]),
        ("frequent", [None, 10**9, 2000, 900, 50]),
        ("short_side", [None, 100, 200, 400]),
        ("aspect", [None, 4.0, 3.0, 1.5]),
    ],
)
def test_monotone_in_thresholds(rule, loose_to_tight):
    rows = noisy()
    kept = [set(ids(built(rows, image="url", **{rule: value}))) for value in loose_to_tight]
    assert all(tight <= loose for loose, tight in zip(kept, kept[1:], strict=False)) and kept[-1] < kept[0]
    assert len(kept[0]) == len(rows)


def test_the_order_of_rows_does_not_matter():
    rows = noisy()
    mixed = np.random.default_rng(1).permutation(len(rows))
    kept = set(ids(built(rows, **RULES)))
    assert {f"r{mixed[int(name[1:])]}" for name in ids(built([rows[row] for row in mixed], **RULES))} == kept


def test_boundaries():
    sizes = {(600, 200): False, (599, 200): True, (200, 600): False, (300, 300): True}
    source = built([one(size) for size in sizes], aspect=3.0)
    assert ids(source) == [f"r{row}" for row, stays in enumerate(sizes.values()) if stays]
    assert ids(built([one((200, 300)), one((201, 300)), one((300, 200))], short_side=200)) == ["r1"]
    texts = [" ".join(["w"] * length) for length in (2, 3, 20, 21)]
    assert ids(built([one((9, 9), text) for text in texts], words=(3, 20))) == ["r1", "r2"]
    shared = [one((9, 9), "ten", url=f"a{row}") for row in range(10)]
    more = [one((9, 9), "Eleven ", url=f"b{row}") for row in range(11)]
    assert len(built(shared + more, images_per_text=10, image="url")) == 10
    two = [one((9, 9), "x", "y", url="a"), one((9, 9), "X", "z", url="b"), one((9, 9), "w", url="b")]
    assert ids(built(two, texts_per_image=2, image="url")) == ["r0"]
    assert ids(built([*two, two[0]], texts_per_image=2, image="url")) == ["r0", "r3"]  # the same pair again


def test_the_most_frequent_words_and_pairs_with_ties():
    rows = [one((9, 9), text) for text in ("a b", "a b", "b a", "a c")]
    # a: 4, b: 3, "a b": 2, then c, "b a" and "a c" once each
    assert ids(built(rows, frequent=3)) == ["r0", "r1"]
    assert ids(built(rows, frequent=4)) == ids(built(rows, frequent=7)) == ["r0", "r1", "r2", "r3"]


def counters(monkeypatch, **rules):
    """Which counters a filter fills."""
    made = []

    def spy(pairs, **asked):
        made.append(count(pairs, **asked))
        return made[-1]

    monkeypatch.setattr(module, "count", spy)
    built(noisy(), image="url", **rules)
    return {name for name, counter in vars(made[-1]).items() if counter}


def test_only_what_a_rule_asks_for_is_counted(monkeypatch):
    assert counters(monkeypatch) == counters(monkeypatch, words=(1, 30), short_side=1) == set()
    assert counters(monkeypatch, texts_per_image=9) == {"texts"}
    assert counters(monkeypatch, images_per_text=9) == {"pictures"}
    assert counters(monkeypatch, frequent=900) == {"grams"}
    assert counters(monkeypatch, frequent=100_000_000) == set()  # there are less words than that
    asked = count([("a", "x y"), ("a", "x"), ("b", "x")], texts=False)
    assert not asked.texts and sorted(asked.pictures.values()) == [1, 2] and asked.grams["x"] == 3


def test_whether_there_may_be_more_grams():
    texts = [text for _, captions, _ in noisy() for text in captions]
    grams = len({gram for text in texts for gram in grams_of(words_of(text))})
    assert more_grams(texts, grams - 1) and not more_grams(texts, 2 * len(" ".join(texts).split()))
    endless = iter(lambda: "two words", "")
    assert more_grams(endless, 100)


def test_the_column_is_looked_for_among_sorted_ones_only_where_it_is_not(monkeypatch):
    asked = []
    monkeypatch.setattr(module, "known", lambda *told: asked.append(told))
    assert len(built(noisy(), texts_per_image=9, image="url")) and not asked


def test_words():
    assert words_of("The cat's  -- DOG, (é)!") == ["the", "cat's", "dog", "é"]
    assert grams_of(["a", "b", "c"]) == ["a", "b", "c", "a b", "b c"] and grams_of(["a"]) == ["a"]


def test_nothing_is_opened_without_a_rule_for_sizes_and_what_was_skipped_before_is_told():
    crawl = Crawl([one(None), one(None, "b")], skipped={"not_json": ["x"]})
    source = AlignFilter(source=crawl, **(OFF | {"words": (3, 20)})).build()
    assert crawl.opened == 0 and source.skipped == {"not_json": ["x"], "words": ["r1"]}


def test_mistakes_are_told():
    with pytest.raises(DataError, match="align_filter leaves no row of 1; skipped: 1 words"):
        built([one((9, 9), "cat")], words=(3, 20))
    with pytest.raises(DataError, match="has no column 'uri'. Did you mean 'url'?"):
        built([one()], image="uri")
    for field, value, told in (
        ("texts_per_image", 0, ">= 1, got 0"),
        ("short_side", 0, ">= 1, got 0"),
        ("words", (5, 3), "1 <= fewest <= most"),
        ("aspect", 1.0, "> 1, got 1.0"),
    ):
        with pytest.raises(ValueError, match=f"{field} must be {told}"):
            AlignFilter(source=Crawl([]), **{field: value})
