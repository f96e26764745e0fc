"""A multimodal reranker, its tower frozen, under ZeRO-3 on two gloo processes, in memory and offloaded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vlalign
from tests.dist.launch import forked
from tests.multimodal_models import multimodal_model, picture
from tests.rerank_traps.test_training import logged
from vlalign.models.rerank_scorer import RerankScorer
from vlalign.registry import MODELS
from vlalign.types import Item

STEPS = 6
MODEL = {
    "name": "mllm_reranker",
    "prompt": "qwen3_vl_reranker",
    "length": 256,
    "lora": {"rank": 2, "alpha": 4.0},
    "lists": {"length": 512},
}
WORDS = ["red", "green", "blue", "cat", "dog", "car", "tree", "house"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Queries with a picture, with several candidates that have one, and of words alone."""
    place = tmp_path_factory.mktemp("multimodal")
    for index in range(4):
        picture(index).save(place / f"{index}.png")
    rows = []
    for index, word in enumerate(WORDS * 2):
        others = [each for each in WORDS if each != word][:3]
        row = {"id": f"q{index}", "query": {"text": f"a {word}"}}
        row["candidates"] = [{"text": each, "label": int(each == word)} for each in (word, *others)]
        if index % 3 == 0:
            row["query"]["image"] = f"{index % 4}.png"
        if index % 3 == 1:
            row["candidates"][0]["image"] = [f"{index % 4}.png", "2.png"]
        rows.append(json.dumps(row))
    (place / "rows.jsonl").write_text("\n".join(rows) + "\n")
    model = MODEL | {"id": str(multimodal_model(place / "vl", "qwen3_vl"))}
    data = {
        "train": {"name": "candidates", "path": str(place / "rows.jsonl"), "positives": 1, "negatives": 2}
    }
    told = {
        "verb": "train",
        "out": "out",
        "model": model,
        "data": data | {"batch": 4, "chunk": 1},
        "task": {
            "name": "rerank",
            "answer_terms": [{"objective": "yes_no"}],
            "terms": [{"objective": "info_nce", "of": "numbers"}],
        },
        "steps": STEPS,
        "optim": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.0, "clip": 1.0},
        "schedule": {"name": "cosine", "warmup": 0.0},
        "precision": "fp32",
        "log": {"every": 1, "trackers": []},
        "checkpoint": {"every": 2, "keep": 2},
    }
    (place / "r.yaml").write_text(json.dumps(told))
    forked(1, "tests.dist.multimodal_run", str(place), "one", "0")
    return place


@pytest.mark.slow
@pytest.mark.parametrize("how", ["zero3", "zero3_offload"])
def test_16_it_is_killed_goes_on_and_ends_where_one_process_does(folder, how):
    """SIGKILL after the third of six steps; the adapter that is saved scores as the merged weights do."""
    if how == "zero3_offload":  # whose optimizer is compiled where it is first used, which takes minutes
        compiles = "from deepspeed.ops.op_builder import CPUAdamBuilder; CPUAdamBuilder().load()"
        subprocess.run([sys.executable, "-c", compiles], check=True, capture_output=True)
    out, one = folder / how, folder / "one"
    forked(2, "tests.dist.multimodal_run", str(folder), how, "3", by=how, code=1)
    assert not (out / "model").exists() and (out / "step_00000002").is_dir()
    said = forked(2, "tests.dist.multimodal_run", str(folder), how, "0", by=how)
    assert "step_00000002, 2 of 6 steps done" in said
    for wanted, found in zip(logged(one), logged(out), strict=True):
        for name in ("loss", "norm", "lr", "samples_seen", "bad_rows"):
            assert found[name] == pytest.approx(wanted[name], rel=1e-3), (wanted["step"], name)
    wanted, found = (load_file(each / "model" / "model.safetensors") for each in (one, out))
    base = load_file(folder / "vl" / "model.safetensors")
    assert wanted.keys() == found.keys()
    assert max(float((wanted[name] - found[name]).abs().max()) for name in wanted) < 2e-5
    moved = [name for name in base if name in found and not torch.equal(base[name], found[name])]
    assert moved and all("language_model" in name for name in moved)
    pictures = [
        Item(text="cat", images=(folder / "1.png", folder / "2.png")),
        Item(images=(folder / "0.png",)),
    ]
    [scores] = vlalign.load(out).score(["a cat"], [pictures])
    [expected] = vlalign.load(one).score(["a cat"], [pictures])
    torch.testing.assert_close(scores, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(by_the_adapter(folder, out, pictures), scores, atol=1e-5, rtol=0)


@torch.no_grad()
def by_the_adapter(folder: Path, out: Path, pictures: list[Item]) -> torch.Tensor:
    """Scores of the base with PEFT's adapter upon it."""
    from peft import PeftModel

    from vlalign.infer.load import picture as opened

    model = MODELS.decode(MODEL | {"id": str(folder / "vl"), "lora": None}).build()
    PeftModel.from_pretrained(model.net, out / "model" / "adapter").merge_and_unload()
    return RerankScorer(model, opening=opened).score(["a cat"], [pictures])[0]
