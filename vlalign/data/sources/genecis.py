"""A task of GeneCIS, Vaze et al. 2023, https://arxiv.org/abs/2306.07969: pictures, conditions, galleries."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from vlalign.data.candidate_file import PicturedFile, labelled
from vlalign.data.candidate_rows import CandidateRows
from vlalign.data.images import opened
from vlalign.data.items import kind, name, number, plain, several
from vlalign.data.query_rows import Parsed
from vlalign.registry import SOURCES
from vlalign.types import BadRow, Item, Limits

AROUND = 0.7  # of a box, in its own width and height
Box = tuple[float, float, float, float]  # left, top, width, height, pixels


@SOURCES.register("genecis")
@dataclass(frozen=True, kw_only=True)
class GeneCIS(PicturedFile):
    """`path`: one of the four files of facebookresearch/genecis, such as `genecis/focus_attribute.json`, an
    array of `{"condition", "reference", "target", "gallery"}`, whose gallery is without the target.

    `images`: the pictures. Of objects, `{"val_image_id"}`, the folder of COCO's val2017, `000000189213.jpg`;
    of attributes, `{"image_id", "instance_bbox"}`, that of Visual Genome, `2354.jpg`: a box is cut out with
    0.7 of its size to its left and above, as the released code does, and made a square with black.
    """

    def build(self, limits: Limits = Limits()) -> CandidateRows:
        """Find the good rows; a bad one is skipped and counted. Raises DataError."""
        path = Path(self.path).expanduser()
        how = (self.licence, self.positives, self.negatives, self.parse)
        rows = Cropping(path, *how, folder=self.folder(path))
        rows.limits = limits
        return rows

    def parse(self, told: dict[str, Any], line: str, folder: Path) -> Parsed:
        """A query. Raises BadRow."""
        condition = plain(told.get("condition")).strip()
        if not condition:
            raise BadRow("no_text", "the condition is empty")
        query = Item(text=condition, images=_shown(told.get("reference"), folder))
        right, *wrong = (
            Item(images=_shown(each, folder))
            for each in (told.get("target"), *several(told.get("gallery"), "gallery"))
        )
        return labelled(name(None, line), query, [right], wrong)


class Cropping(CandidateRows):
    """Rows whose boxes are cut out when they are read."""

    limits = Limits()

    def row(self, index: int) -> Parsed:
        """One of them. Raises BadRow."""
        row = super().row(index)
        candidates = [self._cut(each) for each in row.candidates]
        return replace(row, query=self._cut(row.query), candidates=candidates)

    def _cut(self, item: Item) -> Item:
        path, *box = item.images
        return replace(item, images=(cropped(opened(path, self.limits), *box) if box else path,))


def cropped(image: Image.Image, box: Box) -> Image.Image:
    """A box of a picture and what is around it, in the middle of a black square."""
    left, top = (max(0.0, box[at] - AROUND * box[2 + at]) for at in (0, 1))
    right = min(image.width, left + (1 + AROUND) * box[2])
    bottom = min(image.height, top + (1 + AROUND) * box[3])
    if round(right) <= round(left) or round(bottom) <= round(top):
        raise BadRow("empty_box", f"a box of {box} in a picture of {image.size}")
    found = image.crop((round(left), round(top), round(right), round(bottom)))
    side = max(found.size)
    square = Image.new("RGB", (side, side))
    square.paste(found, ((side - found.width) // 2, (side - found.height) // 2))
    return square


def _shown(told: Any, folder: Path) -> tuple[Any, ...]:
    """The path of a picture, and a box where it is one. Raises BadRow."""
    if not isinstance(told, dict):
        raise BadRow("no_picture", f"expected an object that tells a picture, got {kind(told)}")
    if "val_image_id" in told:
        return (folder / f"{number(told['val_image_id']):012.0f}.jpg",)
    box = tuple(number(each) for each in several(told.get("instance_bbox"), "instance_bbox"))
    if len(box) != 4:
        raise BadRow("no_box", f"expected val_image_id, or image_id with four numbers, got {told!r:.80}")
    return folder / f"{number(told.get('image_id')):.0f}.jpg", box
