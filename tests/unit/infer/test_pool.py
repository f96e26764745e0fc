"""What a pool to mine in holds: judgements of what was not retrieved, and pictures that cannot be opened."""

import json

import pytest

import vlalign
from tests.multimodal_models import picture, reranker
from tests.unit.infer.mined import TEXTS, lines, recipe, world, write
from vlalign.evals.runs import read_run
from vlalign.infer.mine import mine
from vlalign.models.weights import save
from vlalign.types import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return world(tmp_path_factory.mktemp("world"))


def told(out):
    return json.loads((out / "mined.json").read_text())


def test_a_reranker_passes_over_pictures_that_cannot_be_opened(tmp_path):
    save(reranker(tmp_path / "base"), tmp_path / "model")
    for at in range(3):
        picture(at).save(tmp_path / f"{at}.png")
    picture(0).resize((400, 400)).save(tmp_path / "large.png")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n")
    right = [{"id": "torn", "image": "torn.png", "label": 1}, {"id": "d0", "image": "0.png", "label": 1}]
    rows = [{"id": f"q{at}", "query": query, "candidates": right} for at, query in enumerate(["a", "b"])]
    rows[1]["query"] = {"image": "none.png"}
    write(tmp_path / "rows.jsonl", rows)
    corpus = [{"id": f"d{at}", "image": f"{at}.png"} for at in range(3)]
    write(tmp_path / "corpus.jsonl", [*corpus, {"id": "large", "image": "large.png"}])
    out = mine(recipe(tmp_path, tmp_path / "out", limits={"pixels": 100_000}))
    found = told(out)
    assert found["unreadable_documents"] == {"truncated": 1, "too_many_pixels": 1}
    assert found["bad"] == {"1": "missing_file"} and found["recall"] == 0.5
    [row] = lines(out / "candidates.jsonl")
    assert {each["id"] for each in row["candidates"]} == {"d0", "d1", "d2"}
    for path in tmp_path.glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no document can be read"):
        mine(recipe(tmp_path, tmp_path / "other"))


def judged(folder, rows, retrieved):
    """A set in the form of `mrb`: `rows` of ids, texts and the ids that are right."""
    write(folder / "corpus.jsonl", [{"_id": f"t{at}", "text": text} for at, text in enumerate(TEXTS)])
    write(folder / "queries.jsonl", [{"_id": id, "text": text} for id, text, _ in rows])
    told = [f"{id}\t{each}\t1" for id, _, right in rows for each in right]
    (folder / "qrels.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *told]) + "\n")
    run = [
        f"{id} Q0 {each} {rank} {-rank} t\n" for id, _, _ in rows for rank, each in enumerate(retrieved, 1)
    ]
    (folder / "run.trec").write_text("".join(run))
    return {"name": "mrb", "path": str(folder)}


def test_what_was_not_retrieved_and_is_right_is_no_negative(folder, tmp_path):
    data = judged(tmp_path, [("q", TEXTS[7], ["t3", "t7", "none"])], ["t1", "t3"])
    out = mine(recipe(folder, tmp_path / "out", data=data, corpus=None, near_duplicate=None, k=20))
    [row] = lines(out / "candidates.jsonl")
    labels = {each["id"]: each["label"] for each in row["candidates"]}
    assert {id for id, label in labels.items() if label} == {"t3", "t7"} and len(labels) == 22
    assert "t7" in read_run(out / "run.trec")["q"] and told(out)["recall"] == 1


def test_with_what_was_retrieved_the_window_has_the_best_documents_positives_among_them(folder, tmp_path):
    rows = [(f"q{at}", TEXTS[at], [f"t{at}", f"t{(at + 9) % 40}"]) for at in range(6)]
    fields = {"positives": "retrieved", "window": [1, 10], "k": 10, "near_duplicate": None, "corpus": None}
    data = judged(tmp_path, rows, ["t0", "t1", "t2"])
    out = mine(recipe(folder, tmp_path / "out", data=data, **fields))
    model = vlalign.load(folder / "model")
    found = {row["id"]: row["candidates"] for row in lines(out / "candidates.jsonl")}
    retrieved = 0
    for id, text, right in rows:
        [scores] = model.score([text], [TEXTS])
        best = [f"t{at}" for at in scores.argsort(descending=True).tolist()][:10]
        assert [each["id"] for each in found[id]] == best
        labels = {each["id"] for each in found[id] if each["label"]}
        assert labels == {*right} & {*best} and f"{id.replace('q', 't')}" in labels
        retrieved += len(labels)
    assert told(out)["recall"] == pytest.approx(retrieved / 12) and retrieved < 12
