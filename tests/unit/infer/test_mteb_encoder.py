"""A dual encoder as mteb's encoder: by batches of its shape, and by mteb itself where it is installed."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

import vlalign
from tests.language_models import language_model, reranker
from vlalign.infer.mteb_encoder import MtebEncoder
from vlalign.models.embedder import DualEncoderEmbedder
from vlalign.models.weights import save
from vlalign.registry import MODELS
from vlalign.types import UserError

TINY = "recipes/tiny/open_clip"
WHERE = {"task_metadata": None, "hf_split": "test", "hf_subset": "default"}
TEXTS = ["a red car", "a blue cat", "a green tree", "a red car", ""]


@pytest.fixture(scope="module")
def embedder():
    torch.manual_seed(0)
    return vlalign.load(TINY, device="cpu")


@pytest.fixture(scope="module")
def model(embedder):
    return MtebEncoder(embedder)


@pytest.fixture(scope="module")
def pictures():
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (24, 40, 3), dtype=np.uint8)) for _ in range(5)]


def batches(rows, size):
    """As mteb makes them: of each column a list."""
    return DataLoader(
        rows, size, collate_fn=lambda some: {name: [row[name] for row in some] for name in some[0]}
    )


@pytest.mark.parametrize("size", [1, 2, 32])
def test_rows_come_back_in_their_order_whatever_the_batch(model, embedder, pictures, size):
    texts = model.encode(
        batches([{"id": str(at), "text": each} for at, each in enumerate(TEXTS)], size),
        **WHERE,
        prompt_type="query",
        batch_size=size,
        show_progress_bar=False,
    )
    shown = model.encode(
        batches([{"image": each, "label": at} for at, each in enumerate(pictures)], size), **WHERE
    )
    assert isinstance(texts, np.ndarray) and texts.dtype == shown.dtype == np.float32
    np.testing.assert_allclose(texts, embedder.encode_text(TEXTS), atol=1e-5)
    np.testing.assert_allclose(shown, embedder.encode_image(pictures), atol=1e-5)
    assert np.abs(texts[0] - texts[1]).max() > 0.01


def test_a_text_with_a_picture_is_the_sum_of_both_made_unit(model, embedder, pictures):
    rows = [{"text": text, "image": image} for text, image in zip(TEXTS, pictures, strict=True)]
    rows[1] = {"text": TEXTS[1], "image": None}
    found = torch.from_numpy(model.encode(batches(rows, 2), **WHERE))
    texts, images = embedder.encode_text(TEXTS), embedder.encode_image(pictures)
    wanted = normalize(texts + images, dim=1)
    wanted[1], wanted[4] = texts[1], images[4]  # where one of both is missing the other is all
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_similarities_are_cosines_of_arrays_and_of_tensors(model, kind):
    one, other = np.random.default_rng(1).normal(size=(2, 4, 3))
    table = model.similarity(kind(one), kind(other[:2]))
    pairs = model.similarity_pairwise(kind(one), kind(other))
    assert table.shape == (4, 2) and pairs.shape == (4,)
    for i, x in enumerate(one):
        for j, y in enumerate(other):
            cosine = sum(a * b for a, b in zip(x, y, strict=True)) / (sum(x * x) * sum(y * y)) ** 0.5
            if j < 2:
                assert table[i, j].item() == pytest.approx(cosine, abs=1e-6)
            if i == j:
                assert pairs[i].item() == pytest.approx(cosine, abs=1e-6)
    assert model.similarity(kind(one[0]), kind(other)).shape == (1, 4)


def test_what_does_not_fit_is_told(model, tmp_path):
    with pytest.raises(UserError, match="reads texts and pictures, and this task gives id, audio"):
        model.encode(batches([{"id": "1", "audio": b""}], 1), **WHERE)
    save(reranker(tmp_path / "base"), tmp_path / "model")
    with pytest.raises(
        UserError, match=re.escape("model: this is no dual encoder; a reranker goes to MtebModel")
    ):
        MtebEncoder(str(tmp_path / "model"))
    assert model.encode([], **WHERE).shape == (0, 32)
    assert MtebEncoder(TINY).name == "vlalign/open_clip" and model.name == "vlalign/encoder"


def test_what_reads_texts_alone_says_so_to_mteb(tmp_path):
    pytest.importorskip("mteb")
    id = str(language_model(tmp_path / "words", "llama", tied=False))
    words = MODELS.decode({"name": "mllm_embedder", "id": id}).build()
    assert MtebEncoder(DualEncoderEmbedder(words)).mteb_model_meta.modalities == ["text"]


def test_mteb_evaluates_it():
    mteb = pytest.importorskip("mteb")
    from mteb import mocks

    own = MtebEncoder(TINY, revision=None, device="cpu")
    protocols = (mteb.CrossEncoderProtocol, mteb.EncoderProtocol, mteb.SearchProtocol)
    assert [isinstance(own, each) for each in protocols] == [False, True, False]
    meta = own.mteb_model_meta
    assert (meta.name, meta.modalities, meta.embed_dim) == ("vlalign/open_clip", ["image", "text"], 32)
    for name in (
        "MockRetrievalTask",
        "MockAny2AnyRetrievalT2ITask",
        "MockMultiChoiceTask",
        "MockZeroShotClassificationTask",
        "MockImageTextPairClassificationTask",
        "MockSTSTask",
    ):
        [result] = mteb.evaluate(
            own, tasks=getattr(mocks, name)(), cache=None, show_progress_bar=False
        ).task_results
        assert 0 < result.get_score() <= 1, name
