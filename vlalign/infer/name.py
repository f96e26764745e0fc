"""Name unlabelled pictures out of a vocabulary, by a dual encoder."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from heapq import nlargest
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlalign.data.vocabulary import Vocabulary, vocabulary
from vlalign.evals.reading import Pictures, read_pictures
from vlalign.files import replace, write_json
from vlalign.infer.evaluate import keep_features
from vlalign.infer.load import load_embedder
from vlalign.infer.pictures import kept
from vlalign.models.embedder import DualEncoderEmbedder
from vlalign.ops.dist import launched
from vlalign.recipe.folder import claim, writing
from vlalign.recipe.naming import PLACE, NameRecipe
from vlalign.supervision.structural_names import Named, named
from vlalign.types import Item, Sample, Source, UserError

SHOWN = 3  # names that have votes in a cluster


def name(recipe: NameRecipe, progress: Callable[[int], None] = lambda count: None) -> Path:
    """Write `out/{recipe.yaml, captions.jsonl, named.json, images/}`; returns `out`.

    What this recipe left there before is replaced. `progress` hears of pictures that are read. Raises
    UserError.
    """
    if (processes := launched()[1]) > 1:
        raise UserError(
            f"{processes} processes were launched, and naming is one's work; start `vlalign name`"
        )
    out = claim(recipe)
    known, source = vocabulary(recipe.vocabulary), recipe.data.build(recipe.limits)
    model = load_embedder(recipe.model)
    if recipe.feature_cache:
        keep_features(model)
    pictures = read_pictures(model, Copied(source, out / "images", progress))
    if recipe.clusters > len(pictures.samples):
        raise UserError(
            f"clusters: {recipe.clusters}, and {len(pictures.samples)} pictures could be read; use fewer"
        )
    found = _named(recipe, model, pictures.features, known)
    with writing(out):
        _finish(recipe, pictures, known, found, out)
    return out


class Copied:
    """A Source whose pictures are files in `folder` once their rows are read, which `file` names."""

    def __init__(self, source: Source, folder: Path, progress: Callable[[int], None]) -> None:
        self.source, self.folder, self.progress = source, folder, progress
        self.licences, self.skipped = source.licences, source.skipped

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        """One decoded row. Raises BadRow."""
        try:
            row = self.source[index]
            (path,) = kept(Item(images=(row["image"],)), self.folder).images
            return {**row, "file": f"{self.folder.name}/{path.name}"}
        finally:
            self.progress(1)

    def captions(self, index: int) -> tuple[str, ...]:
        """What is not read here."""
        return self.source.captions(index)

    def fields(self, index: int) -> dict[str, str]:
        """`id` and the other string fields of a row; nothing is decoded."""
        return self.source.fields(index)


def _named(recipe: NameRecipe, model: DualEncoderEmbedder, features: Tensor, known: Vocabulary) -> Named:
    """The clusters of pictures and their names, as places in the vocabulary."""
    names, device = list(known.names), model.model.scale.device

    def describe(places: list[int]) -> Sequence[Tensor]:
        texts = [known.names[names[place]] for place in places]
        rows = model.encode_text([text for each in texts for text in each])
        return torch.split(rows, [len(each) for each in texts])

    rows = model.encode_text([recipe.template.replace(PLACE, each) for each in names])
    return named(
        features.to(device),
        rows.to(device),
        recipe.clusters,
        recipe.rounds,
        describe if recipe.describe else None,
        recipe.seed,
    )


def _finish(recipe: NameRecipe, pictures: Pictures, known: Vocabulary, found: Named, out: Path) -> None:
    """The pictures with their names, and what there is to know about these."""
    names = list(known.names)
    called = [names[place] for place in found.names.tolist()]

    def write(beside: Path) -> None:
        with beside.open("w", encoding="utf-8") as file:
            for sample, cluster in zip(pictures.samples, found.cluster.tolist(), strict=True):
                line = {"id": sample["id"], "image": sample["file"], "caption": called[cluster]}
                line |= {"prompt": recipe.template.replace(PLACE, called[cluster]), "cluster": str(cluster)}
                file.write(json.dumps(line) + "\n")

    replace(out / "captions.jsonl", write)
    account = pictures.account()
    account["licences"] += map(asdict, known.licences)
    told = {"names": len(names), "skipped": dict(known.skipped)}
    write_json(
        out / "named.json",
        {
            "clusters": _clusters(found, called, names),
            "changed": found.changed,
            "vocabulary": told,
            **account,
        },
    )


def _clusters(found: Named, called: Sequence[str], names: Sequence[str]) -> list[dict[str, Any]]:
    """Of each cluster its name, pictures, the share whose vote it is, and who has most; the largest first."""
    sizes = found.cluster.bincount(minlength=len(called)).tolist()
    votes: list[dict[str, float]] = [{} for _ in called]
    for (cluster, place), share in zip(
        found.votes.indices().T.tolist(), found.votes.values().tolist(), strict=True
    ):
        votes[cluster][names[place]] = share
    told = [
        {
            "name": name,
            "size": size,
            "share": own.get(name, 0.0),
            "votes": dict(nlargest(SHOWN, own.items(), key=itemgetter(1))),
        }
        for name, size, own in zip(called, sizes, votes, strict=True)
    ]
    return sorted(told, key=lambda each: (-each["size"], each["name"]))
