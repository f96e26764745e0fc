"""Where in a picture a caption is: the patches that are most like it, and how many lie where they should."""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from vlalign.evals.gallery import evenly
from vlalign.evals.reading import Pictures, data_uri, read_pictures
from vlalign.ops.patches import chosen
from vlalign.registry import EVALUATORS, SOURCES
from vlalign.specs import EvalRow, SourceSpec
from vlalign.types import DataError, Limits, UserError

DARK = 0.25  # of its light, what an unchosen patch keeps in the report


@EVALUATORS.register("grounding")
@dataclass(frozen=True, kw_only=True)
class Grounding:
    """A row's first caption chooses the `share` of its picture's patches, rounded up, with the best cosines.

    `box`: the field of the place that the caption is about, `left top right bottom` in pixels. `inside` is
    the part of the chosen patches' area that lies in it; `hit_rate` the share of captions whose best patch
    lies in it by half or more. Null: nothing but pictures for the report, of which it shows `gallery`.
    The model must have patches, as a `patch_encoder` does, in a square.
    """

    data: Annotated[SourceSpec, SOURCES]
    dataset: str
    box: str | None = "box"
    share: float = 0.1
    gallery: int = 8
    every: int = 0

    def __post_init__(self) -> None:
        for name in ("gallery", "every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be > 0 and <= 1, got {self.share}")

    def __call__(self, model: Any, limits: Limits) -> list[EvalRow]:
        """One row; chance is that of choosing at random. Raises DataError, UserError."""
        if not hasattr(model, "encode_patches"):
            raise UserError("grounding asks for patches, and several joined models have none; measure one")
        pictures = read_pictures(model, self.data.build(limits), model.encode_patches)
        side = math.isqrt(pictures.features.shape[1])
        if side**2 != pictures.features.shape[1]:
            raise UserError(f"grounding needs a square of patches, got {pictures.features.shape[1]} of them")
        captions = [sample["captions"][0] for sample in pictures.samples]
        texts = model.encode_text(captions)
        places = chosen(pictures.features, texts[:, None], self.share, None)[1][:, 0]  # [N, k], best first
        metrics, chance = {}, {}
        if self.box is not None:
            boxes = [corners(box) for box in pictures.field(self.box)]
            covered = torch.stack(
                [_covered(model, pictures, row, box, side) for row, box in enumerate(boxes)]
            )
            metrics = rates(covered.gather(1, places), covered.gather(1, places[:, :1]))
            chance = rates(covered, covered)
        shown = [
            {"text": captions[row], "picture": _lit(model, pictures, row, places[row], side)}
            for row in evenly(len(captions), self.gallery)
        ]
        exhibits = {"rows": pictures.account(), "grounding": shown}
        return [
            EvalRow(dataset=self.dataset, task="grounding", metrics=metrics, chance=chance, exhibits=exhibits)
        ]


def rates(chosen: Tensor, best: Tensor) -> dict[str, float]:
    """From how much of patches a box covers, 0 to 1."""
    return {"inside": chosen.mean().item(), "hit_rate": (best >= 0.5).double().mean().item()}


def corners(box: str) -> tuple[int, int, int, int]:
    """Left, top, right and bottom. Raises DataError."""
    try:
        left, top, right, bottom = map(int, box.split())
        if not (left < right and top < bottom):
            raise ValueError
    except ValueError as error:
        raise DataError(f"a box must be 'left top right bottom' in pixels, got '{box}'") from error
    return left, top, right, bottom


def _picture(pictures: Pictures, row: int) -> Image.Image:
    found: Image.Image = pictures.source[pictures.index[row]]["image"]
    return found


def _covered(model: Any, pictures: Pictures, row: int, box: tuple[int, int, int, int], side: int) -> Tensor:
    """How much of each patch a box covers, [n]: the box in white on black, as the tower is shown it."""
    mask = Image.new("RGB", _picture(pictures, row).size)
    mask.paste("white", box)
    return adaptive_avg_pool2d(model.seen([mask]).mean(1, keepdim=True), side).flatten()


def _lit(model: Any, pictures: Pictures, row: int, places: Tensor, side: int) -> str:
    """A picture, as the tower is shown it, whose chosen patches are bright."""
    seen = model.seen([_picture(pictures, row)])  # [1, 3, H, W]
    light = torch.full((side**2,), DARK).index_fill(0, places, 1).view(1, 1, side, side)
    pixels = (255 * seen * interpolate(light, seen.shape[2:]))[0].byte().permute(1, 2, 0)
    return data_uri(Image.fromarray(pixels.numpy()))
