import gzip
import json
import re
import struct

import numpy as np
import pytest
from PIL import Image

from tests.unit.data import pictures
from vlalign.data import catalogue
from vlalign.registry import SOURCES
from vlalign.types import BadRow, DataError

BLOCK = 34


def build(name, **fields):
    return SOURCES.decode({"name": name, **fields}).build()


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Make the folder of a set as if it had been fetched."""
    monkeypatch.setenv("VLALIGN_CACHE", str(tmp_path))

    def folder(name):
        path = tmp_path / "sets" / f"{name}-{catalogue.CATALOGUE[name].sha256[:12]}"
        path.mkdir(parents=True)
        return path

    return folder


def emoji(code, place, subcategory="animal", category="Animals", drawn=True):
    images = {f"has_img_{style}": True for style in ("google", "twitter", "apple")} | {
        "has_img_facebook": drawn
    }
    return {
        "unified": code,
        "sheet_x": place,
        "sheet_y": 0,
        "subcategory": subcategory,
        "category": category,
        "added_in": "0.6",
        "sort_order": place,
        **images,
    }


@pytest.fixture
def small_emoji(installed):
    rows = [emoji(f"1F40{n}", n) for n in range(8)] + [
        emoji("1F400-FE0F-200D-2B1B", 8),
        emoji("1F408", 9, drawn=False),
        emoji("1F1E9-1F1EA", 10, "flag", "Flags"),
        emoji("1F409", 11),
    ]
    art, words = installed("emoji-datasource") / "package", installed("emojibase-data") / "package" / "en"
    sheet = Image.new("RGBA", (BLOCK * 12, BLOCK), (0, 0, 0, 255))
    for place in range(12):
        sheet.paste((place * 20, 0, 0, 255), (place * BLOCK + 1, 1, place * BLOCK + 33, 17))
        sheet.paste((0, 0, 0, 0), (place * BLOCK + 1, 17, place * BLOCK + 33, 33))
    for style in ("google", "twitter"):
        (art / "img" / style / "sheets").mkdir(parents=True)
        sheet.save(art / "img" / style / "sheets" / "32.png")
    (art / "emoji.json").write_text(json.dumps(rows))
    words.mkdir(parents=True)
    named = [{"hexcode": f"1F40{n}", "label": f"beast {n}", "tags": ["fur", f"tail {n}"]} for n in range(8)]
    named += [
        {"hexcode": "1F400-200D-2B1B", "label": "black beast"},
        {"hexcode": "1F1E9-1F1EA", "label": "flag: DE"},
    ]
    (words / "data.json").write_text(json.dumps(named))


def test_emoji_rows(small_emoji):
    source = build("emoji", style="google", captions=["label_and_tags", "label", "tags"])
    assert len(source) == 9 and source.skipped == {"empty_caption": ["google/1f409"]}
    assert source.captions(2) == ("beast 2, fur, tail 2", "beast 2", "fur, tail 2")
    assert source.captions(8) == ("black beast",)
    others = build("emoji", style="google", captions=["other_tags"])
    assert others.captions(2) == ("fur",) and len(others) == 8  # "tail 2" has a word of "beast 2"
    assert others.skipped == {"empty_caption": ["google/1f400-fe0f-200d-2b1b", "google/1f409"]}
    each = build("emoji", style="google", captions=["label", "each_tag"])
    assert each.captions(2) == ("beast 2", "fur", "tail 2") and each.captions(8) == ("black beast",)
    assert source.fields(8) == {
        "id": "google/1f400-fe0f-200d-2b1b",
        "concept": "1f400",
        "label": "black beast",
        "subcategory": "animal",
        "category": "Animals",
        "added_in": "0.6",
        "order": "8",
    }
    image = source[3]["image"]
    assert image.size == (32, 32) and image.getpixel((0, 0)) == image.getpixel((31, 15)) == (60, 0, 0)
    assert image.getpixel((0, 16)) == image.getpixel((31, 31)) == (255, 255, 255)
    assert [licence.name for licence in source.licences] == ["Noto Emoji", "Emojibase", "emoji-data"]


def test_emoji_flags_and_splits(small_emoji):
    def concepts(**fields):
        source = build("emoji", style="twitter", unseen=0.3, **fields)
        return [source.fields(index)["concept"] for index in range(len(source))]

    assert concepts(flags="only") == ["1f1e9"] and len(concepts(flags="include")) == 10
    for seed in range(10):
        train, unseen = concepts(split="train", seed=seed), concepts(split="unseen", seed=seed)
        assert not set(train) & set(unseen) and sorted(train + unseen) == sorted(concepts())
        assert 2 <= len(set(unseen)) <= 3


def test_emoji_refuses_what_it_cannot_do():
    for fields in (
        {"style": "apple"},
        {"style": "google", "unseen": 1.0},
        {"style": "google", "captions": []},
    ):
        with pytest.raises(ValueError):
            SOURCES.decode({"name": "emoji", **fields})


@pytest.mark.net
def test_the_real_emoji():
    train, unseen, every = (
        build("emoji", style="google", split=split) for split in ("train", "unseen", "all")
    )
    other = build("emoji", style="twitter", split="unseen")
    assert len(every) == 1588 and len(train) + len(unseen) == 1588 and 0.2 < len(unseen) / 1588 < 0.3
    concepts = [
        {source.fields(index)["concept"] for index in range(len(source))} for source in (train, unseen, other)
    ]
    assert not concepts[0] & concepts[1] and concepts[1] == concepts[2]
    assert len(build("emoji", style="google", flags="only")) == 269
    words = [len(every.captions(index)[0].split()) for index in range(len(every))]
    assert 7 < np.mean(words) < 8.5 and max(words) <= 26
    kinds = {every.fields(index)["subcategory"] for index in range(len(every))}
    seen = {unseen.fields(index)["subcategory"] for index in range(len(unseen))}
    assert len(seen) > 0.85 * len(kinds)
    face = next(index for index in range(len(every)) if every.fields(index)["label"] == "grinning face")
    red, green, blue = every[face]["image"].getpixel((16, 9))
    assert red > 200 and green > 150 and blue < 120
    for language in ("de", "ja", "hi"):
        assert len(build("emoji", style="google", language=language)) == 1588


@pytest.mark.net
def test_other_tags_of_the_real_emoji_share_no_word_with_the_label():
    every, others = (build("emoji", style="google", captions=[form]) for form in ("tags", "other_tags"))
    expected, without = {}, []
    for index in range(len(every)):
        fields, kept = every.fields(index), []
        label = re.findall(r"\w+", fields["label"].lower())
        for tag in every.captions(index)[0].split(", "):
            if all(word not in label for word in re.findall(r"\w+", tag.lower())):
                kept.append(tag)
        if kept:
            expected[fields["id"]] = (", ".join(kept),)
        else:
            without.append(fields["id"])
    found = {others.fields(index)["id"]: others.captions(index) for index in range(len(others))}
    assert found == expected and len(found) > 1000
    assert set(others.skipped["empty_caption"]) == {*without, *every.skipped.get("empty_caption", ())}


def svg(title, *keywords, description=""):
    words = "".join(f"<rdf:li>{word}</rdf:li>" for word in keywords)
    return (
        '<svg xmlns:cc="c" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:rdf="r"><metadata><cc:Work>'
        f"<dc:title>{title}</dc:title><dc:description>{description}</dc:description><dc:subject><rdf:Bag>{words}"
        "</rdf:Bag></dc:subject><dc:creator><dc:title>someone</dc:title></dc:creator></cc:Work></metadata></svg>"
    )


def test_openclipart(installed):
    drawings = {
        "animals/a": svg(
            "Clip Art by Jo - A_Cat", "hash", "HASH(0x1f)", "pet", "pet", "0xa0e", description="a cat  sits"
        ),
        "animals/b": svg("a cat", "Pet"),
        "animals/c": svg("a cat", "wild"),
        "tools/d": svg("", "saw"),
        "tools/e": "<svg><not closed",
        "tools/f": svg("no picture"),
        "tools/g": svg("hammer", description="HASH(0x1)"),
        "tools/h": "<svg></svg>",
    }
    png = installed("openclipart-png") / "usr/share/openclipart/png"
    vector = installed("openclipart-svg") / "usr/share/openclipart/svg"
    for name, text in drawings.items():
        for folder, suffix, data in (
            (vector, ".svg", text.encode()),
            (png, ".png", pictures.see_through_palette()),
        ):
            if name != "tools/f" or suffix == ".svg":
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).with_suffix(suffix).write_bytes(data)
    source = build("openclipart", captions=["title_and_keywords", "description"])
    assert [source.captions(index) for index in range(len(source))] == [
        ("A Cat, pet", "a cat sits"), ("a cat, wild",), ("hammer",),
    ]  # fmt: skip
    assert source.skipped == {
        "repeated_caption": ["animals/b"],
        "empty_caption": ["tools/d", "tools/h"],
        "not_xml": ["tools/e"],
        "missing_file": ["tools/f"],
    }
    assert source.fields(0) == {
        "id": "animals/a",
        "concept": "a cat",
        "category": "animals",
        "label": "A Cat",
    }
    assert source[0]["conversions"] == ("transparent",)
    train, unseen = (build("openclipart", split=split, unseen=0.5) for split in ("train", "unseen"))
    sides = [{source.fields(index)["concept"] for index in range(len(source))} for source in (train, unseen)]
    assert not sides[0] & sides[1] and set.union(*sides) == {"a cat", "hammer"}


def test_fashion_mnist(installed):
    folder = installed("fashion-mnist") / "usr/share/datasets/fashion-mnist"
    folder.mkdir(parents=True)
    pixels = np.arange(3 * 784, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28)
    for kind, header, values in (
        ("images-idx3", (2051, 3, 28, 28), pixels),
        ("labels-idx1", (2049, 3), np.array([9, 0, 2])),
    ):
        data = struct.pack(f">{len(header)}i", *header) + values.astype(np.uint8).tobytes()
        (folder / f"t10k-{kind}-ubyte.gz").write_bytes(gzip.compress(data))
    source = build("fashion_mnist")
    assert [source.fields(index)["label"] for index in range(3)] == ["ankle boot", "T-shirt", "pullover"]
    assert source.captions(1) == ("T-shirt",) and source.fields(2)["id"] == "test/2"
    assert np.array_equal(np.array(source[2]["image"])[..., 1], pixels[2])


def test_a_set_that_cannot_be_fetched_is_a_data_error(tmp_path, monkeypatch):
    monkeypatch.setenv("VLALIGN_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="not on the PATH"):
        build("fashion_mnist")


def test_sources_go_to_workers(small_emoji):
    import pickle

    source = build("emoji", style="google")
    source[0]
    again = pickle.loads(pickle.dumps(source))
    assert again[3]["image"].tobytes() == source[3]["image"].tobytes()


def test_no_source_hides_a_bad_row(small_emoji):
    source = build("emoji", style="google")
    with pytest.raises(IndexError):
        source[len(source)]
    assert not issubclass(IndexError, BadRow)
