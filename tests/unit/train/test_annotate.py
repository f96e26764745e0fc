"""Fields from frozen encoders: what they hold, who refuses, what a run keeps, what batches are made of it."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from tests.unit.models.conftest import OPEN_CLIP, open_clip_folder
from tests.unit.train.test_loop import raises_at, same, steps, weights
from tests.unit.train.tiny import TinyPair, recipe
from vlalign.data.hashing import hash63
from vlalign.data.samplers.clustered import Clustered
from vlalign.data.samplers.random import Random
from vlalign.evals.report.log import read_lines
from vlalign.models.encoders.open_clip import OpenClip
from vlalign.models.weights import load, save
from vlalign.recipe.augmentation import Augment, Calibrate
from vlalign.supervision.annotators.features import Features
from vlalign.supervision.annotators.kmeans import KMeans
from vlalign.supervision.annotators.stages import Stages
from vlalign.train.annotate import FILE, FrozenRows, annotate
from vlalign.train.features import locked_features
from vlalign.train.loop import train
from vlalign.train.model import build, check_fields
from vlalign.train.peers import Peers
from vlalign.train.progress import Display
from vlalign.types import DataError, RecipeError, UserError

SMALL = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLALIGN_CACHE", str(tmp_path / "cache"))


class One(Peers):
    """A process alone."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__(0, 1)


