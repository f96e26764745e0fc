"""A frozen model that scores what is drawn while another learns, as a judging would have before."""

from collections.abc import Mapping
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from vlalign.data.images import opened
from vlalign.models import weights
from vlalign.models.adapter import digest
from vlalign.models.caption_model import CaptionModel
from vlalign.models.caption_writer import CaptionWriter
from vlalign.models.embedder import DualEncoderEmbedder
from vlalign.models.layout import located
from vlalign.models.pair import DualEncoder
from vlalign.models.rerank_scorer import RerankScorer
from vlalign.recipe.teaching import Teacher
from vlalign.types import Batch, DataError, Item, Limits, RecipeError, Scorer, UserError

REMEMBERED = 2**20  # pairs, which take some 150 MB
KEY = 16  # bytes


class TeacherScores:
    """Puts the score of each drawn pair among the numbers of candidates, where one of their file would stand.

    Every process has its own, for its own queries. A pair is scored when it is first drawn, and remembered by
    its content, of very many the last. A checkpoint holds what is remembered: a score differs in the last
    digits by what it was computed beside, and a run that goes on is to learn the same. `digest`: another one
    where the model is.
    """

    def __init__(self, spec: Teacher, limits: Limits, device: torch.device, rank: int) -> None:
        """Loads the model. Raises UserError."""
        folder = located(spec.model, spec.revision)
        model = weights.opened(folder, device=device).requires_grad_(False)
        if spec.form == "probability" and isinstance(model, DualEncoder | CaptionModel):
            raise RecipeError(
                f"data.teacher.form: a probability is of a reranker's yes, and {spec.model} is a "
                f"{'dual encoder' if isinstance(model, DualEncoder) else 'captioner'}; set form: logit"
            )
        self.spec, self.digest, self.part = spec, digest(folder), f"teacher_{rank:05d}.safetensors"
        self.scorer = _scorer(model, limits)
        self.scores: dict[bytes, float] = {}

    def __call__(self, chunk: Batch) -> Batch:
        """A chunk with the number in `key_fields`, float32 [K], in place of the items in `asked`.

        Raises DataError for a pair that the model cannot score: its row is in the batch already.
        """
        asked = chunk["asked"]
        keys = [[_key(query, each) for each in own] for query, own in asked]
        news = [
            {key: each for key, each in zip(names, own, strict=True) if key not in self.scores}
            for names, (_, own) in zip(keys, asked, strict=True)
        ]
        self._score([(query, new) for (query, _), new in zip(asked, news, strict=True) if new])
        numbers = torch.tensor([self.scores[key] for names in keys for key in names], dtype=torch.float32)
        while len(self.scores) > REMEMBERED:
            del self.scores[next(iter(self.scores))]
        if self.spec.form == "probability":
            numbers = numbers.sigmoid()
        rest = {name: value for name, value in chunk.items() if name != "asked"}
        return {**rest, "key_fields": {**chunk["key_fields"], self.spec.number: numbers}}

    def save(self, folder: Path) -> None:
        """What this process remembers, into the folder of a checkpoint."""
        from safetensors.numpy import save_file

        keys = np.frombuffer(b"".join(self.scores), np.uint8).reshape(-1, KEY)
        scores = np.array([*self.scores.values()], np.float32)
        save_file({"pairs": keys, "scores": scores}, folder / self.part)

    def restore(self, folder: Path) -> None:
        """What it remembered when that was written; nothing, where fewer processes wrote it."""
        from safetensors.numpy import load_file

        if not (folder / self.part).is_file():
            return
        told = load_file(folder / self.part)
        keys = [key.tobytes() for key in told["pairs"]]
        self.scores = dict(zip(keys, told["scores"].tolist(), strict=True))

    def _score(self, todo: list[tuple[Item, Mapping[bytes, Item]]]) -> None:
        """Remember each query's new candidates, by their keys."""
        if not todo:
            return
        try:
            found = self.scorer.score([query for query, _ in todo], [[*new.values()] for _, new in todo])
        except UserError as error:
            raise DataError(
                f"data.teacher: {self.spec.model} cannot score what was drawn: {error}; leave such rows out "
                "of data.train, or name another model"
            ) from error
        for (_, new), scores in zip(todo, found, strict=True):
            self.scores.update(zip(new, scores.tolist(), strict=True))


def _scorer(model: Any, limits: Limits) -> Scorer:
    """What scores with it, as the judge `saved` does."""
    opening = partial(opened, limits=limits)
    if isinstance(model, DualEncoder):
        return DualEncoderEmbedder(model, opening=opening)
    kind = CaptionWriter if isinstance(model, CaptionModel) else RerankScorer
    return kind(model, opening=opening)


def _key(query: Item, candidate: Item) -> bytes:
    """Of what both say, to the letter, and show: files by their names, which a run may rely on."""
    told = repr([(each.text, [_shown(image) for image in each.images]) for each in (query, candidate)])
    return blake2b(told.encode("utf-8", "surrogatepass"), digest_size=KEY).digest()


def _shown(image: Any) -> str:
    if isinstance(image, Image):
        return f"{image.mode} {image.size} {blake2b(image.tobytes(), digest_size=KEY).hexdigest()}"
    return str(image)
