"""Triplets of emoji: what differs is what is asked, and neither the picture nor the text is enough."""

from collections import Counter

import pytest
from pydantic import ValidationError

from vlalign.data.emoji_variants import TEXTS, TONES, changes, variants
from vlalign.registry import SOURCES
from vlalign.types import DataError

CODES = {tone: code.lower() for code, tone in TONES.items()}


def build(**fields):
    return SOURCES.decode({"name": "emoji_changes", "style": "google", **fields}).build()


def parsed(code):
    """Base, tone and gender, of another parser: by the whole string."""
    tone = next((tone for tone, own in CODES.items() if f"-{own}" in code), "")
    code = code.replace(f"-{CODES[tone]}", "") if tone else code
    who = "woman" if "2640" in code or code.startswith("1f469") else ""
    who = "man" if "2642" in code or code.startswith("1f468") else who
    for old, new in (
        ("-200d-2640-fe0f", ""),
        ("-200d-2642-fe0f", ""),
        ("1f468", "1f9d1"),
        ("1f469", "1f9d1"),
    ):
        code = code.replace(old, new)
    return code.removesuffix("-fe0f"), tone, who


@pytest.fixture(scope="module")
def unseen():
    return build(split="unseen")


def test_the_right_one_differs_in_what_is_asked_and_wrong_ones_in_one_more_thing(unseen):
    values = {text: value for _, value, text in TEXTS}
    for row in unseen.rows:
        code = row.id.split("/")[1]
        base, tone, who = parsed(code)
        asked = values[row.query.text]
        wanted = (base, asked, who) if asked in CODES else (base, tone, asked if asked != "person" else "")
        right, *wrong = map(parsed, row.candidate_ids)
        assert right == wanted and right != (base, tone, who) and code not in row.candidate_ids
        assert row.numbers["label"] == [1.0, *[0.0] * 8]
        assert len(set(row.candidate_ids)) == 9
        same, others = wrong[:4], wrong[4:]
        at = 1 if asked in CODES else 2
        assert all(each[0] == base and each[at] != right[at] for each in same)
        assert all(each[0] != base and each[1:] == right[1:] for each in others)


def test_no_base_is_on_two_sides_and_styles_match(unseen):
    train = build(split="train")
    sides = [{parsed(code)[0] for row in rows.rows for code in row.candidate_ids} for rows in (unseen, train)]
    assert not sides[0] & sides[1]
    whole = build(split="all")
    assert len(whole) > len(train) + len(unseen) - 50  # some have too few distractors on a side of their own
    twitter = build(split="unseen", style="twitter")
    assert [row.candidate_ids for row in twitter.rows] == [row.candidate_ids for row in unseen.rows]
    assert twitter.rows[0].id == unseen.rows[0].id.replace("google", "twitter")
    assert build(split="unseen", seed=1).rows[0].id != unseen.rows[0].id


def test_a_limit_chooses_by_ids_and_the_same_rows_each_time(unseen):
    some, more = build(split="unseen", limit=50), build(split="unseen", limit=80)
    ids = {row.id for row in more.rows}
    assert len(some) == 50 and {row.id for row in some.rows} < ids < {row.id for row in unseen.rows}
    again = build(split="unseen", limit=50)
    assert [(row.id, row.candidate_ids) for row in again.rows] == [
        (row.id, row.candidate_ids) for row in some.rows
    ]


def test_a_picture_is_cut_once_and_shown_whole(unseen):
    row = unseen[0]
    image = row["query"].images[0]
    assert image.size == (32, 32) and image.mode == "RGB" and image.getextrema() != ((255, 255),) * 3
    cut = [each.images[0] for own in unseen.rows for each in own.candidates]
    assert len({id(each) for each in cut}) < len(cut) / 4
    assert unseen.skipped.keys() <= {"few_distractors", "same_drawing"}


@pytest.mark.parametrize("style", ["google", "twitter"])
def test_no_two_pictures_of_a_row_are_the_same_to_a_pixel(style):
    rows = build(style=style)
    for row in rows.rows:
        shown = [each.images[0].tobytes() for each in (row.query, *row.candidates)]
        assert len(set(shown)) == len(shown) == 10
    lost = set(rows.skipped["same_drawing"])
    assert {"1F3C2", "1F3C2-1F3FF"} < lost  # one snowboarder of Google's for all skin tones
    assert {"1F468-200D-1F466", "1F469-200D-1F466"} < lost  # one parent of Twitter's
    assert (
        not {code.upper() for row in rows.rows for code in (row.id.split("/")[1], *row.candidate_ids)} & lost
    )


def test_variants_are_those_of_people_and_of_hands():
    bases, _ = variants()
    assert {("", ""), ("dark", "")} <= bases["1F44B"].keys()
    assert bases["1F9D1-1F680"]["medium", "woman"]["unified"] == "1F469-1F3FD-200D-1F680"
    assert bases["1F3C3"]["", "man"]["unified"] == "1F3C3-200D-2642-FE0F"
    assert Counter(len(own) for own in bases.values())[18] > 60
    hand = {base: own for base, own in bases.items() if base in ("1F44B", "1F44E")}
    found = [*changes(hand)]
    assert len(found) == 2 * (5 + 5 * 4) and {len(each.others) for each in found} == {1}


def test_what_cannot_be_is_refused_with_a_sentence():
    for fields, told in (
        ({"unseen": 1.0}, "unseen must be between 0 and 1"),
        ({"distractors": 0}, "distractors must be >= 1"),
        ({"limit": 0}, "limit must be >= 1 or null"),
    ):
        with pytest.raises(ValidationError, match=told):
            build(**fields)
    with pytest.raises(DataError, match="no usable row; skipped: .* few_distractors"):
        build(distractors=100)