class Heard(Display):
    """What was said."""

    def __init__(self) -> None:
        super().__init__(speaks=False)
        self.told: list[str] = []

    def say(self, message: str) -> None:
        self.told.append(message)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Labels or numbers that are different each time; `shape` of one row."""

    calls = 0
    label: bool = True
    shape: tuple[int, ...] = ()
    rows: int = 50

    def __call__(self, rows):
        type(self).calls += 1
        numbers = torch.from_numpy(np.random.default_rng().random((self.rows, *self.shape)))
        return (1000 * numbers).long() if self.label else numbers.float()


def frozen(folder: Path, lock: bool = True, **changes) -> tuple[FrozenRows, object]:
    """The rows of a recipe over 50 pictures, the eighth of which is damaged; and its model."""
    one = recipe(folder, model=TinyPair(lock=lock), **changes)
    torch.manual_seed(0)
    source, model, display = one.data.train.build(one.data.limits), one.model.build(), Heard()
    locked = locked_features(one, model, source, One(), display)
    return FrozenRows(one, source, locked, One.device, display), model


def annotated(folder: Path, display: Display | None = None, rows: int = 50, **fields) -> FrozenRows:
    one = recipe(folder, **{"data.annotate": fields})
    source = one.data.train.build(one.data.limits)
    folder.joinpath("out").mkdir(exist_ok=True)
    return annotate(one, source, locked_features(one, one.model.build(), source, One(), Heard()),
                    folder / "out", One(), display or Heard())  # fmt: skip


def test_the_runs_own_locked_towers_give_unit_rows(tmp_path):
    rows, model = frozen(tmp_path)
    image, text = rows.features("image"), rows.features("text")
    model.eval()
    for index in (0, 3, 49):
        sample = rows.source[index]
        own = model.image(model.image.process([sample["image"]]))
        torch.testing.assert_close(image[index], F.normalize(own, dim=1)[0])
        units = F.normalize(model.text(model.text.process(list(sample["captions"]))), dim=1)
        torch.testing.assert_close(text[index], F.normalize(units.mean(0), dim=0))
    assert image.shape == text.shape == (50, 16) and image.dtype == torch.float32
    assert image[7].norm() == 0  # which cannot be read
    assert torch.equal(text.norm(dim=1).round(decimals=5) == 1, torch.arange(50) != 7)


@pytest.mark.parametrize(
    "changes", [{"lock": False}, {"feature_cache": False}, {"data.augment": Augment(flip=True)}]
)
def test_features_that_are_not_kept_are_refused_with_what_to_do(tmp_path, changes):
    rows, _ = frozen(tmp_path, **changes)
    told = "model.image.lock: true and feature_cache: true, and no augment, or name the model"
    with pytest.raises(RecipeError, match=told):
        rows.features("image")


@pytest.fixture
def saved(tmp_path):
    """A saved model of one block a tower."""
    text = {**OPEN_CLIP["text_cfg"], "layers": 1}
    id = open_clip_folder(tmp_path / "open_clip", OPEN_CLIP | {"vision_cfg": SMALL, "text_cfg": text})
    save(OpenClip(id=id).build(), tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.parametrize("kept", [True, False])
def test_a_saved_model_gives_the_embeddings_of_every_row(tmp_path, saved, kept):
    rows, _ = frozen(tmp_path, lock=False, feature_cache=kept)
    embedder = load(saved, device="cpu")
    image = rows.features("image", saved)
    good = [index for index in range(50) if index != 7]
    expected = embedder.encode_image([rows.source[index]["image"] for index in good])
    torch.testing.assert_close(image[good], expected)
    assert image[7].norm() == 0 and rows.features("image", saved) is image
    text = rows.features("text", saved)
    units = embedder.encode_text(rows.source.captions(4))
    torch.testing.assert_close(text[4], F.normalize(units.mean(0), dim=0))
    assert (tmp_path / "cache" / "features").exists() == kept


def test_a_model_that_is_not_there_and_a_bad_row_are_told(tmp_path, saved):
    rows, _ = frozen(tmp_path, lock=False)
    with pytest.raises(RecipeError, match=r"data.annotate: the model '/nowhere' cannot be used: "):
        rows.features("image", "/nowhere")
    strict, _ = frozen(tmp_path, lock=False, **{"data.on_error": "raise"})
    with pytest.raises(DataError, match="row 'row7' is bad"):
        strict.features("image", saved)


def test_a_field_is_equal_where_its_strings_are_and_an_annotation_as_it_is(tmp_path):
    rows, _ = frozen(tmp_path)
    assert rows.strings("id") == [f"row{index}" for index in range(50)]
    assert rows.field("id").tolist() == [hash63(f"row{index}") for index in range(50)]
    rows.annotations = {"label": torch.arange(50), "vector": torch.zeros(50, 3), "number": torch.zeros(50)}
    assert rows.field("label") is rows.annotations["label"]
    for name in ("vector", "number"):
        with pytest.raises(RecipeError, match=f"data.annotate.{name}: it is read as a label"):
            rows.field(name)
    with pytest.raises(RecipeError, match="'row0' has no field 'later', but id; an annotation has to be"):
        rows.field("later")


def test_what_is_one_number_a_row_is_kept_and_a_vector_is_computed_again(tmp_path):
    fields = {"label": Drawn(), "number": Drawn(label=False), "vector": Drawn(label=False, shape=(3,))}
    Drawn.calls = 0
    first = annotated(tmp_path, **fields).annotations
    assert list(first) == list(fields) and Drawn.calls == 3
    assert load_file(tmp_path / "out" / FILE).keys() == {"label", "number"}
    again = annotated(tmp_path, **fields).annotations
    assert Drawn.calls == 4 and not torch.equal(first["vector"], again["vector"])
    for name in ("label", "number"):
        torch.testing.assert_close(again[name], first[name], rtol=0, atol=0)


def test_kept_values_of_other_rows_are_computed_again_and_damaged_ones_told(tmp_path):
    annotated(tmp_path, label=Drawn())
    path, heard = tmp_path / "data" / "rows.jsonl", Heard()
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:40]))
    assert len(annotated(tmp_path, heard, label=Drawn(rows=40)).annotations["label"]) == 40
    assert "it is of another number of rows" in heard.told[0]
    kept = tmp_path / "out" / FILE
    kept.write_bytes(kept.read_bytes()[:50])
    with pytest.raises(UserError, match=f"{FILE}: it is damaged .*; delete it"):
        annotated(tmp_path, label=Drawn(rows=40))


def test_an_annotator_that_gives_no_field_is_told(tmp_path):
    with pytest.raises(RecipeError, match=r"data.annotate.x: expected int64 or float32 for each of 50 rows"):
        annotated(tmp_path, x=Drawn(rows=49))


def test_nothing_is_written_where_nothing_is_annotated(tmp_path):
    rows = annotated(tmp_path)
    assert rows.annotations == {} and not (tmp_path / "out" / FILE).exists()
    order = rows.order()
    assert order.labels is None and isinstance(order.sampler, Random) and rows.display.told == []
    assert np.array_equal(order.epoch(3), np.random.default_rng([0, 3]).permutation(50))


def test_an_order_by_an_annotation_tells_what_it_leaves_out(tmp_path):
    rows, _ = frozen(tmp_path, **{"data.sampler": Clustered(by="half", mode="inclusive"), "data.batch": 10})
    rows.annotations["half"] = torch.arange(50) // 26
    order = rows.order()
    assert order.steps == 4 and len({int(rows.annotations["half"][row]) for row in order.epoch(0)[:10]}) == 1
    assert rows.display.told[-1].startswith("data.sampler: 10 of 50 rows come in no batch of an epoch")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"annotate": {"id": Drawn()}}, "data.annotate.id: rows have a field 'id' already"),
        ({"annotate": {"caption": Drawn()}}, "data.annotate.caption: rows have a field"),
        (
            {"sampler": Clustered(by="concept", mode="inclusive")},
            "data.sampler.by: the rows have no field 'c",
        ),
        (
            {"sampler": Clustered(by="caption", mode="inclusive")},
            "data.sampler.by: the rows have no field 'c",
        ),
        (
            {"calibrate": Calibrate(field="concept", head=5)},
            "data.calibrate.field: the rows have no field 'c",
        ),
    ],
)
def test_names_are_checked_before_anything_is_computed(tmp_path, changes, told):
    one = recipe(tmp_path, **{f"data.{name}": value for name, value in changes.items()})
    with pytest.raises(RecipeError, match=told):
        check_fields(one, one.data.train.build())


def test_an_annotation_may_be_compared_and_sampled_by(tmp_path):
    one = recipe(tmp_path, **{"data.annotate": {"concept": Drawn()}})
    one = replace(one, task=replace(one.task, targets=replace(one.task.targets, same=("concept",))))
    sampled = replace(one.data, sampler=Clustered(by="concept", mode="exclusive"))
    check_fields(replace(one, data=sampled), one.data.train.build())
    with pytest.raises(
        RecipeError, match="the field 'concept'.*or data.annotate.concept to what computes it"
    ):
        check_fields(replace(one, data=replace(one.data, annotate={})), one.data.train.build())


CLUSTERED = {
    "exclusive": {"cluster": KMeans(k=20, side="text")},
    "inclusive": {"cluster": Stages(k=2, side="text", models=(None,)), "vector": Features(side="image")},
}


@pytest.mark.parametrize("mode", CLUSTERED)
def test_a_run_is_resumed_to_the_bit_by_the_labels_that_it_has_kept(tmp_path, monkeypatch, mode):
    def plan(out, **changes):
        data = {"annotate": CLUSTERED[mode], "sampler": Clustered(by="cluster", mode=mode), "batch": 12}
        data = {f"data.{name}": value for name, value in (data | changes).items()}
        return recipe(tmp_path, out=str(tmp_path / out), model=TinyPair(lock=True), **data)

    whole = train(plan("whole"))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        raises_at(patched, 8, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        train(plan("cut"))
    for name in ("kmeans", "stages"):  # nobody clusters again
        monkeypatch.setattr(f"vlalign.supervision.annotators.{name}.kmeans", None)
    cut = train(plan("cut", workers=2))
    assert steps(cut) == steps(whole) and same(weights(cut), weights(whole))
    labels = load_file(cut / FILE)["cluster"]
    assert (cut / FILE).read_bytes() == (whole / FILE).read_bytes() and len(labels) == 50
    assert read_lines(cut / "log.jsonl")


@pytest.mark.parametrize(
    "changes", [{"model": TinyPair()}, {"feature_cache": False}, {"data.augment": Augment(flip=True)}]
)
def test_virtual_rows_without_kept_features_are_refused_with_what_to_do(tmp_path, changes):
    how = {"data.calibrate": Calibrate(field="id", head=5)}
    build(recipe(tmp_path, model=TinyPair(lock=True), **how))
    told = "data.calibrate: .*; set model.image.lock: true and feature_cache: true, and no data.augment"
    with pytest.raises(RecipeError, match=told):
        build(recipe(tmp_path, **{"model": TinyPair(lock=True)} | how | changes))


def test_a_run_with_virtual_rows_is_resumed_to_the_bit_and_another_than_without(tmp_path, monkeypatch, capfd):
    def plan(out, **changes):
        data = {"annotate": {"cluster": KMeans(k=12, side="text")}}
        data |= {"calibrate": Calibrate(field="cluster", head=5)}
        data = {f"data.{name}": value for name, value in (data | changes).items()}
        return recipe(tmp_path, out=str(tmp_path / out), model=TinyPair(lock=True), **data)

    whole = train(plan("whole"))
    assert "data.calibrate: " in capfd.readouterr().err
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        raises_at(patched, 8, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        train(plan("cut"))
    cut, plain = train(plan("cut", workers=2)), train(plan("plain", calibrate=None))
    assert steps(cut) == steps(whole) != steps(plain) and same(weights(cut), weights(whole))
