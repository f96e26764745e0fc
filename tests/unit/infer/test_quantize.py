"""What is saved in few bits loads with equal scores, here and by transformers; mistakes are refused."""

import json

import pytest
import torch
from safetensors.torch import load_file

import vlalign
from tests.language_models import reranker
from tests.multimodal_models import reranker as seeing
from tests.unit.models.test_cross_encoder import folder_of
from vlalign.infer.quantize import changed, drawn, finished, plain, quantize, read
from vlalign.models.rerank_scorer import RerankScorer
from vlalign.models.weights import save
from vlalign.recipe.decode import load_recipe
from vlalign.registry import MODELS
from vlalign.types import RecipeError, UserError

QUERIES, CANDIDATES = ["a red car"], [["a small cat near a tree", "a red car and a dog", "house"]]
ROUND = ("method=round", "data=null", "importance=null")


def recipe(model, out, *changes):
    return load_recipe("recipes/tiny/rsq.yaml", [f"model={model}", f"out={out}", "samples=3", *changes])


def scores(model):
    return RerankScorer(model.eval()).score(QUERIES, CANDIDATES)[0]


@pytest.fixture
def saved(tmp_path):
    save(reranker(tmp_path / "plain", "llama"), tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [False, True])
def test_every_width_is_packed_and_unpacked_exactly(bits, symmetric, saved, tmp_path):
    told = recipe(
        saved,
        tmp_path / "out",
        *ROUND,
        f"bits={bits}",
        f"symmetric={symmetric}".lower(),
        "rotate=false",
        "group=16",
    )
    model = plain(str(saved))
    found, pairs, error = changed(model, told)
    loaded = vlalign.load(quantize(told))
    assert len(found) == 21 and pairs == [] and error is None
    for name, each in found.items():
        assert torch.equal(loaded.model.net.get_submodule(name).weight, each.weight)
    torch.testing.assert_close(loaded.score(QUERIES, CANDIDATES)[0], scores(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("rotate=false", "group=8", "act_order=true"),
        ("importance=null", "symmetric=true"),
        ("importance={name: first_tokens, share: 0.5}", "power=2"),
    ],
)
def test_what_was_calibrated_is_what_is_loaded(changes, dtype, tmp_path):
    own = reranker(tmp_path / "plain", "qwen3", dtype=dtype, lora={"rank": 2})
    save(own, tmp_path / "saved")
    told = recipe(tmp_path / "saved", tmp_path / "out", *changes)
    assert not finished(told)
    loaded = vlalign.load(quantize(told))
    kept = read(tmp_path / "out")
    assert finished(told) and kept["bits"] == 3 and kept["layers"] == 21 and kept["method"] == "gptq"
    assert len(kept["pairs"]) == 3 and "model" not in kept and "out" not in kept
    model = plain(str(tmp_path / "saved"))
    assert model.adapters is None and model.spec.lora is None
    found, pairs, error = changed(model, told)
    assert error == kept["error"] and 0 < error < 1
    assert pairs == kept["pairs"]
    for name, each in found.items():
        weight = loaded.model.net.get_submodule(name).weight
        assert torch.equal(weight, each.weight) and weight.dtype == getattr(torch, dtype)
        for row in weight.unflatten(1, (-1, told.group or weight.shape[1])).flatten(0, 1):
            assert len(row.unique()) <= 8
    assert loaded.score(QUERIES, CANDIDATES)[0].isfinite().all()


def test_a_loaded_model_is_plain_again_and_can_be_saved(saved, tmp_path):
    out = quantize(recipe(saved, tmp_path / "out"))
    model = plain(str(out))
    assert not hasattr(model.net.config, "quantization_config")
    save(model, tmp_path / "again")
    torch.testing.assert_close(scores(plain(str(tmp_path / "again"))), scores(model), atol=1e-6, rtol=0)
    learning = MODELS.decode(
        {"name": "llm_reranker", "id": str(out / "model"), "prompt": "qwen3_reranker", "lora": {"rank": 2}}
    )
    torch.testing.assert_close(scores(learning.build()), scores(model), atol=1e-5, rtol=0)


