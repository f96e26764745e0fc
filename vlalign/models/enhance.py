"""Small nets that change pictures, and a dual encoder that looks at what they make of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vlalign.models import weights
from vlalign.models.pair import SIDES, Bias, DualEncoder, Scale
from vlalign.models.processors import ends
from vlalign.types import Batch, Embeddings, Inputs, UserError

Net = Literal["global", "curve", "unet"]
STEPS = 8  # of a curve
WIDTH = 32  # channels


class GlobalCurve(nn.Module):
    """One curve for all pixels of all pictures, of STEPS numbers. Pictures are [N, 3, H, W] from 0 to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.amounts = nn.Parameter(torch.zeros(STEPS, 1, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures, at first as they were."""
        return bent(pictures, self.amounts)


class PixelCurve(nn.Module):
    """A curve for each channel of each pixel, chosen by what is around it."""

    def __init__(self) -> None:
        super().__init__()
        first, second, last = conv(3, WIDTH), conv(WIDTH, WIDTH), conv(WIDTH, 3 * STEPS)
        self.net = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), still(last))

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures, at first as they were."""
        return bent(pictures, self.net(pictures).unflatten(1, (STEPS, 3)).movedim(1, 0))


class UNet(nn.Module):
    """Adds what it sees at three scales to a picture; it can sharpen, which no curve can."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, WIDTH), conv(WIDTH, 2 * WIDTH)
        self.third, self.up = conv(2 * WIDTH, 2 * WIDTH), conv(4 * WIDTH, WIDTH)
        self.last = still(conv(2 * WIDTH, 3))

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures, at first as they were."""
        high, wide = pictures.shape[2:]
        whole = F.pad(pictures, (0, -wide % 4, 0, -high % 4), mode="replicate")
        fine = self.first(whole).relu()
        half = self.second(F.avg_pool2d(fine, 2)).relu()
        quarter = self.third(F.avg_pool2d(half, 2)).relu()
        half = self.up(torch.cat([half, F.interpolate(quarter, scale_factor=2.0)], 1)).relu()
        more = self.last(torch.cat([fine, F.interpolate(half, scale_factor=2.0)], 1))
        changed: Tensor = pictures + more[..., :high, :wide]
        return changed.clamp(0, 1)


NETS: dict[str, type[nn.Module]] = {"global": GlobalCurve, "curve": PixelCurve, "unet": UNet}


def bent(pictures: Tensor, amounts: Tensor) -> Tensor:
    """Values x made x + a x (1 - x) for the tanh a of each of `amounts` [STEPS, *] in turn: they stay from 0
    to 1, and in order."""
    for amount in amounts.tanh():
        pictures = pictures + amount * pictures * (1 - pictures)
    return pictures


def conv(before: int, after: int) -> nn.Conv2d:
    """3 x 3, at the size of its input."""
    return nn.Conv2d(before, after, 3, padding=1)


def still(layer: nn.Conv2d) -> nn.Conv2d:
    """The same, all zero."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class Enhancer(DualEncoder):
    """A frozen dual encoder, and a net whose pictures it is shown; the net alone learns.

    `encode_image` and `encode_text` are the encoder's own: what the net has made is embedded like all else.
    """

    encoder: DualEncoder
    black: Tensor
    white: Tensor

    def __init__(self, encoder: Any, net: Net) -> None:
        """Takes the encoder over. Raises UserError for any but one of two towers."""
        if type(encoder) is not DualEncoder:
            raise UserError(
                "an enhancer sees through two towers, one of them of pictures; take a dual encoder"
            )
        super().__init__(encoder.image, encoder.text, dim=encoder.dim, scale=Scale(), bias=Bias())
        self.image_head, self.text_head = encoder.image_head, encoder.text_head
        self.scale, self.bias, self.scale_max = encoder.scale, encoder.bias, encoder.scale_max
        self.requires_grad_(False)
        object.__setattr__(
            self, "encoder", encoder
        )  # outside of the tree of modules, for it shares its parts
        self.net = NETS[net]()
        for name, end in zip(("black", "white"), ends(encoder.image.process), strict=True):
            self.register_buffer(name, end, persistent=False)

    def forward(self, batch: Batch) -> Embeddings:
        """Pictures of a batch as the net changes them, and as they are; its texts are not read."""
        if "towers" in batch:
            raise UserError("an enhancer learns from pictures with captions, and these are queries")
        before: Inputs = batch["query"]
        after = {**before, "pixels": self.changed(before["pixels"])}
        return super().forward({"query": after, "key": before, "towers": ("image", "image")})

    def changed(self, pixels: Tensor) -> Tensor:
        """Pictures as the tower is shown them, changed: [N, 3, H, W]."""
        shown = ((pixels - self.black) / (self.white - self.black)).clamp(0, 1)
        after: Tensor = self.net(shown)
        return self.black + (self.white - self.black) * after

    @torch.no_grad()
    def enhance(self, pictures: Sequence[Image.Image]) -> list[Image.Image]:
        """RGB pictures, changed, each at its own size."""
        from torchvision.transforms.functional import pil_to_tensor, to_pil_image

        values = ((pil_to_tensor(each)[None].to(self.black) / 255) for each in pictures)
        return [to_pil_image((self.net(x)[0] * 255).round().byte().cpu()) for x in values]

    @property
    def locked(self) -> set[str]:
        """None, for a picture's features are new in each step."""
        return set()

    def plain_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The net's part of a state dict."""
        return {name: x for name, x in state.items() if name.startswith("net.")}

    def own_state(self, plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The reverse of `plain_state`, with the encoder as it is here."""
        return {**self.state_dict(), **plain}

    def write(self, state: Mapping[str, Tensor], folder: Path) -> None:
        """The encoder as it writes itself, in `encoder/`, and the net beside it. `state`: its own, whole."""
        encoder = {name: x for name, x in state.items() if not name.startswith("net.")}
        weights.save(self.encoder, folder / "encoder", encoder)
        self.spec.write(self, self.plain_state(state), folder)

    def train(self, mode: bool = True) -> Self:
        """Training mode for the net alone."""
        super().train(mode)
        for side in SIDES:
            nn.Module.train(self.tower(side), False)
        return self
