"""Runs by a reranker: whole after any stop, the same on any number of processes, read back exactly."""

import json

import pytest
import torch

import vlalign
from tests.language_models import reranker
from tests.multimodal_models import picture
from tests.multimodal_models import reranker as seeing
from tests.rerank_traps.test_training import rows
from tests.unit.infer.mined import lines_alive, looped, world, write
from vlalign.data.candidate_rows import CandidateRows
from vlalign.evals.runs import ordered, read_run
from vlalign.infer import rerank as module
from vlalign.infer.parts import Parts
from vlalign.infer.rerank import rerank
from vlalign.infer.rows import seal
from vlalign.models.weights import save
from vlalign.recipe.decode import load_recipe
from vlalign.registry import SOURCES
from vlalign.types import BadRow, DataError, Item, RecipeError, UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("rerank")
    save(reranker(place / "base", "llama"), place / "model")
    rows(place / "rows.jsonl")
    return place


def recipe(folder, out, *overrides):
    told = {"verb": "rerank", "out": str(out), "model": str(folder / "model")}
    told["data"] = {"name": "candidates", "path": str(folder / "rows.jsonl")}
    path = out.parent / f"{out.name}.yaml"
    path.write_text(json.dumps(told))
    return load_recipe(path, list(overrides))


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_run_holds_the_models_scores_and_the_rows_hold_them_too(folder, tmp_path):
    out = rerank(recipe(folder, tmp_path / "out"))
    model, run = vlalign.load(folder / "model"), read_run(out / "run.trec")
    before, after = lines(folder / "rows.jsonl"), lines(out / "candidates.jsonl")
    assert len(before) == len(after) == len(run) == 24
    for row, told in zip(before, after, strict=True):
        [scores] = model.score([row["query"]], [[each["text"] for each in row["candidates"]]])
        found = [each["rerank_score"] for each in told["candidates"]]
        torch.testing.assert_close(torch.tensor(found), scores, atol=1e-5, rtol=0)
        assert [run[row["id"]][each["id"]] for each in told["candidates"]] == found
        assert [each["label"] for each in told["candidates"]] == [each["label"] for each in row["candidates"]]
    again = SOURCES.decode({"name": "candidates", "path": str(out / "candidates.jsonl")}).build()
    assert "rerank_score" in again.numbers and "first" in again.numbers
    first = (out / "run.trec").read_text().split("\n")[0].split()
    assert first[:2] == ["q0", "Q0"] and first[3] == "1" and first[2] == ordered(run)["q0"][0]


def test_the_first_stage_is_added_in_the_run_alone(folder, tmp_path):
    out = rerank(recipe(folder, tmp_path / "out", "first_stage=first", "weight=0.5"))
    run = read_run(out / "run.trec")
    for row in lines(out / "candidates.jsonl"):
        for each in row["candidates"]:
            assert run[row["id"]][each["id"]] == pytest.approx(each["first"] + 0.5 * each["rerank_score"])
    with pytest.raises(RecipeError, match="not every candidate has the number 'bm25'; all have first, label"):
        rerank(recipe(folder, tmp_path / "other", "first_stage=bm25"))


