"""Training steps against open_clip_train: plain, accumulated, a locked tower, compiled; JPEG drafts.

python scripts/bench_train.py [--only NAME ...] [--repeats 5] [--json FILE]

Theirs is the loop that `open_clip_train.main --device cpu --precision fp32` runs, with its arguments and its
optimizer; ours is the step of `vlalign train`. Both have the same weights, pictures and captions, which were
read, cut to size and tokenized before. Captions are titles and keywords of Open Clip Art, in a random order.
That losses and gradients agree is checked before anything is measured.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from clip_art import DATA, clip_art
from measure import Bench, Row, compared, curve, main, seconds, weighed
from torch import Tensor

from vlalign.data.collate import collate, stack_features
from vlalign.data.images import decode
from vlalign.models.encoders.open_clip import OpenClip
from vlalign.models.tower import Adaptation
from vlalign.objectives.info_nce import InfoNCE
from vlalign.recipe.schemas import TrainData, TrainRecipe
from vlalign.registry import SOURCES
from vlalign.supervision.targets.identity import Identity
from vlalign.tasks.align import Align
from vlalign.tasks.terms import Term
from vlalign.train.model import build
from vlalign.train.optimizers.adamw import AdamW
from vlalign.train.runtime import Runtime
from vlalign.train.schedules.cosine import Cosine
from vlalign.train.step import cached, separable
from vlalign.types import Batch, Limits

ANCHOR, SMALL, BASE = "open_clip_train.main", "ViT-S-32", "ViT-B-32"
ADAMW: dict[str, Any] = {"lr": 1e-5, "weight_decay": 0.2, "betas": (0.9, 0.98), "eps": 1e-6}
LONG = 10**6  # steps, so that the rate stays as it is
Learned = tuple[float, dict[str, Tensor]]  # the loss, and gradients by open_clip's names


@dataclass(frozen=True)
class Case:
    """What is trained. `chunks`: forwards a step; `lock`: the image tower."""

    id: str
    batch: int
    chunks: int = 1
    lock: bool = False
    compile: bool = False


def rows(count: int) -> list[dict[str, Any]]:
    """Rows as the loader draws them."""
    found = clip_art(count)
    return [row | {"texts": row["captions"][:1], "caption": row["captions"][0]} for row in found]


class Ours:
    """A step of `vlalign train` on one process."""

    def __init__(self, case: Case) -> None:
        size = case.batch // case.chunks
        self.recipe = TrainRecipe(
            verb="train",
            out="runs/bench",
            model=OpenClip(id=case.id, image=Adaptation(lock=case.lock)),
            data=TrainData(train=SOURCES.decode(DATA), batch=case.batch, chunk=size),
            task=Align(targets=Identity(), terms=(Term(objective=InfoNCE()),)),
            steps=LONG,
            optim=AdamW(**ADAMW, clip=0),
            schedule=Cosine(warmup=0),
            precision="fp32",
            compile=case.compile,
        )
        torch.manual_seed(0)
        self.model: Any = build(self.recipe)
        self.runtime = Runtime(self.recipe)
        self.chunks = [self.read(start, size) for start in range(0, case.batch, size)]
        self.ids = [row["id"] for row in rows(case.batch)]
        optimizer, schedule = self.recipe.optim.build(self.model), self.recipe.schedule.build(LONG)
        self.runtime.prepare(self.model, optimizer, schedule)

    def read(self, start: int, size: int) -> Batch:
        """A chunk as the loader makes it; of a locked tower the features, as from the second epoch on."""
        images, texts = self.model.processors()
        some = rows(self.recipe.data.batch)[start : start + size]
        if not self.model.locked:
            return collate(some, images, texts)
        with torch.no_grad():
            known = self.model.image(images([row["image"] for row in some]))
        return collate(
            [row | {"image": x} for row, x in zip(some, known, strict=True)], stack_features, texts
        )

    def backward(self) -> Any:
        """The loss; gradients are left in the parameters."""
        chunks = [self.runtime.place(chunk) for chunk in self.chunks]
        divisor = self.runtime.total(sum(self.recipe.task.rows(chunk) for chunk in chunks))
        step = cached if self.runtime.chunked else separable
        return step(
            self.runtime, self.runtime.model, chunks, self.recipe.task, step=1, total=LONG, divisor=divisor
        )

    def __call__(self) -> object:
        """Once around the loop."""
        return self.runtime.move(1, self.backward(), len(self.ids), self.ids)

    def learned(self) -> Learned:
        """What the weights of now give; nothing moves."""
        loss = float(self.backward().total) / len(self.ids)
        found = {named(name): p.grad for name, p in self.model.named_parameters() if p.requires_grad}
        self.runtime.optimizer.zero_grad()
        return loss, found


class Theirs:
    """`open_clip_train.train.train_one_epoch` over one step, with what `open_clip_train.main` gives it."""

    def __init__(self, case: Case) -> None:
        import open_clip
        from open_clip_train.params import parse_args

        size = case.batch // case.chunks
        flags = ["--device", "cpu", "--precision", "fp32", "--skip-scheduler", "--model", case.id]
        flags += ["--batch-size", str(size), "--accum-freq", str(case.chunks)]
        self.args = parse_args(flags)
        self.args.distill, self.args.rank, self.args.world_size, self.args.wandb = False, 0, 1, False
        torch.manual_seed(0)
        self.model: Any = open_clip.create_model(case.id, output_dict=True)
        self.loss = open_clip.create_loss(self.args)
        if case.lock:
            self.model.lock_image_tower()
        groups: dict[bool, list[Any]] = {True: [], False: []}
        for name, p in self.model.named_parameters():
            if p.requires_grad:
                groups[p.ndim < 2 or any(x in name for x in ("bn", "ln", "bias", "logit_scale"))].append(p)
        decay = {"weight_decay": ADAMW["weight_decay"]}
        told = [{"params": groups[True], "weight_decay": 0.0}, {"params": groups[False]} | decay]
        self.optimizer = torch.optim.AdamW(told, **{k: ADAMW[k] for k in ("lr", "betas", "eps")})
        process = open_clip.image_transform(self.model.visual.image_size, is_train=False)
        images = torch.stack([process(row["image"]) for row in rows(case.batch)])
        texts = open_clip.get_tokenizer(case.id)([row["caption"] for row in rows(case.batch)])
        batches = Batches(zip(images.split(size), texts.split(size), strict=True))
        batches.num_batches, batches.num_samples = case.chunks, case.batch
        self.data = {"train": SimpleNamespace(set_epoch=lambda epoch: None, dataloader=batches)}

    def __call__(self) -> object:
        """An epoch of one step."""
        from open_clip_train.train import train_one_epoch

        given = (self.model, self.data, self.loss, 0, self.optimizer, None, None, None, self.args)
        return train_one_epoch(*given)

    def learned(self) -> Learned:
        """What the weights of now give; nothing moves. Accumulating counts the scale k times."""
        groups = [(group, group["lr"]) for group in self.optimizer.param_groups]
        for group, _ in groups:
            group["lr"] = 0.0
        losses: list[Tensor] = []
        hook = self.loss.register_forward_hook(lambda *seen: losses.append(seen[-1]["contrastive_loss"]))
        self()
        hook.remove()
        for group, rate in groups:
            group["lr"] = rate
        found = {name: p.grad for name, p in self.model.named_parameters() if p.requires_grad}
        found["logit_scale"] = found["logit_scale"] / self.args.accum_freq
        return losses[-1].item(), found


class Batches(list[Any]):
    """A loader of what is in memory."""

    num_batches: int
    num_samples: int


def named(name: str) -> str:
    """What open_clip calls one of our parameters."""
    return (
        "logit_scale" if name == "scale" else name.replace("image.net.", "visual.").replace("text.net.", "")
    )


def pair(case: Case) -> tuple[Ours, Theirs]:
    """Both sides with the same weights. Raises AssertionError when they do not compute the same."""
    ours, theirs = Ours(case), Theirs(case)
    state = theirs.model.state_dict()
    with torch.no_grad():
        for name, p in ours.model.named_parameters():
            if name != "bias":
                p.copy_(state[named(name)].reshape(p.shape))
    (loss, mine), (other_loss, other) = ours.learned(), theirs.learned()
    torch.testing.assert_close(loss, other_loss, rtol=1e-5, atol=1e-5)
    assert mine.keys() == other.keys()
    for name, gradient in mine.items():
        wanted = other[name].reshape(gradient.shape)
        worst, size = (gradient - wanted).abs().max(), wanted.abs().max()
        assert worst <= 1e-4 * max(1e-2, size), f"{name}: gradients differ by {worst} of {size}"
    return ours, theirs


def lengths(ours: Ours) -> str:
    """How long the captions are, and what a forward reads."""
    ends = [ours.model.text.process(row["texts"])["input_ids"].shape[1] for row in rows(len(ours.ids))]
    read = ", ".join(str(chunk["key"]["input_ids"].shape[1]) for chunk in ours.chunks)
    return f"captions of {sum(ends) / len(ends):.1f} tokens on average, forwards of {read} instead of 77"


def step(name: str, case: Case, target: float, repeats: int) -> list[Row]:
    """A step of the optimizer."""
    ours, theirs = pair(case)
    made = compared(
        name, ANCHOR, ours, theirs, target=target, repeats=repeats, items=case.batch, unit="samples/s",
        note=lengths(ours),
    )  # fmt: skip
    return [made]


def memory(name: str, case: Case, repeats: int) -> list[Row]:
    """Peak memory of a first step, the optimizer's state included."""
    warm = (Case(case.id, 2 * case.chunks, case.chunks),)
    return [weighed(name, ANCHOR, Ours, Theirs, case, target=1.0, repeats=repeats, warm=warm)]


