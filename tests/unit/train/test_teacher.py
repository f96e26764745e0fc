"""A teacher that scores while another learns: a judging's numbers, and the same losses however a run goes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file

import vlalign
from tests.dist.launch import forked
from tests.language_models import reranker
from tests.multimodal_models import picture
from tests.multimodal_models import reranker as seeing
from tests.unit.infer.mined import lines, write
from vlalign.infer.judge import judge
from vlalign.models.rerank_scorer import RerankScorer
from vlalign.models.weights import save
from vlalign.recipe.decode import load_recipe
from vlalign.recipe.decode import write as write_recipe
from vlalign.recipe.teaching import Teacher
from vlalign.registry import SOURCES
from vlalign.train import teacher
from vlalign.train.loop import train
from vlalign.train.plan.forecast import forecast
from vlalign.train.teacher import TeacherScores
from vlalign.types import DataError, Item, Limits, RecipeError, UserError

ROWS, CPU = Path("recipes/tiny/candidates.jsonl"), torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A reranker of texts, one of pictures too, a dual encoder, and rows of pictures."""
    place = tmp_path_factory.mktemp("teacher")
    save(reranker(place / "words", "llama"), place / "reads")
    save(seeing(place / "eyes"), place / "sees")
    torch.manual_seed(0)
    save(vlalign.load("recipes/tiny/open_clip").model, place / "pair")
    rows = []
    for at in range(8):
        picture(at).save(place / f"{at}.png")
        texts = [{"text": f"a {word} cat", "label": int(word == at % 4)} for word in range(4)]
        rows.append({"id": f"q{at}", "query": {"image": f"{at}.png"}, "candidates": texts})
    write(place / "pictures.jsonl", rows)
    return place


@pytest.fixture
def scored(monkeypatch):
    """Every (query, candidate) text that a reranker scores from now on, each time that it does."""
    pairs, whole = list[tuple[str, str]](), RerankScorer.score

    def noted(self, queries, candidates, *more):
        pairs.extend((q.text, x.text) for q, own in zip(queries, candidates, strict=True) for x in own)
        return whole(self, queries, candidates, *more)

    monkeypatch.setattr(RerankScorer, "score", noted)
    return pairs


def recipe(folder, out, *overrides, model="reads", tiny="online_distilled", **more):
    told = {"model": str(folder / model), "number": "online", **more}
    changes = [f"out={out}", "log.trackers=[]", f"data.teacher={json.dumps(told)}"]
    field = "task.targets.field" if tiny == "distil" else "task.terms.0.targets.field"
    return load_recipe(f"recipes/tiny/{tiny}.yaml", [*changes, f"{field}=online", *overrides])


def losses(out):
    return [line["loss"] for line in lines(out / "log.jsonl")[1:]]


def judged(folder, out, rows, model):
    """The file of rows with what the judge `saved` measures of them, as `online`."""
    told = {"verb": "judge", "out": str(out), "store": f"{out}.sqlite", "number": "online"}
    told["data"] = {"name": "candidates", "path": str(rows)}
    told["judges"] = [{"name": "saved", "model": str(folder / model)}]
    path = out.with_suffix(".yaml")
    path.write_text(json.dumps(told))
    return judge(load_recipe(path)) / "candidates.jsonl"


def chunk(rows, places=range(4)):
    """What a loader makes of all candidates of some rows, as far as a teacher reads it."""
    source = SOURCES.decode({"name": "candidates", "path": str(rows)}).build()
    asked = [(source[at]["query"], source[at]["candidates"]) for at in places]
    return {"asked": asked, "key_fields": {"label": torch.zeros(2)}, "ids": []}


def scores(folder, model="reads", **told):
    return TeacherScores(Teacher(model=str(folder / model), number="online", **told), Limits(), CPU, 0)


