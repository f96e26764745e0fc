"""One cell of a study: two heads learnt over features of frozen towers, by a recipe's task, in seconds."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np
import torch
from sklearn.metrics import ndcg_score
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from vlalign.data.calibration import VirtualFeatures
from vlalign.data.hashing import hash63
from vlalign.data.sampler import Order
from vlalign.data.sources.align_filter import AlignFilter
from vlalign.data.sources.sentences import split
from vlalign.evals.metrics.ranks import mrr, rank_both, recall
from vlalign.evals.reading import read_pictures
from vlalign.files import cache_folder
from vlalign.models.feature_cache import FeatureCache
from vlalign.models.features import image_features, text_features
from vlalign.models.pair import SIDES, Bias, DualEncoder, Scale
from vlalign.models.tower import TowerModule
from vlalign.recipe.augmentation import Calibrate
from vlalign.registry import ANNOTATORS, OPTIMIZERS, SAMPLERS, SCHEDULES, TASKS
from vlalign.train.ema import Average, with_momentum
from vlalign.train.rescalers import teach_rescalers
from vlalign.train.step import separable
from vlalign.types import Limits, Source


@dataclass(frozen=True)
class Rows:
    """What frozen towers make of pictures and of their captions, [N, width] each, and what rows are.

    `fields` are int64 [N], equal where the strings are; numbers and annotations may be float32 [N, *].
    `words`: what a number of the field `caption` stands for.
    """

    image: Tensor
    text: Tensor
    fields: Mapping[str, Tensor] = field(default_factory=dict)
    words: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.image)

    def at(self, places: Tensor) -> Self:
        """Some of them, by places or by a mask."""
        own = {name: x[places] for name, x in self.fields.items()}
        return replace(self, image=self.image[places], text=self.text[places], fields=own)

    def having(self, **fields: Tensor) -> Self:
        """With more fields."""
        return replace(self, fields={**self.fields, **fields})

    def to(self, device: torch.device) -> Self:
        """The same there."""
        own = {name: x.to(device) for name, x in self.fields.items()}
        return replace(self, image=self.image.to(device), text=self.text.to(device), fields=own)

    def features(self, side: Literal["image", "text"], model: str | None = None) -> Tensor:
        """Unit rows, as annotators want them."""
        return normalize(getattr(self, side), dim=1)

    def labels(self, name: str) -> Tensor:
        """Int64 [N]."""
        return self.fields[name]


class Annotated:
    """Rows as annotators see them (`vlalign.types.Frozen`)."""

    def __init__(self, rows: Rows) -> None:
        self.rows, self.features, self.field = rows, rows.features, rows.labels

    def __len__(self) -> int:
        return len(self.rows)


class Towers:
    """Locked towers as `read_pictures` wants them: features in place of embeddings."""

    def __init__(self, model: DualEncoder) -> None:
        self.model = model
        self.caches = {
            side: FeatureCache.of(model.tower(side), cache_folder() / "features") for side in SIDES
        }

    def encode_image(self, images: Any) -> Tensor:
        """Features [N, width]."""
        return image_features(self.model.image, images, self.caches["image"])

    def rows(
        self,
        source: Source,
        fields: Sequence[str] = (),
        numbers: Sequence[str] = (),
        sentences: bool = False,
    ) -> Rows:
        """Every row that can be read, its captions as one text; `row` and `caption` are fields of all.

        `numbers`: fields that are scaled to lie between 0 and 1. `sentences`: those of the captions are kept,
        [N, S, width] with `count` of each row that are its own.
        """
        pictures = read_pictures(self, source)
        captions = [". ".join(sample["captions"]) for sample in pictures.samples]
        named = {
            "row": [sample["id"] for sample in pictures.samples],
            **{name: [sample[name] for sample in pictures.samples] for name in fields},
        }
        found = {name: torch.tensor([hash63(text) for text in texts]) for name, texts in named.items()}
        for name in numbers:
            x = torch.tensor([float(sample[name]) for sample in pictures.samples])
            found[name] = (x - x.min()) / (x.max() - x.min())
        if sentences:
            cut = [[each for text in row["captions"] for each in split(text)] for row in pictures.samples]
            count = [len(each) for each in cut]
            every = self._texts([each for row in cut for each in row]).split(count)
            found |= {"sentences": pad_sequence(every, batch_first=True), "count": torch.tensor(count)}
        told = self.texts(captions)
        return replace(told, image=pictures.features).having(**found)

    def texts(self, captions: Sequence[str]) -> Rows:
        """Rows without pictures."""
        numbers = [hash63(caption.strip().casefold()) for caption in captions]
        text = self._texts(captions)
        words = dict(zip(numbers, captions, strict=True))
        return Rows(torch.zeros(len(text), 0), text, {"caption": torch.tensor(numbers)}, words)

    def _texts(self, texts: Sequence[str]) -> Tensor:
        return text_features(self.model.text, texts, self.caches["text"])


class Told:
    """Rows as a source of texts, for what filters them; `build` gives itself."""

    licences, skipped = (), {}

    def __init__(self, rows: Rows) -> None:
        self.numbers, self.words = rows.fields["caption"].tolist(), rows.words

    def build(self, limits: Limits = Limits()) -> Self:
        """A source."""
        return self

    def __len__(self) -> int:
        return len(self.numbers)

    def captions(self, index: int) -> tuple[str, ...]:
        """One."""
        return (self.words[self.numbers[index]],)

    def fields(self, index: int) -> dict[str, str]:
        """Its place."""
        return {"id": str(index)}


class Alone:
    """One process, as `vlalign.train.meta` wants to know it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def sum(self, values: Tensor) -> Tensor:
        """Of every process."""
        return values


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What is compared, in the words of recipes. `learn`: whether the scale learns, where it is read.

    `rules`: of the filter `align_filter`; `sentences`: a text is one of its row's sentences, drawn anew.
    """

    task: Mapping[str, Any]
    sampler: Any = "random"
    annotate: Mapping[str, Any] = field(default_factory=dict)
    ema: float | None = None
    bias: Bias = Bias()
    learn: bool = True
    calibrate: Mapping[str, Any] | None = None
    rules: Mapping[str, Any] | None = None
    sentences: bool = False

    def at(self, scale: float) -> Self:
        """The same with every "SCALE" and "1/SCALE" written out."""
        return replace(self, task=_written(self.task, scale))


class Draws:
    """What an arm draws anew for each batch: virtual pictures, sentences."""

    def __init__(self, rows: Rows, arm: Arm, seed: int) -> None:
        self.virtual, self.sentences = None, arm.sentences
        self.random = np.random.default_rng([seed, 2])
        if arm.calibrate is not None:
            how = Calibrate(**arm.calibrate)
            self.virtual = VirtualFeatures.fit(rows.image, rows.fields[how.field], {}, how)

    def __call__(self, batch: dict[str, Any], places: Tensor) -> dict[str, Any]:
        """The batch of these rows, changed in place."""
        if self.virtual:
            rows = zip(batch["query"]["features"], places.tolist(), strict=True)
            features = [self.virtual(x, place, self.random) for x, place in rows]
            batch["query"]["features"] = torch.stack(features)
        if self.sentences:
            own = batch["key_fields"]
            which = torch.from_numpy(self.random.random(len(places))).to(own["count"].device) * own["count"]
            batch["key"]["features"] = own["sentences"][torch.arange(len(places)), which.long()]
        return batch


class Nothing(TowerModule):
    """A tower that never runs, for its features are known."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Identity(), width, None, {})


