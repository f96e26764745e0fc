"""Compiled models: the loss, gradients, random numbers and names of weights of plain ones."""

import shutil
from dataclasses import replace

import pytest
import torch
from torch._inductor import config

from tests.unit.models.conftest import OPEN_CLIP, open_clip_folder
from tests.unit.train.test_step import OneProcess, close
from tests.unit.train.tiny import recipe
from vlalign.models.encoders.open_clip import OpenClip
from vlalign.models.lora import Lora
from vlalign.models.tower import Adaptation
from vlalign.train.model import build
from vlalign.train.step import cached
from vlalign.types import Batch, RecipeError

SMALL = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}


def batch(start: int, rows: int = 4, length: int = 9) -> Batch:
    """Random pixels and tokens, the last of which ends a text."""
    draw = torch.Generator().manual_seed(start)
    ids = torch.randint(1, 400, (rows, length), generator=draw)
    ids[:, -1] = 49407
    fields = {"row": torch.arange(start, start + rows)}
    return {
        "query": {"pixels": torch.randn(rows, 3, 32, 32, generator=draw)}, "key": {"input_ids": ids},
        "query_fields": fields, "key_fields": fields, "ids": [str(row) for row in range(rows)],
    }  # fmt: skip


def plan(folder, **changes):
    """One block a tower, patches and LoRA's inputs dropped at random, activations recomputed."""
    text = {**OPEN_CLIP["text_cfg"], "layers": 1}
    id = open_clip_folder(folder / "open_clip", OPEN_CLIP | {"vision_cfg": SMALL, "text_cfg": text})
    image = Adaptation(patch_dropout=0.5, lora=Lora(dropout=0.3))
    return recipe(folder, model=OpenClip(id=id, image=image), gradient_checkpointing=True, **changes)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_chunks_learn_as_plain_ones_do(tmp_path):
    plain, chunks = plan(tmp_path), [batch(0), batch(10)]
    found = []
    for each in (plain, replace(plain, compile=True)):
        torch.manual_seed(0)
        model = build(each)
        torch.manual_seed(1)
        loss = cached(OneProcess(), model, chunks, each.task, step=1, total=9, divisor=8.0)
        gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        found.append((loss.total, gradients, list(model.state_dict())))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-6, atol=1e-5)
    close(found[0][1], found[1][1], 1e-5)
    assert found[0][2] == found[1][2]


def test_a_machine_that_cannot_compile_is_told_before_training(tmp_path):
    torch.compiler.reset()  # else what was compiled before is found again
    with (
        config.patch({"cpp.cxx": (None, "/nowhere/g++")}),
        pytest.raises(RecipeError, match="compile: torch.compile fails.*compile=false"),
    ):
        build(plan(tmp_path, compile=True))