@pytest.mark.parametrize("model", ["reads", "sees", "pair"])
def test_its_numbers_are_those_that_a_judging_writes_before(folder, tmp_path, model):
    rows = ROWS if model == "reads" else folder / "pictures.jsonl"
    before = lines(judged(folder, tmp_path / "judged", rows, model))[:4]
    wanted = torch.tensor([each["online"] for row in before for each in row["candidates"]])
    found = scores(folder, model)(chunk(rows))
    assert set(found) == {"key_fields", "ids"} and set(found["key_fields"]) == {"label", "online"}
    assert len(set(wanted.tolist())) > len(wanted) / 2
    torch.testing.assert_close(found["key_fields"]["online"], wanted, atol=1e-5, rtol=0)
    if model != "pair":
        found = scores(folder, model, form="probability")(chunk(rows))
        chances = 1 / (1 + torch.exp(-wanted))
        torch.testing.assert_close(found["key_fields"]["online"], chances, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_run_learns_as_from_the_file_that_a_judging_wrote(folder, tmp_path):
    """Of drawn candidates, with chunks, workers, and more than an epoch."""
    more = ["steps=7", "data.train.negatives=3"]
    online = train(recipe(folder, tmp_path / "online", *more))
    told = [f"out={tmp_path / 'offline'}", "log.trackers=[]", "data.teacher=null", *more]
    told += [f"data.train.path={judged(folder, tmp_path / 'judged', ROWS, 'reads')}"]
    told += ["task.terms.0.targets.field=online"]
    offline = train(load_recipe("recipes/tiny/online_distilled.yaml", told))
    assert losses(online) == pytest.approx(losses(offline), rel=1e-5)
    part = [line["parts"] for line in lines(online / "log.jsonl")[1:]]
    assert all(each["kl"] > 1e-3 for each in part)
    whole = train(recipe(folder, tmp_path / "whole", *more, "data.chunk=null", "data.workers=2"))
    assert losses(whole) == pytest.approx(losses(online), rel=1e-5)


def test_a_reranker_may_learn_so_too(folder, tmp_path):
    online = train(recipe(folder, tmp_path / "online", tiny="distil"))
    told = [f"out={tmp_path / 'offline'}", "log.trackers=[]", "task.targets.field=online"]
    told += [f"data.train.path={judged(folder, tmp_path / 'judged', ROWS, 'reads')}"]
    offline = train(load_recipe("recipes/tiny/distil.yaml", told))
    assert losses(online) == pytest.approx(losses(offline), rel=1e-5)


def test_a_run_that_was_cut_goes_on_to_the_same_losses(folder, tmp_path):
    """To the bit: what was scored beside what before the cut is remembered. Seven steps are over an epoch."""
    more = ["data.train.negatives=3", "checkpoint.every=1"]
    whole = train(recipe(folder, tmp_path / "whole", *more, "steps=8", "checkpoint.keep=3"))
    again = tmp_path / "again"
    again.mkdir()
    (whole / "recipe.yaml").rename(tmp_path / "told.yaml")
    (again / "recipe.yaml").write_text((tmp_path / "told.yaml").read_text().replace("whole", "again"))
    (whole / "step_00000006").rename(again / "step_00000006")
    log = (whole / "log.jsonl").read_text().splitlines(keepends=True)
    (again / "log.jsonl").write_text("".join(log[:7]))
    out = train(recipe(folder, again, *more, "steps=8", "checkpoint.keep=3"))
    assert len(losses(out)) == 8 and losses(out) == losses(whole)
    other = tmp_path / "other"
    save(reranker(tmp_path / "words", "qwen3"), other)
    (again / "model").rename(tmp_path / "gone")
    (folder / "reads").rename(tmp_path / "kept")
    other.rename(folder / "reads")
    try:
        with pytest.raises(UserError, match="was trained on other locked weights"):
            train(recipe(folder, again, *more, "steps=8", "checkpoint.keep=3"))
    finally:
        (folder / "reads").rename(tmp_path / "moved")
        (tmp_path / "kept").rename(folder / "reads")


@pytest.mark.slow
def test_two_processes_learn_as_one(folder, tmp_path):
    """Each scores its own queries' pairs, and a checkpoint has what both remember."""
    write_recipe(recipe(folder, tmp_path / "two", "data.train.negatives=3", "steps=7"), tmp_path)
    (tmp_path / "recipe.yaml").rename(tmp_path / "r.yaml")
    for processes, out in ((1, "one"), (2, "two")):
        forked(processes, "tests.dist.rerank_run", str(tmp_path), out, "checkpoint.every=6")
    one, two = (tmp_path / each for each in ("one", "two"))
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    kept = [load_file(two / "step_00000007" / f"teacher_0000{rank}.safetensors")["pairs"] for rank in (0, 1)]
    both = {key.tobytes() for keys in kept for key in keys}
    alone = load_file(one / "step_00000007" / "teacher_00000.safetensors")["pairs"]
    assert both == {key.tobytes() for key in alone} and all(len(keys) < len(both) for keys in kept)


def test_a_pair_is_scored_once_and_kept_by_a_checkpoint(folder, tmp_path, scored, monkeypatch):
    own = scores(folder)
    first = own(chunk(ROWS, [0, 1, 2]))["key_fields"]["online"]
    assert len(scored) == len(set(scored)) == len(first)
    again = own(chunk(ROWS, [2, 0]))["key_fields"]["online"]
    assert torch.equal(again, torch.cat([first[16:], first[:8]])) and len(scored) == len(first)
    own.save(tmp_path)
    other = scores(folder)
    other.restore(tmp_path)
    assert torch.equal(other(chunk(ROWS, [0, 1, 2]))["key_fields"]["online"], first)
    assert len(scored) == len(first) and [*other.scores] == [*own.scores]
    monkeypatch.setattr(teacher, "REMEMBERED", 10)
    assert torch.equal(other(chunk(ROWS, [2]))["key_fields"]["online"], first[16:])
    assert len(other.scores) == 10 and len(scored) == len(first)
    other(chunk(ROWS, [0]))
    assert len(scored) > len(first)  # the first were forgotten first


def test_another_process_of_then_or_an_empty_memory_begins_anew(folder, tmp_path):
    own = scores(folder)
    own.save(tmp_path)
    own.restore(tmp_path)
    assert own.scores == {}
    (tmp_path / "teacher_00000.safetensors").unlink()
    own.restore(tmp_path)
    assert own.scores == {}


def test_texts_that_differ_in_anything_and_other_pictures_are_other_pairs():
    said = [Item(text="a cat"), Item(text="A cat"), Item(text="a  cat"), Item(images=("a cat",))]
    said += [Item(text="a cat", images=(picture(at),)) for at in range(2)]
    keys = {teacher._key(query, each) for query in said for each in said}
    assert len(keys) == 36
    assert teacher._key(said[4], said[0]) == teacher._key(
        Item(text="a cat", images=(picture(0).copy(),)), said[0]
    )


def test_it_does_not_learn_and_is_not_saved(folder, tmp_path):
    own = scores(folder)
    model = own.scorer.model
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    before = {name: x.clone() for name, x in model.state_dict().items()}
    found = own(chunk(ROWS))["key_fields"]["online"]
    assert not found.requires_grad and not model.training
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    out = train(recipe(folder, tmp_path / "out"))
    models = [vlalign.load(each).model.state_dict() for each in (out, "recipes/tiny/open_clip")]
    shapes = [{name: x.shape for name, x in each.items()} for each in models]
    assert shapes[0] == shapes[1]


def test_only_drawn_pairs_are_scored(folder, tmp_path, scored):
    train(recipe(folder, tmp_path / "out", "data.train.negatives=2", "steps=2"))
    pairs = {(row["query"], each["text"]) for row in lines(ROWS) for each in row["candidates"]}
    assert len(scored) == len(set(scored)) <= 2 * 8 * 3 < len(pairs) and set(scored) <= pairs


def test_what_cannot_teach_is_refused(folder, tmp_path):
    out, several = tmp_path / "out", map(tmp_path.joinpath, "abcdef")
    with pytest.raises(RecipeError, match="data.teacher scores the candidates of queries, and data.train ho"):
        load_recipe("recipes/tiny/clip.yaml", ["data.teacher={model: runs/any}"])
    with pytest.raises(RecipeError, match="data.teacher.model: must not be empty"):
        recipe(folder, out, "data.teacher.model=''")
    with pytest.raises(RecipeError, match="data.teacher.number: must not be one of id, label"):
        recipe(folder, out, "data.teacher.number=label")
    for tiny, name in (("online_distilled", "score"), ("online_distilled", "row"), ("distil", "score")):
        with pytest.raises(RecipeError, match=f"candidates of data.train have '{name}' already; choose an"):
            train(recipe(folder, next(several), f"data.teacher.number={name}", tiny=tiny))
    with pytest.raises(RecipeError, match="nothing in the task reads 'online'; set the targets of a term"):
        train(recipe(folder, next(several), "task.terms.0.targets.field=judge_score"))
    with pytest.raises(RecipeError, match="the field 'other', and queries and candidates have.*, online$"):
        train(recipe(folder, next(several), "task.targets.same=[row, other]"))
    with pytest.raises(RecipeError, match="a probability is of a reranker's yes, and .* is a dual encoder"):
        scores(folder, "pair", form="probability")
    with pytest.raises(UserError, match="nowhere/at/all: there is no such folder"):
        train(recipe(folder, next(several), "data.teacher.model=nowhere/at/all"))
    with pytest.raises(DataError, match="data.teacher: .*reads cannot score.*reads texts alone.*leave such"):
        scores(folder)(chunk(folder / "pictures.jsonl"))
    with pytest.raises(RecipeError, match="only steps over pairs are forecast"):
        forecast(recipe(folder, out), 1, "cpu", "ddp")