def trained(
    rows: Rows,
    arm: Arm,
    *,
    seed: int,
    batch: int,
    steps: int,
    scale: float = 14.3,
    dim: int = 128,
    device: torch.device = torch.device("cpu"),
    **optimizer: float,
) -> DualEncoder:
    """New heads, on the CPU, after so many steps. `seed`: of weights and order; `optimizer`: of AdamW."""
    task, sampler = TASKS.decode({"name": "align", **arm.task}), SAMPLERS.decode(arm.sampler)
    for name, annotator in arm.annotate.items():
        found = ANNOTATORS.decode(annotator)(Annotated(rows))
        rows = replace(rows, fields={**rows.fields, name: found})
    if arm.rules is not None:
        rows = passed(rows, arm.rules)
    draws = Draws(rows, arm, seed)
    torch.manual_seed(seed)
    towers = (Nothing(x.shape[1]) for x in (rows.image, rows.text))
    learns = arm.learn and task.reads_scale
    multiplier = Scale(init=scale, max=max(100.0, scale), learn=learns)
    model = DualEncoder(*towers, dim=dim, scale=multiplier, bias=arm.bias)
    model.learn_for(task.heads(dim))
    model.to(device)
    optim = OPTIMIZERS.decode({"name": "adamw", **optimizer})
    multiple = SCHEDULES.decode("cosine").build(steps)
    descent, average = optim.build(model), Average(model, arm.ema) if arm.ema else None
    labels = None if sampler.by is None else rows.fields[sampler.by].numpy()
    order = Order(sampler=sampler, rows=len(rows), batch=batch, seed=seed, labels=labels)
    rows, alone = rows.to(device), Alone(device)
    for step in range(1, steps + 1):
        epoch, start, stop = order.span(step - 1)
        places = torch.from_numpy(order.epoch(epoch)[start:stop].astype(np.int64))
        one = draws(_batch(rows, places), places)
        if average and task.momentum:
            [one] = with_momentum(average, model, [one])
        loss = task.loss(model(one), one, step, steps).total / len(one["ids"])
        descent.zero_grad()
        loss.backward()
        teach_rescalers(alone, model, task, [one], separable, step=step, total=steps)
        if optim.clip:
            nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], optim.clip)
        for group in descent.param_groups:
            group["lr"] = optim.lr * multiple(step)
        descent.step()
        model.clamp_scale()
        if average:
            average.update(step)
    if average:  # as a run with `ema` is evaluated and saved
        with average.applied():
            return deepcopy(model).cpu()
    return model.cpu()


