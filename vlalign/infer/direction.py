"""A direction between two kinds of embeddings: what it tells apart, what lies at its ends, and its file."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vlalign.data.subset import Subset
from vlalign.data.vocabulary import vocabulary
from vlalign.evals.attribute import Floats, by_looks, look, told_apart
from vlalign.evals.reading import read_pictures
from vlalign.files import replace, write_json, write_text
from vlalign.infer.evaluate import keep_features
from vlalign.infer.load import load_embedder
from vlalign.infer.poles import learnt, of_pair, prompted
from vlalign.models.adapter import digest
from vlalign.models.embedder import DualEncoderEmbedder
from vlalign.models.layout import located
from vlalign.ops.direction import Direction, fit, read, removed, score, write
from vlalign.ops.dist import launched
from vlalign.recipe.directing import DirectionRecipe, Examples, HeldOut, Words
from vlalign.recipe.folder import claim, writing
from vlalign.recipe.naming import PLACE
from vlalign.types import Limits, Sample, Source, UserError

FILE = "direction.safetensors"
SHOWN = 20  # words of each end

Progress = Callable[[int], None]


class Seen(NamedTuple):
    """Examples of a kind: `features` [N, D], `looks` of pictures, their ids, and what became of the rows."""

    features: Tensor
    looks: Floats | None
    ids: Sequence[str]
    account: dict[str, Any]


class Looked(Subset):
    """A Source whose rows have the `look` of their picture; `progress` hears of each."""

    def __init__(self, source: Source, progress: Progress) -> None:
        super().__init__(source, range(len(source)), {}, {}, what="direction")
        self.progress = progress

    def __getitem__(self, index: int) -> Sample:
        """One decoded row. Raises BadRow."""
        try:
            row = super().__getitem__(index)
            return {**row, "look": look(row["image"])}
        finally:
            self.progress(1)


def direction(recipe: DirectionRecipe, progress: Progress = lambda count: None) -> Path:
    """Write `out/{recipe.yaml, direction.safetensors, direction.json}` and what is ranked; returns `out`.

    What this recipe left there before is replaced. `progress` hears of pictures that are read. Raises
    UserError.
    """
    if (processes := launched()[1]) > 1:
        raise UserError(
            f"{processes} processes were launched, and a direction is one's work; start `vlalign direction`"
        )
    out, model, made = claim(recipe), load_embedder(recipe.model), digest(located(recipe.model, None))
    if recipe.feature_cache:
        keep_features(model)

    def seen(examples: Examples) -> Seen:
        return _seen(model, examples, recipe.limits, progress)

    positive, negative = seen(recipe.positive), seen(recipe.negative)
    unwanted = _unwanted(recipe.against, made, model.model.dim)
    if recipe.fit == "residual":
        found = fit(positive.features, negative.features, unwanted)
    else:
        given = positive.features, negative.features, recipe.steps, recipe.lr, recipe.seed
        poles = prompted(model.model, *given) if recipe.fit == "prompt" else learnt(*given)
        found = of_pair(*poles, unwanted)
    found = found._replace(model=made)
    told: dict[str, Any] = {"fit": recipe.fit, "target": found.target, "steepness": found.steepness}
    for name, each in {"positive": positive, "negative": negative}.items():
        told[name] = {"score": score(each.features, found.vector).mean().item(), **each.account}
    if recipe.held_out is not None:
        told["held_out"] = _measured(seen, recipe.held_out, found, (positive.looks, negative.looks))
    if recipe.words is not None:
        told["words"] = _ends(model, recipe.words, found)
    ranked = seen(recipe.rank) if recipe.rank is not None else None
    with writing(out):
        write(found, out / FILE)
        if ranked is not None:
            told["rank"] = ranked.account
            _rank(ranked, found, out, recipe.remove)
        write_json(out / "direction.json", told)
    return out


def _seen(model: DualEncoderEmbedder, examples: Examples, limits: Limits, progress: Progress) -> Seen:
    if isinstance(examples, str | tuple):
        texts = [*vocabulary(examples).names] if isinstance(examples, str) else examples
        return Seen(model.encode_text(texts), None, texts, {"used": len(texts)})
    found = read_pictures(model, Looked(examples.build(limits), progress))
    looks = np.stack([sample["look"] for sample in found.samples])
    return Seen(found.features, looks, found.field("id"), found.account())


def _unwanted(paths: Sequence[str], made: str, dim: int) -> Tensor | None:
    """Vectors [K, D] of directions of the model with this digest. Raises UserError for another's."""
    found = {path: read(path) for path in paths}
    for path, each in found.items():
        if each.model != made or len(each.vector) != dim:
            raise UserError(f"against: {path} is of another model; fit it again with this one")
    return torch.stack([each.vector for each in found.values()]) if found else None


def _measured(
    seen: Callable[[Examples], Seen], held_out: HeldOut, found: Direction, looks: tuple[Floats | None, ...]
) -> dict[str, Any]:
    positive, negative = seen(held_out.positive), seen(held_out.negative)
    scores = (score(each.features, found.vector) for each in (positive, negative))
    own, (first, second) = {"direction": told_apart(*scores)}, looks
    if first is not None and second is not None:
        assert positive.looks is not None and negative.looks is not None  # pictures
        own |= by_looks(first, second, (positive.looks, negative.looks))
    return {**own, "positive": positive.account, "negative": negative.account}


def _ends(model: DualEncoderEmbedder, words: Words, found: Direction) -> dict[str, list[dict[str, Any]]]:
    """The names that score highest, and lowest, the farthest first."""
    names = [*vocabulary(words.vocabulary).names]
    scores = score(model.encode_text([words.template.replace(PLACE, each) for each in names]), found.vector)
    order = scores.argsort(stable=True).tolist()
    ends = {"positive": order[::-1][:SHOWN], "negative": order[:SHOWN]}
    return {
        end: [{"name": names[at], "score": scores[at].item()} for at in places]
        for end, places in ends.items()
    }


def _rank(ranked: Seen, found: Direction, out: Path, remove: bool) -> None:
    from safetensors.torch import save_file

    scores = score(ranked.features, found.vector)
    order = scores.argsort(descending=True, stable=True)
    lines = [json.dumps({"id": ranked.ids[at], "score": scores[at].item()}) for at in order.tolist()]
    write_text(out / "scores.jsonl", "".join(f"{line}\n" for line in lines))
    if remove:
        rows = removed(ranked.features[order], found.vector)
        replace(out / "removed.safetensors", lambda beside: save_file({"embeddings": rows}, beside))
