"""A captioner under DDP and ZeRO on two gloo processes, whose captions are unlike in length: as on one."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vlalign
from tests.dist.launch import forked
from tests.language_models import language_model
from tests.multimodal_models import picture
from tests.rerank_traps.test_training import logged

WORDS = ["a red car", "a cat", "a small cat near a tree, with a dog in the house", "no", "the dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("captioners")
    rows = []
    for index in range(15):
        picture(index).save(place / f"{index}.png")
        captions = [WORDS[index % 5] + " yes" * (index % 3), WORDS[index % 4]]
        rows.append(json.dumps({"id": f"r{index}", "image": f"{index}.png", "caption": captions}))
    (place / "rows.jsonl").write_text("\n".join(rows) + "\n")
    language = str(language_model(place / "lm", "llama"))
    made = {"language": language, "tower": "test_efficientnet", "image_size": 64}
    told = {
        "verb": "train",
        "out": "out",
        "model": {"name": "captioner", "made": made, "length": 100},
        "data": {
            "train": {"name": "jsonl", "path": str(place / "rows.jsonl"), "id": "id"},
            "batch": 6,
            "chunk": 2,
        },
        "task": {"name": "generate", "token_terms": [{"objective": "cross_entropy"}]},
        "steps": 4,
        "optim": {"name": "adamw", "lr": 1e-2, "weight_decay": 0.0, "clip": 1.0},
        "schedule": {"name": "cosine", "warmup": 0.0},
        "precision": "fp32",
        "log": {"every": 1, "trackers": []},
        "checkpoint": {"every": 2, "keep": 2},
    }
    (place / "r.yaml").write_text(json.dumps(told))
    forked(1, "tests.dist.rerank_run", str(place), "one")
    return place


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "zero3"])
def test_two_processes_end_where_one_does(folder, how):
    """The mean is over the tokens of all processes, however many each has."""
    out, one = folder / how, folder / "one"
    forked(2, "tests.dist.rerank_run", str(folder), how, by=how)
    for wanted, found in zip(logged(one), logged(out), strict=True):
        for name in ("loss", "norm", "lr", "samples_seen", "bad_rows"):
            assert found[name] == pytest.approx(wanted[name], rel=1e-4), (wanted["step"], name)
    wanted, found = (load_file(each / "model" / "model.safetensors") for each in (one, out))
    assert wanted.keys() == found.keys()
    assert max(float((wanted[name].float() - found[name].float()).abs().max()) for name in wanted) < 5e-5
    pictures = [folder / f"{index}.png" for index in range(3)]
    mine, other = (torch.cat(vlalign.load(each).losses(pictures, WORDS[:3])) for each in (out, one))
    torch.testing.assert_close(mine, other, atol=1e-4, rtol=0)
