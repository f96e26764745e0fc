"""Methods x direct, cached x processes x DDP, ZeRO-1, -2, -3: the numbers of one process with all rows.

A few objectives meet every strategy; every registered method meets two processes under DDP.
"""

import json
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.dist.launch import STRATEGIES, forked
from tests.dist.matrix import CONFIG, CORE, HOW, KINDS
from tests.methods import tasks
from tests.unit.train.tiny import pictures

pytestmark = pytest.mark.slow
# A bias is the same for every score of a row.
UNREAD = {"dcl/bias", "info_nce/bias", "selector-communal/bias"}
Found = dict[str, Tensor]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("matrix")
    pictures(folder / "data")
    (folder / "model").mkdir()
    (folder / "model" / "open_clip_config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return folder


def ran(place: Path, processes: int, by: str, precision: str, which: str = "core") -> Found:
    out = f"{by}{processes}"
    forked(processes, "tests.dist.matrix", str(place), out, precision, which, by=by)
    found = load_file(place / f"{which}_{out}_{precision}.safetensors")
    given = {int(x) for x in numbers(found, "strategy").values()}
    assert given == {KINDS.index(by)}  # else a ZeRO that fell back to DDP would pass for one
    return found


@pytest.fixture(scope="module")
def one(place) -> Found:
    return ran(place, 1, "one", "fp32")


def numbers(found: Found, *kinds: str) -> Found:
    return {name: x for name, x in found.items() if any(f"/{kind}" in name for kind in kinds)}


def wanted(one: Found, name: str) -> Tensor:
    """Of one process that keeps all rows in one graph."""
    return one[name.replace("/cached/", "/direct/")]


def assert_equal(found: Found, one: Found, bound: float, *kinds: str) -> None:
    assert found.keys() == one.keys()
    for name, x in numbers(found, "gradient", "learned", *kinds).items():
        reference = wanted(one, name)
        worst = (x - reference).abs().max()
        assert worst <= bound * max(1.0, float(reference.abs().max())), (name, worst)


def test_the_bound_says_something_about_every_gradient(one):
    tops = {name: float(x.abs().max()) for name, x in numbers(one, "gradient").items()}
    small = {f"{name.split('/')[0]}/{name.split('/')[-1]}" for name, top in tops.items() if top < 1e-3}
    assert small == UNREAD
    assert {tuple(name.split("/")[:2]) for name in one} == set(product(CORE, HOW))
    assert_equal(one, one, 1e-6, "loss")


@pytest.mark.parametrize(("processes", "by"), [*((2, by) for by in STRATEGIES), (3, "ddp"), (3, "zero3")])
def test_processes_learn_what_one_learns(place, one, by, processes):
    found = ran(place, processes, by, "fp32")
    assert_equal(found, one, 1e-6, "loss")
    sums = {name: int(x) for name, x in numbers(found, "reductions").items()}
    assert all(count > 0 for count in sums.values())
    for name, count in sums.items():  # a step of several chunks sends its gradients once, as one of one does
        assert count == sums[name.replace("/cached/", "/direct/")], name


def test_two_processes_learn_what_one_learns_by_every_method(place):
    found, one = (ran(place, n, by, "fp64", "every") for n, by in ((2, "ddp"), (1, "one")))
    assert {tuple(name.split("/")[:2]) for name in one} == set(product(tasks(), HOW))
    for method, how, step in product(tasks(), HOW, "12"):
        own = [x for name, x in one.items() if name.startswith(f"{method}/{how}/{step}/gradient/")]
        tops = [float(x.abs().max()) for x in own]
        assert max(tops) > 1e-3, (method, how, step)  # else the bound would say nothing
    heads = {name.split("/gradient/")[1] for name in one if "/gradient/heads." in name}
    for head in heads:  # a head that nothing teaches would be equal too
        assert any(x.any() for name, x in one.items() if name.endswith(f"/2/gradient/{head}")), head
    assert_equal(found, one, 1e-12)


def test_in_float64_they_differ_by_rounding_alone(place):
    assert_equal(ran(place, 3, "ddp", "fp64"), ran(place, 1, "one", "fp64"), 1e-12)


@pytest.mark.parametrize("by", STRATEGIES)
def test_bf16_stays_near_fp32(place, one, by):
    found = ran(place, 2, by, "bf16")
    for objective, how, step in product(CORE, HOW, "12"):
        names = list(numbers(found, f"{step}/gradient"))
        own = [name for name in names if name.startswith(f"{objective}/{how}/")]
        x, reference = (
            torch.cat([f(name).flatten() for name in own]) for f in (found.get, partial(wanted, one))
        )
        assert (x - reference).norm() / reference.norm() < 0.1, (objective, how, step)
    for name, x in numbers(found, "learned").items():  # DeepSpeed starts from weights rounded to bf16
        assert (x - wanted(one, name)).abs().max() < 2e-2, name
