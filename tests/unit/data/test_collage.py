import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from vlalign.data.sources.collage import Collage
from vlalign.registry import SOURCES
from vlalign.types import DataError, Licence, Limits


class Colours:
    """Plain pictures, each of its own colour."""

    licences = (Licence(name="own", licence="CC0", source="memory"),)
    skipped = {"truncated": ["x"]}

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def build(self, limits=Limits()):
        return self

    def colour(self, row):
        return (10 * row, 255 - 10 * row, 7)

    def __getitem__(self, row):
        return {
            "image": Image.new("RGB", (9, 9), self.colour(row)),
            "captions": self.captions(row),
            "id": str(row),
        }

    def captions(self, row):
        return (f"colour {row}",)

    def fields(self, row):
        return {"id": str(row), "label": f"c{row}"}


def built(**fields):
    spec = {"collages": 12, "least": 2, "most": 3, "size": 50, "part": 16} | fields
    return Collage(source=Colours(9), **spec).build()


def corners(row):
    return tuple(map(int, row["box"].split()))


def test_each_picture_lies_in_its_box_and_has_a_row():
    made = built()
    numbers = [made.fields(index)["collage"] for index in range(len(made))]
    assert list(dict.fromkeys(numbers)) == [str(number) for number in range(12)]
    assert {numbers.count(number) for number in numbers} == {2, 3}
    for index in range(len(made)):
        row = made[index]
        assert row["captions"] == made.captions(index) and made.fields(index).items() <= row.items()
        inside = np.asarray(row["image"].crop(corners(row)))
        colour = made.source.colour(int(row["captions"][0].split()[1]))
        assert row["image"].size == (50, 50) and inside.shape == (16, 16, 3) and (inside == colour).all()
        assert row["id"] == f"{row['collage']}/{row['label'][1:]}"
    assert made.licences == Colours.licences and made.skipped == Colours.skipped


def test_boxes_of_a_collage_do_not_overlap_and_no_picture_is_twice_in_it():
    made = built(least=9, most=9)
    for number in range(12):
        rows = [made.fields(index) for index in range(9 * number, 9 * number + 9)]
        assert {row["collage"] for row in rows} == {str(number)} and len({row["label"] for row in rows}) == 9
        taken = np.zeros((50, 50), dtype=int)
        for left, top, right, bottom in map(corners, rows):
            taken[top:bottom, left:right] += 1
        assert taken.max() == 1 and taken.sum() == 9 * 16**2


def test_rows_of_a_collage_show_one_picture_and_the_seed_decides_it():
    first, again, other = built(), built(), built(seed=1)
    assert np.array_equal(first[0]["image"], first[1]["image"])
    assert np.array_equal(first[0]["image"], again[0]["image"]) and first.parts == again.parts
    assert first.parts != other.parts and not np.array_equal(first[0]["image"], other[0]["image"])


def test_mistakes_are_sentences():
    told = {"name": "collage", "source": {"name": "emoji", "style": "google"}}
    with pytest.raises(
        ValidationError, match=r"of 50 pixels has room for 4 parts of 20; got least 2 and most 5"
    ):
        SOURCES.decode(told | {"size": 50, "part": 20, "most": 5})
    with pytest.raises(ValidationError, match="collages must be >= 1, got 0"):
        SOURCES.decode(told | {"collages": 0})
    with pytest.raises(DataError, match="a collage holds up to 4 pictures, and there are 3"):
        Collage(source=Colours(3)).build()