def test_killed_at_any_row_it_goes_on_and_ends_alike(folder, tmp_path, monkeypatch):
    whole = rerank(recipe(folder, tmp_path / "whole"))
    told, plain, asked = recipe(folder, tmp_path / "out"), Parts.add, []

    def killed(self, row, found):
        asked.append(row)
        if len(asked) == 6:
            with self.own.open("a") as file:
                file.write('{"row": 5, "id": "q5", "sco')
            raise KeyboardInterrupt
        plain(self, row, found)

    monkeypatch.setattr(Parts, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        rerank(told)
    monkeypatch.setattr(Parts, "add", lambda self, row, found: (asked.append(row), plain(self, row, found)))
    out = rerank(told)
    assert sorted(asked) == sorted([*range(24), 5])  # the torn one again, no other
    for name in ("run.trec", "candidates.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("first", [0, 2])
def test_processes_share_the_rows_and_the_last_one_writes(first, folder, tmp_path, monkeypatch):
    whole, told = rerank(recipe(folder, tmp_path / "whole")), recipe(folder, tmp_path / "out")
    monkeypatch.setenv("WORLD_SIZE", "3")
    found = []
    for rank in [(first + turn) % 3 for turn in range(3)]:
        monkeypatch.setenv("RANK", str(rank))
        found.append(rerank(told))
        assert len(lines(tmp_path / "out" / f"part-{rank}.jsonl")) == 8
    assert found == [None, None, tmp_path / "out"]
    assert (tmp_path / "out" / "run.trec").read_bytes() == (whole / "run.trec").read_bytes()


def test_another_number_of_processes_goes_on_with_what_is_missing(folder, tmp_path, monkeypatch):
    told = recipe(folder, tmp_path / "out")
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    assert rerank(told) is None
    monkeypatch.delenv("WORLD_SIZE"), monkeypatch.delenv("RANK")
    seen = []
    assert rerank(told, seen.append) == tmp_path / "out" and sum(seen) == 16
    monkeypatch.setattr(module, "load", lambda *args, **more: pytest.fail("nothing is left to score"))
    assert rerank(told) == tmp_path / "out"


def test_a_row_that_cannot_be_read_is_told_and_never_scored(folder, tmp_path, monkeypatch):
    plain = CandidateRows.__getitem__

    def read(self, index):
        if index == 3:
            raise BadRow("missing_document", "gone")
        return plain(self, index)

    monkeypatch.setattr(CandidateRows, "__getitem__", read)
    out = rerank(recipe(folder, tmp_path / "out"))
    assert json.loads((out / "bad.json").read_text()) == {"3": "missing_document"}
    assert "q3" not in read_run(out / "run.trec") and len(read_run(out / "run.trec")) == 23


def test_scores_are_not_given_to_other_rows(folder, tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_bytes((folder / "rows.jsonl").read_bytes())
    told = recipe(folder, tmp_path / "out", f"data.path={path}")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert rerank(told) is None
    monkeypatch.delenv("WORLD_SIZE")
    path.write_bytes(b"".join(reversed(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(UserError, match="row 0 is 'q23' with 6 candidates, and was 'q0' with 6"):
        rerank(told)


@pytest.mark.parametrize("change", ["text", "id", "query"])
def test_scores_are_not_given_to_other_candidates_of_as_many(change, folder, tmp_path, monkeypatch):
    told = lines(folder / "rows.jsonl")
    path = write(tmp_path / "rows.jsonl", told)
    made = recipe(folder, tmp_path / "out", f"data.path={path}")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert rerank(made) is None
    monkeypatch.delenv("WORLD_SIZE")
    if change == "query":
        told[0]["query"] += " again"
    else:
        told[0]["candidates"][2][change] = "other"
    write(path, told)
    with pytest.raises(UserError, match="row 0 is 'q0' with 6 candidates, .* or these said something else"):
        rerank(made)
    assert not (tmp_path / "out" / "run.trec").exists()


def test_what_was_scored_is_told_by_texts_paths_and_pixels():
    def digest(text="a", images=()):
        row = {"id": "q", "query": Item(text="k"), "candidates": [Item(text=text, images=images)]}
        return seal(row | {"candidate_ids": ["d"]})["digest"]

    assert digest(images=(picture(0),)) == digest(images=(picture(0).copy(),))
    each = [digest(), digest("b"), *(digest(images=(one,)) for one in (picture(0), picture(1), "a", "b"))]
    assert len(set(each)) == len(each)


def test_data_that_have_become_shorter_are_not_done_with_the_rows_that_are_gone(
    folder, tmp_path, monkeypatch
):
    path = write(tmp_path / "rows.jsonl", lines(folder / "rows.jsonl"))
    told = recipe(folder, tmp_path / "out", f"data.path={path}")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert rerank(told) is None
    write(path, lines(folder / "rows.jsonl")[:6])
    monkeypatch.setenv("RANK", "1")
    assert rerank(told) is None
    monkeypatch.setenv("RANK", "2")
    assert rerank(told) == tmp_path / "out" and len(read_run(tmp_path / "out" / "run.trec")) == 6


def test_rows_are_written_one_after_the_other(folder, tmp_path, monkeypatch):
    most = lines_alive(monkeypatch)
    rerank(recipe(folder, tmp_path / "out"))
    assert len(most) >= 24 and max(most) <= 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": "two words"}, "'two words' is an id with blanks, which a run cannot hold"),
        ({"candidates": [{"id": "a b", "text": "x", "label": 1}]}, "'a b' is an id with blanks"),
    ],
)
def test_ids_that_no_run_holds_are_told_before_anything_is_scored(
    change, said, folder, tmp_path, monkeypatch
):
    told = lines(folder / "rows.jsonl")
    path = write(tmp_path / "rows.jsonl", [*told[:5], {**told[5], **change}, {"id": "bad"}])
    monkeypatch.setattr(module, "load", lambda *args, **more: pytest.fail("nothing is to be scored"))
    with pytest.raises(DataError, match=said):
        rerank(recipe(folder, tmp_path / "out", f"data.path={path}"))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        *(
            (f"number={name}", "number: must not be one of id, label, text")
            for name in ("id", "image", "text")
        ),
        ("tag=two words", "tag: must be one word, got 'two words'"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_told(override, said, folder, tmp_path):
    with pytest.raises(RecipeError, match=said):
        recipe(folder, tmp_path / "out", override)


def test_a_picture_that_cannot_be_opened_costs_its_own_row_alone(tmp_path):
    save(seeing(tmp_path / "base"), tmp_path / "model")
    for at in range(2):
        picture(at).save(tmp_path / f"{at}.png")
    picture(0).resize((400, 400)).save(tmp_path / "large.png")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n")

    def row(id, query, *images):
        candidates = [{"id": name, "image": f"{name}.png", "label": 1} for name in images]
        return {"id": id, "query": query, "candidates": candidates}

    told = [row("q0", "red", "0", "torn"), row("q1", "red", "0", "1"), row("q2", "red", "large")]
    told += [row("q3", {"image": "none.png"}, "0"), row("q4", {"image": "1.png"}, "1", "0")]
    write(tmp_path / "rows.jsonl", told)
    out = rerank(recipe(tmp_path, tmp_path / "out", "limits.pixels=100000"))
    reasons = {"0": "truncated", "2": "too_many_pixels", "3": "missing_file"}
    assert json.loads((out / "bad.json").read_text()) == reasons
    run, model = read_run(out / "run.trec"), vlalign.load(tmp_path / "model")
    assert run.keys() == {"q1", "q4"}
    for row in SOURCES.decode({"name": "candidates", "path": str(tmp_path / "rows.jsonl")}).build():
        if row["id"] in run:
            [scores] = model.score([row["query"]], [row["candidates"]])
            found = [run[row["id"]][id] for id in row["candidate_ids"]]
            torch.testing.assert_close(torch.tensor(found), scores, atol=1e-5, rtol=0)


def test_a_dual_encoder_takes_texts_with_pictures(tmp_path):
    folder = world(tmp_path)
    scores, run = looped(folder), read_run(rerank(recipe(folder, tmp_path / "out")) / "run.trec")
    assert len(run) == 12
    for id, own in run.items():
        assert own == {each: pytest.approx(scores[id][each], abs=1e-6) for each in own}


def test_a_line_torn_within_a_letter_is_read_over(folder, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        (folder / "rows.jsonl").read_text().replace('"id": "q', '"id": "\N{LATIN SMALL LETTER E WITH ACUTE}')
    )
    told = recipe(folder, tmp_path / "out", f"data.path={path}")
    rerank(told)
    part = tmp_path / "out" / "part-0.jsonl"
    whole = part.read_bytes()
    run = (tmp_path / "out" / "run.trec").read_bytes()
    for cut in range(whole.rindex(b"\n", 0, -1) + 2, len(whole)):
        part.write_bytes(whole[:cut])
        assert len(Parts(tmp_path / "out", 0, 1).todo(24)) == 1
    rerank(told)
    assert (tmp_path / "out" / "run.trec").read_bytes() == run


def test_another_recipe_does_not_mix_its_scores_in(folder, tmp_path):
    rerank(recipe(folder, tmp_path / "out"))
    with pytest.raises(RecipeError, match="holds a run of another recipe"):
        rerank(recipe(folder, tmp_path / "out", "weight=2.0"))


@pytest.mark.parametrize("side", ["image", "text"])
def test_pictures_that_no_file_has_are_written_with_the_rows(side, tmp_path):
    """The source `pairs` decodes them; what is written is asked again from paths alone."""
    save(seeing(tmp_path / "base"), tmp_path / "model")
    told = [{"id": f"r{at}", "image": f"{at % 2}.png", "caption": f"a red car {at}"} for at in range(3)]
    for at in range(2):
        picture(at).save(tmp_path / f"{at}.png")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in told))
    pairs = {"name": "jsonl", "path": str(tmp_path / "pairs.jsonl"), "id": "id"}
    data = {"name": "pairs", "data": pairs, "query": side}
    changes = [f"data={json.dumps(data)}", f"model={tmp_path / 'model'}"]
    out = rerank(recipe(tmp_path, tmp_path / "out", *changes))
    assert len(list((out / "images").iterdir())) == 2
    rows = SOURCES.decode({"name": "candidates", "path": str(out / "candidates.jsonl")}).build()
    model = vlalign.load(tmp_path / "model")
    for row in rows:
        assert bool(row["query"].images) == (side == "image") != bool(row["candidates"][0].images)
        [scores] = model.score([row["query"]], [row["candidates"]])
        found = torch.tensor(row["numbers"]["rerank_score"])
        torch.testing.assert_close(found, scores, atol=1e-5, rtol=0)