@torch.no_grad()
def measured(model: DualEncoder, rows: Rows, graded: bool = False) -> dict[str, float]:
    """Reciprocal rank and recall, mean of both directions; rows of one caption are right for each other.

    `graded`: nDCG@10 as well, by `grades`.
    """
    image, text = model.encode_image({"features": rows.image}), model.encode_text({"features": rows.text})
    group = rows.fields["caption"]
    ranks = rank_both(image, text, group, group)
    found = {"mrr": mrr, "r@1": lambda each: recall(each, 1), "r@10": lambda each: recall(each, 10)}
    told = {name: sum(map(metric, ranks)) / 2 for name, metric in found.items()}
    if graded:
        scores, grade = (image @ text.T).numpy(), grades(rows).numpy()
        told["ndcg@10"] = sum(ndcg_score(grade, each, k=10) for each in (scores, scores.T)) / 2
    return told


def grades(rows: Rows) -> Tensor:
    """How much rows are right for each other, int64 [N, N].

    3: of one caption; 2: of one subcategory and with a tag in common; 1: either of these.
    """
    label, tags, caption = (rows.fields[name] for name in ("subcategory", "tags", "caption"))
    shared = torch.stack([(tags[:, :, None] == own).any(2).any(1) for own in tags])
    either = (label[:, None] == label).long() + shared
    return either.masked_fill(caption[:, None] == caption, 3)


def passed(rows: Rows, rules: Mapping[str, Any]) -> Rows:
    """Those whose captions pass ALIGN's filter."""
    return rows.at(torch.tensor(AlignFilter(source=Told(rows), **rules).build().rows))


def _batch(rows: Rows, places: Tensor) -> dict[str, Any]:
    own = rows.at(places)
    return {
        "query": {"features": own.image},
        "key": {"features": own.text},
        "query_fields": own.fields,
        "key_fields": own.fields,
        "ids": places.tolist(),
    }


def _written(value: Any, scale: float) -> Any:
    if isinstance(value, Mapping):
        return {name: _written(each, scale) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_written(each, scale) for each in value]
    return {"SCALE": scale, "1/SCALE": 1 / scale}.get(value, value) if isinstance(value, str) else value
