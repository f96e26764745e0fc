"""What evaluation finds must not depend on padding, on ties, or on the size of a batch."""

from itertools import permutations

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from tests.unit.evals.fakes import Rows, Spec
from tests.unit.models.conftest import OPEN_CLIP, open_clip_folder
from tests.unit.train.tiny import pictures
from vlalign.data.sources.jsonl import JsonLines
from vlalign.evals.evaluators.embedding_health import EmbeddingHealth
from vlalign.evals.evaluators.retrieval import Retrieval
from vlalign.models.embedder import DualEncoderEmbedder
from vlalign.models.encoders.hf_clip import HFClip
from vlalign.models.encoders.open_clip import OpenClip
from vlalign.types import Limits

TEXTS = {"text_cfg": OPEN_CLIP["text_cfg"] | {"pool_type": "eos", "eos_id": 49407}}
KINDS = {"plain": {}, "quick_gelu": {"quick_gelu": True}, "eos": TEXTS}


@pytest.mark.parametrize("kind", [*KINDS, "hf_clip"])
def test_22_trimmed_texts(tmp_path, request, texts, kind):
    """Cutting a batch to its longest text changes what a tower reads that has no mask: here unit rows are
    those of the full padding, in company or alone, within 0.000001."""
    if kind == "hf_clip":
        model = HFClip(id=request.getfixturevalue("hf_clip_id")).build().eval()
        options = {"padding": "max_length", "max_length": 20, "return_tensors": "pt"}
        padded = model.text.process.tokenizer(texts, **options)["input_ids"]
    else:
        model = OpenClip(id=open_clip_folder(tmp_path / kind, OPEN_CLIP | KINDS[kind])).build().eval()
        padded = model.text.process.tokenizer(texts)
    trimmed = model.text.process(texts)
    assert trimmed["input_ids"].shape[1] < padded.shape[1]
    alone = [model.text.process([text]) for text in texts]
    assert len({inputs["input_ids"].shape[1] for inputs in alone}) > 1
    with torch.no_grad():
        wanted, found = model.encode_text({"input_ids": padded}), model.encode_text(trimmed)
        each = torch.cat([model.encode_text(inputs) for inputs in alone])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(each, wanted, rtol=0, atol=1e-6)


class Fixed:
    """Six pictures in four directions and thirty captions in ten: many scores are equal."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.image = normalize(torch.randn(4, 8, generator=generator), dim=1)[[0, 1, 2, 3, 0, 1]]
        places = torch.randperm(30, generator=generator) % 10
        self.text = normalize(torch.randn(10, 8, generator=generator), dim=1)[places]

    def encode_image(self, images: list[Image.Image]) -> Tensor:
        return self.image[[image.getpixel((0, 0))[0] for image in images]]

    def encode_text(self, texts: list[str]) -> Tensor:
        return self.text[[int(text) for text in texts]]


def brute(query: Tensor, key: Tensor, right: Tensor, k: int) -> float:
    """Recall@k: each query's keys sorted, in every order that its ties allow."""
    total = 0.0
    for row, marks in zip((query @ key.T).tolist(), right.tolist(), strict=True):
        best = max(score for score, mark in zip(row, marks, strict=True) if mark)
        above = sum(score > best + 1e-6 for score in row)
        tied = [mark for score, mark in zip(row, marks, strict=True) if abs(score - best) <= 1e-6]
        orders = list(permutations(tied))
        total += sum(any(order[: max(0, k - above)]) for order in orders) / len(orders)
    return total / len(query)


def test_23_five_captions_and_ties():
    """Counting the first of five captions alone, or ties in the order of rows, is another metric: here the
    recall of both directions is the mean over all orders of what scores alike, sorted by brute force."""
    model = Fixed()
    rows = [
        {"image": (index, 0, 0), "captions": tuple(str(5 * index + place) for place in range(5))}
        for index in range(6)
    ]
    (found,) = Retrieval(data=Spec(Rows(rows)), dataset="fixed")(model, Limits())
    right = torch.arange(6)[:, None] == torch.arange(6).repeat_interleave(5)
    for k in (1, 5, 10):
        for name, wanted in (
            ("image_to_text", brute(model.image, model.text, right, k)),
            ("text_to_image", brute(model.text, model.image, right.T, k)),
        ):
            assert found.metrics[f"{name}_R@{k}"] == pytest.approx(wanted, abs=1e-9), (name, k)
    assert 0 < found.metrics["image_to_text_R@1"] < found.metrics["image_to_text_R@5"] < 1


def test_24_evaluation_batch_size(tmp_path):
    """A metric averaged over batches changes with their size, and with the last one's rows: here one row at a
    time, seven, or all give the same numbers, for models that read texts cut to the longest of a batch."""
    data = JsonLines(path=pictures(tmp_path / "data"), id="id")
    model = OpenClip(id=open_clip_folder(tmp_path / "model")).build()
    found = []
    for batch, block in ((1, 1), (7, 5), (64, 512)):
        embedder = DualEncoderEmbedder(model, batch=batch)
        (ranked,) = Retrieval(data=data, dataset="own", block=block)(embedder, Limits())
        (health,) = EmbeddingHealth(data=data, dataset="own")(embedder, Limits())
        found.append((ranked.metrics, health.metrics))
    for ranked, health in found[1:]:
        assert ranked == found[0][0]
        assert health == pytest.approx(found[0][1], rel=1e-4)