def compiled(repeats: int) -> list[Row]:
    """Our step compiled against the same step as it is."""
    case = Case(SMALL, 16)
    ours, plain = Ours(Case(SMALL, 16, compile=True)), Ours(case)
    name = f"compile: true, {SMALL}, batch 16"
    return [
        compared(
            name, "compile: false", ours, plain, target=None, repeats=repeats, items=16, unit="samples/s"
        )
    ]


def growth(_: int) -> list[Row]:
    """A step at several batch sizes."""
    sides: tuple[Callable[[int], float], ...] = tuple(
        lambda size, side=side: timed(side(Case(SMALL, size))) for side in (Ours, Theirs)
    )
    return [curve(f"training step, {SMALL}, by batch", ANCHOR, *sides, (4, 8, 16, 32), unit="s")]


def timed(step: Callable[[], object]) -> float:
    """The second call of a step."""
    step()
    return seconds(step)


def jpeg(repeats: int) -> list[Row]:
    """A photograph of 2000 x 1333 pixels, decoded whole or as a draft that keeps 448 pixels a side."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    encoded = []
    for photograph in load_sample_images().images:
        file = io.BytesIO()
        Image.fromarray(photograph).resize((2000, 1333)).save(file, "JPEG", quality=90)
        encoded.append(file.getvalue())

    def read(limits: Limits) -> None:
        for data in encoded * 5:
            decode(data, limits)[0].resize((224, 224), Image.Resampling.BICUBIC)

    ours, theirs = partial(read, Limits(draft=448)), partial(read, Limits())
    name = "JPEG of 2000 px to 224 px, draft: 448"
    return [
        compared(
            name,
            "the same without draft",
            ours,
            theirs,
            target=None,
            repeats=repeats,
            items=10,
            unit="images/s",
        )
    ]


K8, LOCKED = Case(SMALL, 64, 8), Case(SMALL, 32, lock=True)
BENCHES: dict[str, Bench] = {
    "train_small": partial(step, f"training step, {SMALL}, batch 32", Case(SMALL, 32), 1.5),
    "train_base": partial(step, f"training step, {BASE}, batch 16", Case(BASE, 16), 1.3),
    "accumulate": partial(step, f"8 chunks of 8, {SMALL}", K8, 1.3),
    "accumulate_memory": partial(memory, f"8 chunks of 8, {SMALL}: peak memory", K8),
    "locked": partial(step, f"locked image tower from epoch 2, {SMALL}, batch 32", LOCKED, 3.0),
    "compile": compiled,
    "train_growth": growth,
    "jpeg": jpeg,
}

if __name__ == "__main__":
    main(BENCHES, __doc__)