def test_transformers_alone_reads_it_and_only_few_bits_are_on_disk(saved, tmp_path):
    from transformers import AutoModelForCausalLM

    out = quantize(recipe(saved, tmp_path / "out"))
    net = AutoModelForCausalLM.from_pretrained(out / "model").eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(net(ids).logits, plain(str(out)).net(ids).logits, atol=1e-4, rtol=1e-5)
    state = load_file(out / "model" / "model.safetensors")
    packed = state["model.layers.0.mlp.down_proj.weight_packed"]
    assert packed.dtype == torch.int32 and packed.shape == (32, 64 * 3 // 32)
    assert not any(name.startswith("model.layers") and name.endswith("_proj.weight") for name in state)
    assert state["lm_head.weight"].dtype == torch.float32
    assert {path.suffix for path in (out / "model").rglob("*") if path.is_file()} <= {
        ".json",
        ".safetensors",
        ".jinja",
    }


def test_it_runs_twice_alike_and_a_finished_one_is_left(saved, tmp_path):
    told = recipe(saved, tmp_path / "out")
    first = load_file(quantize(told) / "model" / "model.safetensors")
    other = load_file(quantize(recipe(saved, tmp_path / "other")) / "model" / "model.safetensors")
    assert all(torch.equal(first[name], other[name]) for name in first)
    before = (tmp_path / "out" / "model" / "model.safetensors").stat().st_mtime_ns
    quantize(told)
    assert (tmp_path / "out" / "model" / "model.safetensors").stat().st_mtime_ns == before
    third = load_file(quantize(recipe(saved, tmp_path / "third", "seed=1")) / "model" / "model.safetensors")
    assert any(not torch.equal(first[name], third[name]) for name in first)
    with pytest.raises(RecipeError, match="holds a run of another recipe"):
        quantize(recipe(saved, tmp_path / "out", "bits=4"))


def test_pairs_are_of_distinct_rows_and_as_many_as_there_are(saved, tmp_path):
    model = plain(str(saved))
    few, all_ = (drawn(model, recipe(saved, tmp_path / "out", f"samples={n}")) for n in (16, 1000))
    assert len(few) == 16 and [*all_][:16] == [*few] and len(all_) == 40
    assert len({name.split()[0] for name in all_}) == 40
    other = drawn(model, recipe(saved, tmp_path / "out", "seed=5"))
    assert [*other] != [*few]


def test_weighted_gptq_with_equal_scores_is_gptq(saved, tmp_path):
    states = []
    for importance in ("null", "{name: first_tokens, share: 1.0}"):
        model = plain(str(saved))
        changed(model, recipe(saved, tmp_path / "out", f"importance={importance}"))
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_what_sees_has_its_language_part_in_few_bits(tmp_path):
    save(seeing(tmp_path / "llava", "llava"), tmp_path / "saved")
    out = quantize(recipe(tmp_path / "saved", tmp_path / "out", "rotate=false"))
    names = {name for name in load_file(out / "model" / "model.safetensors") if name.endswith("packed")}
    assert names and all("language_model.layers" in name for name in names)
    model, before = plain(str(out)), plain(str(tmp_path / "saved"))
    assert torch.equal(model.net.lm_head.weight, before.net.lm_head.weight)
    assert scores(model).isfinite().all() and not torch.equal(scores(model), scores(before))


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_a_cross_encoder_falls_out_of_the_same_code(family, tmp_path):
    own = MODELS.decode(
        {"name": "cross_encoder", "id": str(folder_of(tmp_path / "plain", family)), "length": 64}
    )
    save(own.build(), tmp_path / "saved")
    told = recipe(tmp_path / "saved", tmp_path / "out", "rotate=false", "bits=4")
    out = quantize(told)
    model = plain(str(tmp_path / "saved"))
    changed(model, told)
    torch.testing.assert_close(scores(plain(str(out))), scores(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", [(), ROUND])
def test_weights_that_are_no_numbers_are_refused_and_a_layer_of_zeros_is_not(method, saved, tmp_path):
    model = plain(str(saved))
    writer = model.net.model.layers[1].mlp.down_proj
    torch.nn.init.zeros_(writer.weight)
    save(model, tmp_path / "zeros")
    assert finished(told := recipe(tmp_path / "zeros", tmp_path / "out", *method)) is False
    assert not plain(str(quantize(told))).net.model.layers[1].mlp.down_proj.weight.any()
    writer.weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"weights of model\.layers\.1\.mlp\.down_proj are not finite"):
        changed(model, told)


def test_a_captioner_is_no_reranker(tmp_path):
    spec = {"name": "text_lm", "id": "recipes/tiny/causal", "pretrained": False}
    save(MODELS.decode(spec).build(), tmp_path / "saved")
    with pytest.raises(UserError, match="is no reranker, and nothing else is put into few bits"):
        quantize(recipe(tmp_path / "saved", tmp_path / "out", *ROUND))


def test_what_cannot_be_is_refused(saved, tmp_path, monkeypatch):
    with pytest.raises(
        UserError, match="group: .*q_proj has 32 columns, which groups of 7 do not share; choose"
    ):
        quantize(recipe(saved, tmp_path / "a", "group=7"))
    with pytest.raises(UserError, match="model: recipes/tiny/open_clip is no reranker"):
        quantize(recipe("recipes/tiny/open_clip", tmp_path / "b"))
    with pytest.raises(UserError, match="there is no such folder|neither a folder nor a model"):
        quantize(recipe(tmp_path / "nothing" / "there" / "at" / "all", tmp_path / "c"))
    monkeypatch.setattr("vlalign.infer.quantize.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match="compressed-tensors is not installed, which packs weights; pip install"
    ):
        quantize(recipe(saved, tmp_path / "d"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["bits=1"], "bits: must be from 2 to 8, got 1"),
        (["bits=9"], "bits: must be from 2 to 8, got 9"),
        (["group=0"], "group: must be >= 1, got 0"),
        (["samples=0"], "samples: must be >= 1, got 0"),
        (["damping=0"], "damping: must be above 0 and below 1, got 0"),
        (["low=1"], "low: must be >= 0 and below high, got 1"),
        (["power=0"], "power: must be above 0, got 0"),
        (["seed=-1"], "seed: must be >= 0"),
        (["method=round"], "method: round looks at no rows; leave data and importance out, or take gptq"),
        (["data=null"], "data is not set, and gptq looks at rows; name queries with candidates"),
        (["data={name: folder, path: x}"], "data: must be queries with candidates"),
        (["importance=attention"], "Did you mean 'attention_concentration'"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(changes, told, tmp_path):
    with pytest.raises(RecipeError, match=told.replace("(", r"\(")):
        recipe("model", tmp_path / "out", *changes)


def test_the_command_tells_what_it_made(saved, tmp_path):
    from typer.testing import CliRunner

    from vlalign.cli.main import app

    told = ["quantize", "recipes/tiny/rsq.yaml", f"model={saved}", f"out={tmp_path / 'out'}", "samples=2"]
    first = CliRunner().invoke(app, told)
    assert first.exit_code == 0 and "21 weights in 3 bits, by 2 pairs" in first.output
    again = CliRunner().invoke(app, told)
    assert "is finished; delete it to make it again" in again.output
    assert json.loads((tmp_path / "out" / "model" / "quantization.json").read_text())["low"] == 0.01
