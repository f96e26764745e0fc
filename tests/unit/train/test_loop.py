"""Whole runs of a tiny recipe: equal, resumed, interrupted, finished, refused."""

import json
import os
import signal
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.train.tiny import TinyPair, TinyTower, recipe
from vlalign.data.sources.jsonl import JsonLines
from vlalign.evals.evaluators.retrieval import Retrieval
from vlalign.evals.report.log import read_lines
from vlalign.models.weights import initialise
from vlalign.recipe.decode import load_recipe
from vlalign.recipe.schemas import Augment, Checkpoint, Log
from vlalign.specs import EvalRow
from vlalign.tasks.align import Align
from vlalign.train.diverged import Diverged
from vlalign.train.loop import train
from vlalign.train.run import Run
from vlalign.train.state import learned
from vlalign.types import BadRow, DataError, Loss, RecipeError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLALIGN_CACHE", str(tmp_path / "cache"))


def log(out: Path) -> list[dict]:
    return [{**line, "time": None} for line in read_lines(out / "log.jsonl")]


def steps(out: Path) -> list[dict]:
    return [line for line in log(out) if "loss" in line]


def weights(out: Path, step: int = 12, file: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(out / f"step_{step:08d}" / file)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(left[name].cpu().equal(right[name].cpu()) for name in left)


def raises_at(monkeypatch, step: int, act) -> None:
    """Let `act` happen when a step is done."""
    after = Run.after

    def then(run, number, *rest):
        after(run, number, *rest)
        if number == step:
            act()

    monkeypatch.setattr(Run, "after", then)


@dataclass(frozen=True, kw_only=True)
class Norm:
    """An evaluator: the norm of some embeddings' sum, and a random number."""

    every: int = 0

    def __call__(self, model, limits):
        value = float(model.encode_text(["a red cat", "a dog"]).sum(0).norm())
        metrics = {"norm": value, "random": float(torch.rand(1))}
        return [EvalRow(dataset="toy", task="norm", metrics=metrics, chance={})]


def test_two_runs_have_equal_logs_with_0_and_2_workers(tmp_path):
    outs = [
        train(recipe(tmp_path, out=str(tmp_path / name), **{"data.workers": n}))
        for name, n in (("a", 0), ("b", 2))
    ]
    assert log(outs[0]) == log(outs[1]) and len(steps(outs[0])) == 12
    assert same(weights(outs[0]), weights(outs[1]))
    assert steps(outs[0])[-1]["bad_rows"] == 1 and steps(outs[0])[-1]["samples_seen"] == 3 * 49


@pytest.mark.parametrize("evaluate", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_resumed_run_equals_the_uninterrupted(
    tmp_path, monkeypatch, number, evaluate, capfd
):
    evals = (Norm(every=4),) if evaluate else ()
    whole = train(recipe(tmp_path, out=str(tmp_path / "whole"), ema=0.9, evals=evals))
    cut = recipe(tmp_path, ema=0.9, evals=evals)
    with monkeypatch.context() as patch:
        raises_at(patch, 8, lambda: os.kill(os.getpid(), number))
        with pytest.raises(SystemExit) as left:
            train(cut)
    assert left.value.code == 128 + number
    out = Path(cut.out)
    assert (out / "step_00000008").is_dir() and not (out / "model").exists()
    assert "stopped after step 8 of 12" in capfd.readouterr().err
    train(cut)
    assert log(out) == log(whole)
    for file in ("model.safetensors", "average.safetensors"):
        assert same(weights(out, file=file), weights(whole, file=file))
    assert same(
        load_file(out / "model" / "model.safetensors"), load_file(whole / "model" / "model.safetensors")
    )
    assert (out / "metrics.json").read_text() == (whole / "metrics.json").read_text()


@pytest.mark.parametrize(("where", "step"), [("evaluate", 4), ("save", 10), ("save", 12), ("closing", 12)])
def test_a_signal_while_something_else_is_done_is_not_lost(tmp_path, monkeypatch, where, step):
    one = recipe(tmp_path, evals=(Norm(every=4),))
    whole = train(replace(one, out=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        name = "__exit__" if where == "closing" else where
        act = getattr(Run, name)

        def then(run, *rest, **named):
            found = act(run, *rest, **named)
            if where == "closing" or rest[0] == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return found

        patch.setattr(Run, name, then)
        with pytest.raises(SystemExit) as left:
            train(one)
    out = Path(one.out)
    assert left.value.code == 143 and not (out / "model").exists()
    assert max(out.glob("step_*")).name == f"step_{step:08d}"
    train(one)
    assert log(out) == log(whole) and same(weights(out), weights(whole))


def test_resumes_before_a_damaged_checkpoint(tmp_path, monkeypatch, capfd):
    whole = train(recipe(tmp_path, out=str(tmp_path / "whole")))
    cut = recipe(tmp_path)
    with monkeypatch.context() as patch:
        raises_at(patch, 11, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit):
            train(cut)
    out = Path(cut.out)
    os.truncate(out / "step_00000011" / "optimizer.pt", 100)
    train(cut)
    said = capfd.readouterr().err
    assert "refused checkpoint" in said and "optimizer.pt" in said and "step_00000010, 10 of 12" in said
    assert log(out) == log(whole) and same(weights(out), weights(whole))
    assert sorted(path.name for path in out.glob("step_*")) == [
        "step_00000010",
        "step_00000011.damaged",
        "step_00000012",
    ]


def test_other_data_than_before_is_told(tmp_path, monkeypatch, capfd):
    one = recipe(tmp_path)
    with monkeypatch.context() as patch:
        raises_at(patch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit):
            train(one)
    path = tmp_path / "data" / "rows.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    train(one)
    assert "data: 49 rows, 50 when step_00000004 was written; from here on" in capfd.readouterr().err


def test_averaged_weights_are_evaluated_and_saved(tmp_path):
    out = train(recipe(tmp_path, ema=0.9, evals=(Norm(),)))
    average, saved = weights(out, file="average.safetensors"), load_file(out / "model" / "model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in average.items())
    assert not torch.equal(saved["image_head.weight"], weights(out)["image_head.weight"])
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics[0]["dataset"] == "toy" and metrics[0]["metrics"]["norm"] > 0


def test_evaluation_leaves_training_as_it_was(tmp_path):
    """Its random numbers, modes and averaged weights are gone when the next step begins."""
    with_evals = train(recipe(tmp_path, out=str(tmp_path / "a"), ema=0.9, evals=(Norm(every=2),)))
    without = train(recipe(tmp_path, out=str(tmp_path / "b"), ema=0.9))
    assert steps(with_evals) == steps(without) and same(weights(with_evals), weights(without))
    assert [line["step"] for line in log(with_evals) if "evals" in line] == [2, 4, 6, 8, 10]


def test_a_finished_run_is_left_alone_and_missing_outputs_are_made_again(tmp_path, capfd):
    one = recipe(tmp_path, evals=(Norm(),))
    out = train(one)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert train(one) == out and "is finished" in capfd.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before | {
        "recipe.yaml": (out / "recipe.yaml").stat().st_mtime_ns
    }
    metrics = (out / "metrics.json").read_text()
    for name in ("metrics.json", "report.html"):
        (out / name).unlink()
    train(one)
    assert (out / "metrics.json").read_text() == metrics and (out / "report.html").exists()
    assert (out / "model").stat().st_mtime_ns == before["model"]


def test_another_recipe_is_refused_naming_the_differences(tmp_path):
    train(recipe(tmp_path))
    with pytest.raises(RecipeError) as told:
        train(recipe(tmp_path, seed=1, model=TinyPair(dropout=0.5)))
    assert "seed: 0 there, 1 here" in str(told.value) and "model.dropout: 0.2 there, 0.5 here" in str(
        told.value
    )
    assert "steps" not in str(told.value)


def test_what_changes_no_number_may_differ_from_before(tmp_path, capfd):
    one = recipe(tmp_path)
    out = train(one)
    (out / "report.html").unlink()
    two = replace(one, log=Log(every=3, trackers=()), checkpoint=Checkpoint(every=2, keep=1))
    two = replace(two, data=replace(two.data, workers=1))
    train(two)
    assert "12 of 12 steps done" in capfd.readouterr().err and load_recipe(out / "recipe.yaml") == two


def test_evaluators_are_looked_at_early_and_may_be_corrected_until_they_were_measured(tmp_path):
    one = recipe(tmp_path)
    wrong, right = (
        Retrieval(dataset="rows", data=JsonLines(path=path, id="id"))
        for path in (str(tmp_path / "absent.jsonl"), one.data.train.path)
    )
    with pytest.raises(DataError, match="absent.jsonl"):
        train(replace(one, evals=(wrong,)))
    assert not list(Path(one.out).glob("step_*"))
    train(replace(one, evals=(right,)))
    with pytest.raises(RecipeError, match="evals"):
        train(replace(one, evals=()))


def test_an_unwritable_out_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="cannot be written"):
        train(recipe(tmp_path, out=str(tmp_path / "file" / "run")))


@dataclass(frozen=True, kw_only=True)
class BreaksAt:
    """The task of another, whose loss becomes `value` at a step."""

    inner: Align
    step: int
    value: float = float("nan")
    coupled = True

    def rows(self, batch):
        return self.inner.rows(batch)

    def loss(self, features, batch, step, total):
        loss = self.inner.loss(features, batch, step, total)
        return Loss(loss.total * self.value, loss.parts) if step == self.step else loss


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_anything_moves(tmp_path, value, monkeypatch):
    one = recipe(tmp_path, checkpoint=Checkpoint(every=1, keep=3))
    models = []
    resume = Run.resume
    monkeypatch.setattr(Run, "resume", lambda run: (models.append(run.runtime.bare), resume(run))[1])
    with pytest.raises(
        Diverged,
        match=r"step 7: the loss is (nan|inf|-inf).*Rows of this batch: row\d+.*and 1 more; .*diverged.json",
    ):
        train(replace(one, task=BreaksAt(inner=one.task, step=7, value=value)))
    assert same(weights(Path(one.out), step=6), learned(models[0]))
    assert steps(Path(one.out))[-1]["step"] == 6
    told = json.loads((Path(one.out) / "diverged.json").read_text())
    assert told["step"] == 7 and told["loss"] in ("nan", "inf", "-inf") and len(told["ids"]) == 9


@dataclass(frozen=True, kw_only=True)
class Sharpens:
    """A task that wants nothing but a larger scale."""

    coupled = False

    def rows(self, batch):
        return len(batch["ids"])

    def loss(self, features, batch, step, total):
        return Loss(-features.scale.sum() * self.rows(batch), {})


def test_the_scale_is_clamped_after_each_step(tmp_path):
    one = recipe(tmp_path, model=TinyPair(scale=95.0), task=Sharpens())
    out = train(replace(one, optim=replace(one.optim, lr=0.05)))
    scales = [line["scale"] for line in steps(out)]
    assert scales[0] < 99.9 and scales[-1] == pytest.approx(100.0, abs=1e-4) and max(scales) < 100.001


def test_locked_towers_do_not_run_while_training(tmp_path, capfd):
    plain = train(recipe(tmp_path, out=str(tmp_path / "a"), model=TinyPair(lock=True), feature_cache=False))
    assert TinyTower.runs > 0
    TinyTower.runs = 0
    cached = train(recipe(tmp_path, out=str(tmp_path / "b"), model=TinyPair(lock=True)))
    assert TinyTower.runs == 0
    assert "49 new in" in capfd.readouterr().err
    again = train(recipe(tmp_path, out=str(tmp_path / "c"), model=TinyPair(lock=True)))
    assert " 0 new in" in capfd.readouterr().err
    assert log(again) == log(cached)
    for one, other in zip(steps(plain), steps(cached), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
    assert steps(cached)[-1]["bad_rows"] == 1


class Lost:
    """Rows of which one cannot be read any more, neither picture nor captions nor id."""

    def __init__(self, rows):
        self.rows, self.skipped, self.licences = rows, rows.skipped, rows.licences

    def __len__(self):
        return len(self.rows)

    def _read(self, read, index):
        if index == 3:
            raise BadRow("missing_shard", "it is not there any more")
        return read(index)

    def __getitem__(self, index):
        return self._read(self.rows.__getitem__, index)

    def captions(self, index):
        return self._read(self.rows.captions, index)

    def fields(self, index):
        return self._read(self.rows.fields, index)


@dataclass(frozen=True, kw_only=True)
class Loses:
    inner: JsonLines

    def build(self, limits):
        return Lost(self.inner.build(limits))


def test_a_row_that_is_lost_while_features_are_computed_is_counted(tmp_path):
    one = recipe(tmp_path, model=TinyPair(lock=True))
    one = replace(one, data=replace(one.data, train=Loses(inner=one.data.train)))
    out = train(one)
    assert json.loads((out / "rows.json").read_text())["skipped"] == {"missing_shard": 1, "truncated": 1}
    with pytest.raises(DataError, match="row 3.*missing_shard"):
        train(replace(one, out=str(tmp_path / "strict"), data=replace(one.data, on_error="raise")))


def test_augmentation_keeps_only_texts_in_the_cache(tmp_path, capfd):
    out = train(recipe(tmp_path, model=TinyPair(lock=True), **{"data.augment": Augment(flip=True)}))
    said = capfd.readouterr().err
    assert "text features" in said and "image features" not in said and len(steps(out)) == 12


def test_the_first_bad_row_stops_a_strict_run(tmp_path):
    for lock in (False, True):
        with pytest.raises(DataError, match="row7"):
            train(
                recipe(
                    tmp_path,
                    out=str(tmp_path / str(lock)),
                    model=TinyPair(lock=lock),
                    **{"data.on_error": "raise"},
                )
            )


def test_other_locked_weights_refuse_a_checkpoint(tmp_path, monkeypatch):
    one = recipe(tmp_path, model=TinyPair(lock=True))
    out = train(one)
    (out / "model" / "model.safetensors").unlink()
    (out / "report.html").unlink()
    build = TinyPair.build

    def other(self):
        model = build(self)
        next(model.image.parameters()).data.add_(1)
        return model

    monkeypatch.setattr(TinyPair, "build", other)
    with pytest.raises(ValueError, match="other locked weights"):
        train(one)


def test_init_gives_the_weights_of_a_saved_model(tmp_path, monkeypatch):
    trusting = partial(
        initialise, trust_remote_code=True
    )  # the pair of these tests is outside of the package
    monkeypatch.setattr("vlalign.train.model.initialise", trusting)
    first = train(recipe(tmp_path, out=str(tmp_path / "first")))
    one = recipe(tmp_path, out=str(tmp_path / "second"), init=str(first / "model"))
    second = train(replace(one, steps=1, optim=replace(one.optim, lr=1e-9)))
    began, saved = (
        load_file(second / "model" / "model.safetensors"),
        load_file(first / "model" / "model.safetensors"),
    )
    torch.testing.assert_close(began, saved, rtol=0, atol=1e-6)
