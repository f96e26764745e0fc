"""`vlalign soup`, and what its recipe refuses."""

import pytest
import torch

import vlalign
from tests.unit.cli.test_main import run
from vlalign.models.weights import save

UNIFORM = "recipes/soup/uniform.yaml"


@pytest.fixture
def models(tmp_path):
    """Three saved models as a recipe writes them."""
    torch.manual_seed(0)
    model = vlalign.load("recipes/tiny/open_clip", device="cpu").model
    for place in range(3):
        model.scale.data.fill_(float(place))
        save(model, tmp_path / f"model{place}")
    return f"models=[{', '.join(str(tmp_path / f'model{place}') for place in range(3))}]"


def test_a_soup_is_printed_and_a_finished_one_says_so(models, tmp_path, capsys):
    words = ["soup", UNIFORM, models, f"out={tmp_path / 'out'}"]
    told = run(*words, capsys=capsys)
    assert all(f"model{place}" in told for place in range(3)) and told.count("0.3333") == 3
    assert "is finished" not in told and str(tmp_path / "out" / "model") in told
    assert vlalign.load(tmp_path / "out").model.scale.item() == 1.0
    again = run(*words, capsys=capsys)
    assert f"{tmp_path / 'out'} is finished; delete it to make it again" in again and "0.3333" in again
    other = run(*words, "limits.pixels=9", code=2, capsys=capsys)
    assert "holds a run of another recipe" in other and "is finished" not in other


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["models=[a]"], "models: must be at least two, got ['a']"),
        (["models=[]"], "models: must not be empty"),
        (["models=[a, '']"], "models: must not be empty"),
        (["models=[a, b]", "alpha=1.5"], "alpha: must be between 0 and 1, got 1.5"),
        (["models=[a, b]", "alpha=-0.1"], "alpha: must be between 0 and 1, got -0.1"),
        (["models=[a, b, c]", "alpha=0.5"], "alpha: must be left out of a greedy mean, and of one of more"),
        (["greedy=acc1"], "evals is empty; name the evaluator whose metric chooses what is kept"),
        (["model=[a, b]"], "SoupRecipe has no field 'model'. Did you mean 'models'?"),
        (["out="], "out: must not be empty"),
        (["models=[/nowhere/a, /nowhere/b]"], "/nowhere/a: there is no such folder, and it is no Hub id"),
    ],
)
def test_what_cannot_be_averaged_is_said(overrides, told, tmp_path, capsys):
    said = run("soup", UNIFORM, f"out={tmp_path / 'out'}", *overrides, code=2, capsys=capsys)
    assert told in said and "Traceback" not in said
