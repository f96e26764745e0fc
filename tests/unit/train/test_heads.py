"""What methods learn besides the model: it learns, goes on after a resume to the bit, and is not saved."""

import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.methods import component
from tests.unit.train.test_loop import log, raises_at, same, weights
from tests.unit.train.tiny import recipe
from vlalign.models.heads import MethodHead
from vlalign.objectives.info_nce import InfoNCE
from vlalign.registry import EMBEDDING_OBJECTIVES, WEIGHTERS
from vlalign.supervision.targets.identity import Identity
from vlalign.tasks.align import Align
from vlalign.tasks.terms import EmbeddingTerm, Term
from vlalign.train.loop import train

WEIGHING = tuple(component(WEIGHTERS, name) for name in ("storm", "uncertainty"))
COMPANIONS = [component(EMBEDDING_OBJECTIVES, name) for name in ("byol", "simsiam")]
LEARNING = Align(
    targets=Identity(),
    terms=(Term(objective=InfoNCE(), weighters=WEIGHING),),
    embedding_terms=tuple(EmbeddingTerm(objective=each, scale=0.2) for each in COMPANIONS),
)


def test_heads_and_averages_go_on_to_the_bit_and_stay_out_of_the_model(tmp_path, monkeypatch):
    settings = {"task": LEARNING, "ema": 0.9, "steps": 5}
    whole = train(recipe(tmp_path, out=str(tmp_path / "whole"), **settings))
    cut = recipe(tmp_path, **settings)
    with monkeypatch.context() as patch:
        raises_at(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit):
            train(cut)
    out = train(cut)
    assert log(out) == log(whole)
    assert {"info_nce", "info_nce-uncertainty", "byol", "simsiam"} == set(log(out)[-1]["parts"])
    for file in ("model.safetensors", "average.safetensors"):
        found, wanted = (weights(each, step=5, file=file) for each in (out, whole))
        assert same(found, wanted) and any(name.startswith("heads.") for name in found)
    first = weights(out, step=3)
    heads = [name for name in first if name.startswith("heads.")]
    last = weights(out, step=5)
    assert all(not torch.equal(first[name], last[name]) for name in heads)  # each learns
    saved = load_file(out / "model" / "model.safetensors")
    assert saved and not any(name.startswith("heads.") for name in saved)


def test_a_head_publishes_its_parameters_by_their_own_names():
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    head = MethodHead(module)
    assert {name: x.shape for name, x in head().items()} == {
        name: p.shape for name, p in module.named_parameters()
    }
    sum(x.sum() for x in head().values()).backward()
    assert all(p.grad is not None for p in module.parameters())
    assert head.by_extras("storm").keys() == {f"storm.{name}" for name, _ in module.named_parameters()}


def test_a_head_with_buffers_is_refused():
    with pytest.raises(ValueError, match="parameters only"):
        MethodHead(nn.BatchNorm1d(2))
