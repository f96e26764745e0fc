import pytest

from tests.unit.evals.fakes import COLOURS, ColourModel, Rows, Spec
from vlalign.evals.evaluators.embedding_health import EmbeddingHealth
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
