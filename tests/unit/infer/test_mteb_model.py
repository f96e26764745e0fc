"""A reranker as mteb's cross-encoder: by batches of its shape, and by mteb itself where it is installed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from tests.language_models import reranker
from vlalign.infer.mteb_model import MtebModel
from vlalign.models.rerank_scorer import RerankScorer
from vlalign.models.weights import save
from vlalign.types import Item, UserError

QUERIES = ["a red car", "the small cat", "a red car"]
DOCUMENTS = [["a red car near a tree", "a cat", "a dog"], ["a cat"], ["the house", "a red car"]]
WHERE = {"task_metadata": None, "hf_split": "test", "hf_subset": "default"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved reranker."""
    home = tmp_path_factory.mktemp("mteb")
    save(reranker(home / "base", length=300), home / "model")
    return home / "model"


@pytest.fixture(scope="module")
def model(folder: Path) -> MtebModel:
    return MtebModel(str(folder), device="cpu")


def batches(rows: list[dict[str, Any]], size: int) -> DataLoader[Any]:
    """As mteb makes them: of each column a list."""

    def columns(some: list[dict[str, Any]]) -> dict[str, list[Any]]:
        return {name: [row[name] for row in some] for name in some[0]}

    return DataLoader(rows, batch_size=size, collate_fn=columns)  # type: ignore[arg-type]


def pairs() -> list[tuple[str, str]]:
    return [(query, text) for query, own in zip(QUERIES, DOCUMENTS, strict=True) for text in own]


@pytest.mark.parametrize("size", [1, 2, 4, 32])
def test_pairs_come_back_in_their_order_whatever_the_batch(model: MtebModel, size: int) -> None:
    asked = batches([{"id": str(at), "text": query} for at, (query, _) in enumerate(pairs())], size)
    shown = batches(
        [{"id": str(at), "text": text, "body": text} for at, (_, text) in enumerate(pairs())], size
    )
    found = model.predict(asked, shown, **WHERE, prompt_type=None, batch_size=size, show_progress_bar=False)
    expected = [model.scorer.score([query], [[text]])[0].item() for query, text in pairs()]
    assert isinstance(found, np.ndarray) and found.dtype == np.float32 and found.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_candidates_of_a_query_are_scored_together(folder: Path) -> None:
    """So what their prompts begin with alike is read once; a query that comes again later is a new group."""
    calls = []

    class Counted(RerankScorer):
        def score(self, queries: Any, candidates: Any) -> list[torch.Tensor]:
            calls.append([len(own) for own in candidates])
            return super().score(queries, candidates)

    counted = MtebModel(Counted(reranker(folder.parent / "again")))
    asked, shown = ([{"text": text} for text in column] for column in zip(*pairs(), strict=True))
    counted.predict(batches(asked, 2), batches(shown, 2), **WHERE)
    assert calls == [[3], [1], [2]]


def test_pictures_and_texts_become_items(folder: Path) -> None:
    seen: list[tuple[Item, list[Item]]] = []

    class Seeing(RerankScorer):
        def score(self, queries: Any, candidates: Any) -> list[torch.Tensor]:
            seen.extend(zip(queries, candidates, strict=True))
            return [torch.arange(float(len(own))) for own in candidates]

    one, same, other = (Image.new("RGB", (8, 8), colour) for colour in ("red", "red", "blue"))
    asked = [{"image": one}, {"image": same}, {"image": other}]  # mteb decodes each row's picture anew
    shown = [{"text": "a", "image": None}, {"text": "", "image": other}, {"text": "c", "image": one}]
    found = MtebModel(Seeing(reranker(folder.parent / "seeing"))).predict(
        batches(asked, 2), batches(shown, 2), **WHERE
    )
    assert found.tolist() == [0, 1, 0]
    assert [query for query, _ in seen] == [Item(images=(one,)), Item(images=(other,))]
    assert seen[0][1] == [Item(text="a"), Item(images=(other,))]
    assert seen[1][1] == [Item(text="c", images=(one,))]


def test_what_does_not_fit_is_told(model: MtebModel) -> None:
    text, sound = batches([{"text": "a"}], 1), batches([{"id": "1", "audio": b""}], 1)
    with pytest.raises(UserError, match="reads texts and pictures, and this task gives id, audio"):
        model.predict(text, sound, **WHERE)
    with pytest.raises(ValueError, match="zip"):
        model.predict(text, batches([{"text": "a"}] * 2, 1), **WHERE)
    with pytest.raises(UserError, match="this is a dual encoder, and no reranker; give it to MtebEncoder"):
        MtebModel("recipes/tiny/open_clip")
    assert len(model.predict([], [], **WHERE)) == 0


def test_mteb_evaluates_it(folder: Path) -> None:
    mteb = pytest.importorskip("mteb")
    from mteb.mocks import MockInstructionReranking, MockRerankingTask

    own = MtebModel(str(folder), revision="1", device="cpu")
    protocols = (mteb.CrossEncoderProtocol, mteb.EncoderProtocol, mteb.SearchProtocol)
    assert [isinstance(own, each) for each in protocols] == [True, False, False]
    meta = own.mteb_model_meta
    assert (meta.name, meta.revision, meta.modalities) == ("vlalign/model", "1", ["text"])
    for task in (MockRerankingTask(), MockInstructionReranking()):
        [result] = mteb.evaluate(own, tasks=task, cache=None, show_progress_bar=False).task_results
        assert 0 < result.get_score() <= 1
