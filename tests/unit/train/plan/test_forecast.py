"""Forecasts against each other, against sums done by hand, and against a process that is measured."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from vlalign.recipe.decode import load_recipe
from vlalign.recipe.read import read
from vlalign.train.plan.devices import DEVICES
from vlalign.train.plan.forecast import advice, forecast
from vlalign.train.plan.strategies import BUCKET, launched
from vlalign.types import RecipeError

CLIP, LIT, LORA = "recipes/tiny/clip.yaml", "recipes/tiny/lit.yaml", "recipes/align/lora.yaml"


@cache
def told(path=CLIP, *overrides, processes=1, on="h100", by="ddp"):
    """Data that is nowhere: a forecast does not look for it."""
    absent = "data.train={name: jsonl, path: nowhere.jsonl}"
    return forecast(load_recipe(path, [absent, *overrides], verb="train"), processes, on, by)


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux's peak of resident memory"
)
def test_it_is_near_what_a_fresh_process_takes(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend("scripts")
    from check_plan import GIVING_BACK, WARM, training
    from measure import peak

    for name, value in GIVING_BACK.items():
        monkeypatch.setenv(name, value)
    overrides, note = ["data.batch=256", "data.chunk=null"], str(tmp_path / "seconds")
    measured = peak(training, CLIP, overrides, note, warm=(*WARM, note)) * 2**20
    assert told(CLIP, *overrides, on="cpu").peak == pytest.approx(measured, rel=0.15)


def test_weights_gradients_and_states_are_those_of_adamw():
    one, many = told(), told(processes=4)
    assert one.memory["weights"] == pytest.approx(4 * one.parameters, rel=0.01)
    assert one.memory["optimizer"] == pytest.approx(8 * one.learned, rel=0.01)
    assert many.most["gradients"] == pytest.approx(2 * one.most["gradients"], rel=0.01)  # DDP's buckets
    assert one.sent == {}


def test_what_crosses_processes_is_what_the_sums_say():
    many = told(CLIP, "data.batch=4096", "data.chunk=null", processes=4)
    width = 4096 * 32 * 4  # bytes of everybody's keys
    assert many.sent["gradients"] == pytest.approx(2 * 4 * many.learned * 3 / 4, rel=1e-3)
    assert many.sent["gathered embeddings"] == 2 * width * 3 // 4  # the keys, and their gradient back
    assert 0 < many.sent["column statistics, fields"] < width


def test_zero_divides_what_its_stage_says():
    stages = [told(CLIP, "data.chunk=null", processes=4, by=f"zero{stage}") for stage in (1, 2, 3)]
    for each in stages:
        assert each.memory["optimizer"] == pytest.approx(3 * 4 * each.learned / 4, rel=0.01)
        assert each.sent["gradients"] <= 2 * 2 * each.learned
    assert [round(each.most["gradients"] / (2 * each.learned), 2) for each in stages] == [1.0, 0.25, 0.25]
    assert stages[1].memory["weights"] == pytest.approx(2 * each.parameters, rel=0.01)
    assert stages[2].memory["weights"] == pytest.approx(2.5 * each.parameters, rel=0.01)  # all and its part
    assert stages[1].memory["temporary"] > 2 * BUCKET
    assert "ZeRO-3 parameters" in stages[2].sent


def test_gradients_of_several_chunks_are_whole_until_they_are_sent():
    cut = told(CLIP, "data.chunk=4", processes=4, by="zero2")
    assert cut.most["gradients"] == pytest.approx(2 * cut.learned, rel=0.01)


def test_smaller_chunks_take_less_memory_and_a_forward_more():
    whole, cut = (
        told(CLIP, "data.chunk=null", "data.batch=2048"),
        told(CLIP, "data.chunk=256", "data.batch=2048"),
    )
    assert cut.memory["activations"] < whole.memory["activations"] / 4
    assert cut.flops == pytest.approx(4 / 3 * whole.flops, rel=0.05)


def test_half_precision_and_checkpoints_take_less():
    plain = told(CLIP, "data.chunk=null", "data.batch=1024", "precision=fp32")
    half = told(CLIP, "data.chunk=null", "data.batch=1024")
    again = told(CLIP, "data.chunk=null", "data.batch=1024", "precision=fp32", "gradient_checkpointing=true")
    assert half.precision == "bf16" and half.memory["activations"] < 0.8 * plain.memory["activations"]
    assert again.memory["activations"] < 0.6 * plain.memory["activations"] and again.flops > plain.flops


def test_features_that_are_kept_need_no_tower():
    kept, run = told(LIT), told(LIT, "feature_cache=false")
    assert kept.memory["weights"] == run.memory["weights"] and kept.flops < run.flops
    assert kept.memory["inputs"] < run.memory["inputs"]
    kept, run = (
        told(LIT, f"feature_cache={keep}", processes=2, by="zero3").sent["ZeRO-3 parameters"]
        for keep in ("true", "false")
    )
    assert kept < run


def test_weights_are_not_fetched_and_any_task_can_be_planned():
    """Without a network: the recipe names pretrained weights, and a model to start from that is not here."""
    weighed = ["task.terms.0.weighters=[focal]", "task.selectors=[{name: false_negative, margin: 0.1}]"]
    lora = told(LORA, "data.batch=16", "data.chunk=8", "ema=0.99", "init=nowhere", *weighed, processes=2)
    assert lora.learned < lora.parameters / 20
    assert lora.memory["averaged weights"] == pytest.approx(4 * lora.learned, rel=0.01)


@pytest.mark.parametrize("name", ["anchor", "gcool", "groco", "mann_whitney", "mcl", "s3a", "uncertainty"])
def test_what_a_method_needs_besides_can_be_planned(name):
    """Frozen vectors, heads, a side that does not learn, shapes that depend on contents."""
    plan = told(f"recipes/tiny/{name}.yaml", "data.chunk=null", "data.batch=128", processes=2)
    assert plan.flops > 0 and plan.most["score table"] > 0


def test_passes_that_a_method_adds_are_counted():
    whole = ["data.chunk=null"]
    clip, byol, lora, storm = (
        told(f"recipes/tiny/{name}.yaml", *whole) for name in ("clip", "byolip", "lora", "storm")
    )
    assert 1.25 < byol.flops / clip.flops < 1.5  # one forward more than a forward and a backward of two
    assert 2.5 < storm.flops / lora.flops < 4
    whole_too, same = (
        told("recipes/tiny/s3a.yaml", *whole, f"data.augment.teacher={how}") for how in ("whole", "same")
    )
    assert whole_too.memory["inputs"] > same.memory["inputs"]
    of_tower, of_model = (
        told("recipes/tiny/cwcl.yaml", *whole, f"data.annotate={{image_features: {how}}}")
        for how in ("{name: features, side: image}", "{name: features, side: image, model: nowhere}")
    )
    towers = 256 - 32  # numbers of a row, in the fields of both sides
    assert of_tower.memory["inputs"] - of_model.memory["inputs"] == 2 * 4 * 32 * towers


def test_several_texts_of_a_row_are_read():
    one, four = told(CLIP, "data.chunk=null"), told(CLIP, "data.chunk=null", "task.attributes={most: 3}")
    assert 1.5 < four.flops / one.flops < 4 and four.memory["activations"] > 1.5 * one.memory["activations"]


def test_what_it_advises_helps():
    small = replace(DEVICES["l4"], memory=600 * 2**20)
    many = told(CLIP, "data.batch=2048", "data.chunk=null", on="l4")
    tight = replace(many, device=small)
    assert many.fits and advice(many) == [] and not tight.fits
    change = advice(tight)[0].partition(":")[0]
    assert change.startswith("data.chunk=")
    assert replace(told(CLIP, "data.batch=2048", change, on="l4"), device=small).fits


@pytest.mark.parametrize("path", sorted(Path("recipes/launch").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_launch_file_can_be_planned_but_for_what_is_kept_elsewhere(path):
    if path.stem.endswith("_offload"):
        with pytest.raises(RecipeError, match="what is kept outside the device is not planned"):
            launched(read(path).value, str(path))
        return
    by, count = launched(read(path).value, str(path))
    assert by == (path.stem if path.stem.startswith("zero") else "ddp") and count >= 1


def test_what_cannot_be_planned_is_refused():
    with pytest.raises(RecipeError, match="data.batch: 32 rows cannot be shared by 5 processes"):
        told(processes=5)
    with pytest.raises(RecipeError, match="offload_optimizer_device"):
        launched(
            {"distributed_type": "DEEPSPEED", "deepspeed_config": {"offload_optimizer_device": "cpu"}}, "x"
        )
    with pytest.raises(RecipeError, match="FSDP"):
        launched({"distributed_type": "FSDP"}, "x")
    with pytest.raises(RecipeError, match="x: is no launch file, it has no distributed_type"):
        launched({"verb": "train"}, "x")
    with pytest.raises(RecipeError, match="ema: averaged weights are not kept under DeepSpeed"):
        told(CLIP, "ema=0.99", processes=2, by="zero2")
    with pytest.raises(RecipeError, match="processes: must be >= 1, got 0"):
        told(processes=0)
