"""A dual encoder for people who have images and strings, not tensors."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from vlalign.models.feature_cache import FeatureCache
from vlalign.models.features import image_features, text_features
from vlalign.models.pair import DualEncoder
from vlalign.models.processors import ends
from vlalign.types import Inputs, Item, UserError

Items = TypeVar("Items", bound=Iterable[Any])
BLOCK = 4096  # rows that go through a head at a time


def as_it_is(image: Any) -> Any:
    """Opens what is an RGB picture already."""
    return image


class DualEncoderEmbedder:
    """Embeds with a live model, whose training mode it leaves as it was. `model` is the model itself."""

    def __init__(
        self,
        model: DualEncoder,
        batch: int = 64,
        caches: Mapping[str, FeatureCache] | None = None,
        opening: Callable[[Any], Image.Image] = as_it_is,
    ) -> None:
        """`batch`: rows of one forward. `caches`: by `image` or `text`, of towers that stay as they are.

        `opening` makes an RGB picture of what `encode_image` is given, in threads. Raises UserError.
        """
        if batch < 1:
            raise UserError(f"batch must be >= 1, got {batch}")
        self.model, self.batch, self.caches, self.opening = model, batch, dict(caches or {}), opening

    def encode_image(self, images: Iterable[Any]) -> Tensor:
        """Images, as `opening` takes them, -> unit rows [N, D], float32 on the CPU. Raises UserError.

        Of a generator's images few are held at once.
        """
        return self._shown(images, self.model.encode_image)

    def encode_patches(self, images: Iterable[Any]) -> Tensor:
        """The same of each patch, [N, n, D], row by row of what `seen` shows; all are held at once."""
        encode: Any = getattr(self.model, "encode_patches", None)
        if encode is None:
            raise UserError("this model sees pictures whole, and patches are asked for; take a patch_encoder")
        return self._shown(images, encode)

    def seen(self, images: Sequence[Any]) -> Tensor:
        """Images as the tower is shown them, cut and scaled: [N, 3, H, W] from 0, black, to 1, white."""
        process = self.model.image.process
        black, white = ends(process)
        seen: Tensor = (process([*map(self.opening, images)])["pixels"] - black) / (white - black)
        return seen.clamp(0, 1)

    def enhance(self, images: Sequence[Any]) -> list[Image.Image]:
        """Images, as `opening` takes them, -> what an enhancer makes of them. Raises UserError."""
        model: Any = self.model
        if not hasattr(model, "enhance"):
            raise UserError("this model changes no pictures, and better ones are asked for; take an enhancer")
        with _evaluating(model):
            changed: list[Image.Image] = model.enhance([*map(self.opening, _several(images, "images"))])
        return changed

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Strings -> unit rows [N, D], float32 on the CPU. Raises UserError."""
        texts, model = [_text(text) for text in _several(texts, "texts")], self.model
        with _evaluating(model):
            rows = text_features(model.text, texts, self.caches.get("text"), self.batch)
            return self._headed("text", model.encode_text, rows)

    def score(self, queries: Sequence[Any], candidates: Sequence[Sequence[Any]]) -> list[Tensor]:
        """Cosines [C_q] of each query with its candidates, as `embed` joins what an `Item` has.

        A str is a text, all else that is no `Item` an image, as `encode_image` takes it. Raises UserError.
        """
        for items in (queries, candidates, *candidates):
            _several(items, "queries and, for each of them, of candidates")
        if len(queries) != len(candidates):
            raise ValueError(f"expected candidates for each of {len(queries)} queries, got {len(candidates)}")
        flat = self.embed([_item(each) for items in candidates for each in items])
        rows = torch.split(flat, [len(items) for items in candidates])
        asked = self.embed([_item(each) for each in queries])
        return [own @ query for query, own in zip(asked, rows, strict=True)]

    def embed(self, items: Sequence[Item], fusion: float = 0.5) -> Tensor:
        """Texts, images and what has both -> unit rows [N, D], float32 on the CPU. Raises UserError.

        Of a text and an image: `fusion` of the image's row and the rest of the text's, made unit again, or
        what a model that has learned to combine them makes of both, whatever `fusion` says; the row of
        several images is their mean, made unit.
        """
        images = {_key(image): image for each in items for image in each.images}
        places = {key: place for place, key in enumerate(images)}
        seen = [(at, places[_key(image)]) for at, each in enumerate(items) for image in each.images]
        texts = [at for at, each in enumerate(items) if each.text.strip() or not each.images]
        both = [at for at in texts if items[at].images]
        shown, said = (torch.zeros(len(items), self.model.dim) for _ in range(2))
        if seen:
            owners, which = torch.tensor(seen).T
            shown.index_add_(0, owners, self.encode_image(list(images.values()))[which])
            shown = normalize(shown, dim=1)
        if texts:
            said[texts] = self.encode_text([items[at].text for at in texts])
        out = shown + said
        if both:
            out[both] = self._combined(shown[both], said[both], fusion)
        return out

    @torch.no_grad()
    def _combined(self, shown: Tensor, said: Tensor, fusion: float) -> Tensor:
        with _evaluating(self.model):
            place = self.model.scale.device
            return self.model.combined(shown.to(place), said.to(place), fusion).cpu()

    def _shown(self, images: Iterable[Any], head: Callable[[Inputs], Tensor]) -> Tensor:
        images, tower = _several(images, "images"), self.model.image
        with _evaluating(self.model):
            rows = image_features(tower, images, self.caches.get("image"), self.batch, opening=self.opening)
            return self._headed("image", head, rows)

    @torch.no_grad()
    def _headed(self, side: str, head: Callable[[Inputs], Tensor], rows: Tensor) -> Tensor:
        """Features [N, width] -> unit rows [N, D]. Raises UserError where they are no numbers."""
        place = self.model.scale.device, self.model.scale.dtype
        out = torch.cat([head({"features": some.to(*place)}).cpu() for some in torch.split(rows, BLOCK)])
        if lost := int((~out.isfinite()).flatten(1).any(1).sum()):
            part = "head" if rows.isfinite().all() else "tower"
            raise UserError(
                f"{lost} of {len(out)} {side} embeddings are not finite, the {side} {part} gives NaN or "
                "infinity; look at the model's weights: training diverged, or a file is damaged; use an "
                "earlier checkpoint"
            )
        return out


def _several(items: Items, what: str) -> Items:
    if isinstance(items, (str, bytes, Path, Image.Image)):
        raise UserError(
            f"give a list of {what}, even of one; got a bare {type(items).__name__}: {items!r:.80}"
        )
    return items


def _item(value: Any) -> Item:
    if isinstance(value, Item):
        return value
    return Item(text=value) if isinstance(value, str) else Item(images=(value,))


def _key(image: Any) -> Any:
    """Equal for one path, and for one picture, which has no hash of its own."""
    return image if isinstance(image, Path) else id(image)


def _text(text: Any) -> str:
    if not isinstance(text, str):
        raise UserError(f"a text must be a str, got {type(text).__name__}: {text!r:.80}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"this text is no valid Unicode, it has lone surrogates: {text!a:.80}") from error
    return text


@contextmanager
def _evaluating(model: DualEncoder) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
