"""A launch that asks for something is given that, or refused with a sentence."""

from types import SimpleNamespace

import accelerate
import pytest

from tests.unit.train.tiny import recipe
from vlalign.train.peers import patience
from vlalign.train.strategy import accelerator
from vlalign.train.zero import check_stage
from vlalign.types import RecipeError

LAUNCHES = {
    "FSDP": ({"ACCELERATE_USE_FSDP": "true"}, "asks for FSDP, which is not supported; use .*zero3.yaml"),
    "Megatron": ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "asks for MEGATRON_LM"),
    "meshes": ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "asks for PARALLELISM_CONFIG"),
    "several processes of which one starts": (
        {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"},
        "several processes, and accelerate started one",
    ),
    "another precision": (
        {"ACCELERATE_MIXED_PRECISION": "fp16"},
        "mixed_precision: fp16 .* fp32 by the recipe",
    ),
}
GIVEN = {
    "fewer processes": ({"WORLD_SIZE": "2"}, "MULTI_CPU", 1),
    "processes that share nothing": ({"WORLD_SIZE": "2"}, "NO", 2),
    "no DeepSpeed": ({"WORLD_SIZE": "2", "ACCELERATE_USE_DEEPSPEED": "true"}, "MULTI_CPU", 2),
    "DeepSpeed unasked": ({"WORLD_SIZE": "2"}, "DEEPSPEED", 2),
}


@pytest.mark.parametrize(("environment", "sentence"), LAUNCHES.values(), ids=LAUNCHES)
def test_what_cannot_be_given_is_refused(tmp_path, monkeypatch, environment, sentence):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match=sentence):
        accelerator(recipe(tmp_path, precision="fp32"), patience())


@pytest.mark.parametrize(("environment", "kind", "world"), GIVEN.values(), ids=GIVEN)
def test_what_was_not_given_is_refused(tmp_path, monkeypatch, environment, kind, world):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    kind = accelerate.DistributedType(kind)
    made = SimpleNamespace(distributed_type=kind, num_processes=world)
    monkeypatch.setattr(accelerate, "Accelerator", lambda **_: made)
    with pytest.raises(
        RecipeError, match=f"2 processes were started.* sees {world} of the kind {kind.value}"
    ):
        accelerator(recipe(tmp_path), patience())


@pytest.mark.parametrize(
    ("times", "optimizer", "sentence"),
    [
        (4, SimpleNamespace(_coalesce_grad_reduction=False), "accumulation_steps"),
        (1, object(), "does not sum"),
    ],
)
def test_settings_of_deepspeed_that_are_not_exact_are_refused(times, optimizer, sentence):
    engine = SimpleNamespace(gradient_accumulation_steps=lambda: times, optimizer=optimizer)
    with pytest.raises(RecipeError, match=sentence):
        check_stage(engine)
