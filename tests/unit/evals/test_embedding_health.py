import pytest
import torch

from tests.unit.evals.fakes import COLOURS, ColourModel, Rows, Spec
from vlalign.evals.evaluators.embedding_health import EmbeddingHealth, health
from vlalign.evals.metrics.rank_me import rank_me
from vlalign.types import DataError, Limits


def test_health_of_a_model_that_sees():
    rows = [{"image": colour, "captions": (name,)} for name, colour in COLOURS.items()] * 5
    row = EmbeddingHealth(data=Spec(Rows(rows)), dataset="fake")(ColourModel(), Limits())[0]
    assert row.task == "embedding_health" and set(row.metrics) == set(row.chance)
    assert row.metrics["alignment"] == pytest.approx(0, abs=1e-9)
    assert row.metrics["modality_gap"] == pytest.approx(0, abs=1e-6)
    assert row.metrics["rank_me_image"] == pytest.approx(row.metrics["rank_me_text"], abs=1e-5)
    assert row.chance["alignment"] == pytest.approx(2, abs=1)
    assert len(row.exhibits["spectra"]["image"]) == 3


def test_rank_me_of_pairs_and_of_the_sides_product():
    generator = torch.Generator().manual_seed(0)
    image, text = torch.nn.functional.normalize(torch.randn(2, 60, 10, generator=generator), dim=2)
    found = health(image, text)
    joined, product = torch.cat([image, text], 1).double(), image.double().T @ text.double()
    assert found["rank_me_pairs"] == pytest.approx(rank_me(torch.linalg.svdvals(joined)), abs=1e-3)
    assert found["rank_me_cross"] == pytest.approx(rank_me(torch.linalg.svdvals(product)), abs=1e-3)
    plane = torch.nn.functional.normalize(text * (torch.arange(10) < 2), dim=1)
    flat = health(image, plane)  # what the sides share is at most what either has
    assert flat["rank_me_cross"] <= 2.01 and flat["rank_me_text"] <= 2.01 < flat["rank_me_image"]


def test_samples_are_drawn_by_the_seed():
    rows = [{"image": (i, 255 - i, 9), "captions": ("red",)} for i in range(50)]
    values = [
        EmbeddingHealth(data=Spec(Rows(rows)), dataset="fake", samples=5, seed=seed)(ColourModel(), Limits())[
            0
        ]
        for seed in (0, 0, 1)
    ]
    assert values[0].metrics == values[1].metrics != values[2].metrics


def test_one_row_is_refused():
    rows = Rows([{"image": (255, 0, 0), "captions": ("red",)}, {"image": None, "captions": ("red",)}])
    with pytest.raises(DataError, match="needs two"):
        EmbeddingHealth(data=Spec(rows), dataset="fake")(ColourModel(), Limits())
