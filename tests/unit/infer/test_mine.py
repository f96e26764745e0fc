"""Mining: the ranks of a loop over all pairs, whole after any stop, the same on any number of processes."""

import json
import time
from threading import Thread

import pytest
import torch

import vlalign
from tests.language_models import reranker
from tests.unit.infer.mined import lines, lines_alive, looped, recipe, world, write
from vlalign.evals.runs import read_run
from vlalign.infer import mine as module
from vlalign.infer import nearest
from vlalign.infer.mine import mine
from vlalign.infer.parts import Parts
from vlalign.infer.pool import gathered
from vlalign.models.weights import save
from vlalign.registry import SOURCES
from vlalign.types import DataError, RecipeError, UserError

FILES = ("run.trec", "candidates.jsonl", "mined.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def scores(folder):
    return looped(folder)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    return mine(recipe(folder, tmp_path_factory.mktemp("whole") / "out"))


def told(out):
    return json.loads((out / "mined.json").read_text())


def reference(folder, scores, k=4, window=(1, 20), keep=lambda score, low: True):
    """Ranking within the window, negatives, and positives no lower than it, of each query."""
    found = {}
    for row in lines(folder / "rows.jsonl"):
        own = scores[row["id"]]
        right = {each["id"] for each in row["candidates"] if each["label"] > 0}
        order = sorted((id for id in own if id not in right), key=lambda id: (own[id], id), reverse=True)
        ranks = {id: 1 + sum((own[x], x) > (own[id], id) for x in own if x not in right) for id in own}
        assert [ranks[id] for id in order] == [*range(1, len(order) + 1)]
        within = [id for id in order if window[0] <= ranks[id] <= window[1]]
        low = min((own[id] for id in right), default=None)
        texts = {
            each.get("text", "") for each in row["candidates"] if each["id"] in right and "image" not in each
        }
        good = [id for id in within if low is None or keep(own[id], low)]
        found[row["id"]] = within, good[:k], {id for id in right if ranks[id] <= window[1]}, right, texts
    return found


@pytest.mark.parametrize(
    ("fields", "keep"),
    [
        ({}, lambda score, low: True),
        ({"window": [3, 9], "k": 2}, lambda score, low: True),
        ({"margin": 0.02}, lambda score, low: score <= low - 0.02),
        ({"relative_margin": 0.03, "k": 2}, lambda score, low: score <= low - 0.03 * abs(low)),
        ({"window": [1, 200], "k": 3}, lambda score, low: True),
    ],
)
def test_ranks_and_negatives_are_those_of_a_loop(fields, keep, folder, scores, tmp_path):
    out = mine(recipe(folder, tmp_path / "out", near_duplicate=None, **fields))
    k, window = fields.get("k", 4), fields.get("window", (1, 20))
    run, rows = read_run(out / "run.trec"), {row["id"]: row for row in lines(out / "candidates.jsonl")}
    recalls = []
    for id, (within, good, found, right, _) in reference(folder, scores, k, window, keep).items():
        assert run[id].keys() == {*within, *found}
        assert all(score == pytest.approx(scores[id][each], abs=1e-6) for each, score in run[id].items())
        candidates = rows[id]["candidates"]
        assert [each["id"] for each in candidates if each["label"] == 0] == good
        assert {each["id"] for each in candidates if each["label"] == 2} == right
        order = [(each["score"], each["id"]) for each in candidates]
        assert order == sorted(order, reverse=True)
        recalls += [len(found) / len(right)] if right else []
    assert told(out)["recall"] == pytest.approx(sum(recalls) / len(recalls))
    assert told(out)["documents"] == 68 and told(out)["without_positive"] == 4


def test_rows_are_read_back_with_what_was_said_of_them(folder, whole):
    again = SOURCES.decode({"name": "candidates", "path": str(whole / "candidates.jsonl")}).build()
    before = SOURCES.decode({"name": "candidates", "path": str(folder / "rows.jsonl")}).build()
    assert len(again) == len(before) == 12 and {"score", "label"} <= set(again.numbers)
    for own, old in zip(again, before, strict=True):
        assert own["id"] == old["id"] and own["query"].text == old["query"].text
        assert [path.name for path in own["query"].images] == [path.name for path in old["query"].images]
        assert all(path.is_absolute() and path.exists() for each in own["candidates"] for path in each.images)


def test_positives_may_be_those_that_were_retrieved(folder, scores, tmp_path):
    out = mine(recipe(folder, tmp_path / "out", positives="retrieved", window=[1, 6], number="first"))
    found = reference(folder, scores, window=(1, 6))
    for row in lines(out / "candidates.jsonl"):
        assert {each["id"] for each in row["candidates"] if each["label"]} == found[row["id"]][2]
        assert all("first" in each for each in row["candidates"])
    assert 0 < told(out)["recall"] < 1


@pytest.mark.parametrize("window", [(1, 6), (1, 200)])
def test_what_other_queries_come_with_may_be_passed_over(window, folder, scores, tmp_path):
    out = mine(recipe(folder, tmp_path / "out", documents="corpus", window=[*window], near_duplicate=None))
    of_corpus = {each["id"] for each in lines(folder / "corpus.jsonl")}
    own = {query: {id: x for id, x in told.items() if id in of_corpus} for query, told in scores.items()}
    run, rows = read_run(out / "run.trec"), {row["id"]: row for row in lines(out / "candidates.jsonl")}
    for id, (within, good, found, _, _) in reference(folder, own, window=window).items():
        assert run[id].keys() == {*within, *found}
        assert [each["id"] for each in rows[id]["candidates"] if each["label"] == 0] == good


def test_a_text_and_a_picture_are_joined_by_their_weights(folder, tmp_path):
    for fusion in (0.0, 0.3, 1.0):
        out, scores = mine(recipe(folder, tmp_path / f"{fusion}", fusion=fusion)), looped(folder, fusion)
        for id, own in read_run(out / "run.trec").items():
            assert all(score == pytest.approx(scores[id][each], abs=1e-6) for each, score in own.items())


def test_killed_at_any_row_it_goes_on_and_ends_alike(folder, whole, tmp_path, monkeypatch):
    told, plain, asked = recipe(folder, tmp_path / "out"), Parts.add, []

    def killed(self, row, found):
        asked.append(row)
        if len(asked) == 6:
            with self.own.open("a") as file:
                file.write('{"row": 5, "pool": "x", "wind')
            raise KeyboardInterrupt
        plain(self, row, found)

    monkeypatch.setattr(Parts, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        mine(told)
    assert (tmp_path / "out" / module.KEPT).exists()
    monkeypatch.setattr(nearest, "embedded", lambda *rest: pytest.fail("all is embedded already"))
    monkeypatch.setattr(Parts, "add", lambda self, row, found: (asked.append(row), plain(self, row, found)))
    out = mine(told)
    assert sorted(asked) == sorted([*range(12), 5])  # the torn one again, no other
    assert not (out / module.KEPT).exists()
    for name in FILES:
        assert (out / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("first", [0, 2])
def test_processes_share_the_rows_and_the_last_one_writes(first, folder, whole, tmp_path, monkeypatch):
    told = recipe(folder, tmp_path / "out")
    monkeypatch.setenv("WORLD_SIZE", "3")
    found = []
    for rank in [(first + turn) % 3 for turn in range(3)]:
        monkeypatch.setenv("RANK", str(rank))
        found.append(mine(told))
        assert len(lines(tmp_path / "out" / f"part-{rank}.jsonl")) == 4
    assert found == [None, None, tmp_path / "out"]
    for name in FILES:
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes()


def test_a_pool_is_embedded_by_one_process_while_the_others_wait(folder, tmp_path, monkeypatch):
    made, embedded, asked, found = recipe(folder, tmp_path / "out"), nearest.embedded, [], []
    pool = gathered(made.data.build(), folder / "corpus.jsonl", tmp_path / "images")
    model = vlalign.load(folder / "model")

    def slow(*rest):
        asked.append(rest)
        time.sleep(0.5)
        return embedded(*rest)

    def search():
        found.append(nearest.Embedded(model, pool, made, tmp_path / module.KEPT))

    monkeypatch.setattr(nearest, "embedded", slow)
    threads = [Thread(target=search) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(asked) == 1 and len(found) == 3
    assert all((each.queries["q3"] == found[0].queries["q3"]).all() for each in found)


def test_rows_are_written_one_after_the_other(folder, tmp_path, monkeypatch):
    most = lines_alive(monkeypatch)
    mine(recipe(folder, tmp_path / "out"))
    assert len(most) >= 12 and max(most) <= 2


def test_what_is_done_needs_no_model(folder, whole, tmp_path, monkeypatch):
    told, seen = recipe(folder, tmp_path / "out"), []
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert mine(told) is None
    monkeypatch.delenv("WORLD_SIZE")
    assert mine(told, seen.append) == tmp_path / "out" and sum(seen) == 8
    monkeypatch.setattr(module, "load", lambda *args, **more: pytest.fail("nothing is left to mine"))
    assert mine(told) == tmp_path / "out"
    for name in FILES:
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes()


def test_a_reranker_scores_every_query_with_every_document(tmp_path):
    save(reranker(tmp_path / "base", "llama"), tmp_path / "model")
    texts = [
        f"a {colour} {thing}" for colour in ("red", "small", "old") for thing in ("car", "cat", "dog", "tree")
    ]
    rows = [
        {
            "id": f"q{at}",
            "query": f"{text} in the house",
            "candidates": [{"id": f"d{at}", "text": text, "label": 1}],
        }
        for at, text in enumerate(texts)
    ]
    write(tmp_path / "rows.jsonl", rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "BLOCK", 5)
        out = mine(recipe(tmp_path, tmp_path / "out", corpus=None, window=[2, 8], near_duplicate=None))
    model, run = vlalign.load(tmp_path / "model"), read_run(out / "run.trec")
    for at, row in enumerate(lines(out / "candidates.jsonl")):
        [own] = model.score([rows[at]["query"]], [texts])
        order = own.argsort(descending=True).tolist()
        rest = [f"d{place}" for place in order if place != at]
        assert [each["id"] for each in row["candidates"] if not each["label"]] == rest[1:5]
        assert run[row["id"]].keys() - {f"d{at}"} == set(rest[1:8])
        for each in row["candidates"]:
            assert each["score"] == pytest.approx(float(own[int(each["id"][1:])]), abs=1e-4)


def test_ties_that_no_search_can_end_within_are_broken_by_the_rule(folder, tmp_path):
    """60 documents say the same, so that the best 5 are known only when all are seen."""
    rows = [{"id": "q", "query": "a red cat", "candidates": [{"id": "x", "text": "a blue dog", "label": 1}]}]
    corpus = [{"id": f"d{at}", "text": "a red cat at night"} for at in range(60)]
    paths = {name: str(write(tmp_path / name, told)) for name, told in (("rows", rows), ("corpus", corpus))}
    data = {"name": "candidates", "path": paths["rows"]}
    out = mine(recipe(folder, tmp_path / "out", data=data, corpus=paths["corpus"], window=[1, 5], k=2))
    order = sorted((each["id"] for each in corpus), reverse=True)
    assert [line.split()[2] for line in (out / "run.trec").read_text().splitlines() if " d" in line] == order[
        :5
    ]
    [row] = lines(out / "candidates.jsonl")
    assert [each["id"] for each in row["candidates"] if not each["label"]] == order[:1]
    assert told(out)["excluded"] == {"repeated": 4} and told(out)["fewer_than_k"] == 1


def test_pictures_that_no_file_has_are_written_once(folder, tmp_path):
    told = [{"id": f"r{at}", "image": str(folder / f"{at}.png"), "caption": f"thing {at}"} for at in range(6)]
    pairs = {"name": "jsonl", "path": str(write(tmp_path / "pairs.jsonl", told)), "id": "id"}
    for side in ("text", "image"):
        data = {"name": "pairs", "data": pairs, "query": side}
        out = mine(recipe(folder, tmp_path / side, data=data, corpus=None, window=[1, 3], k=2))
        assert len(list((out / "images").iterdir())) == 6
        rows = SOURCES.decode({"name": "candidates", "path": str(out / "candidates.jsonl")}).build()
        model = vlalign.load(folder / "model")
        for at, row in enumerate(rows):
            assert row["candidate_ids"][row["numbers"]["label"].index(1)] == f"r{at}"
            items = [row["query"], *row["candidates"]]
            assert all(bool(each.images) != (side == "text") for each in items[:1])
            assert all(bool(each.images) == (side == "text") and len(each.images) < 2 for each in items[1:])
            query, *rest = [each.images[0] if each.images else each.text for each in items]
            torch.testing.assert_close(
                torch.tensor(row["numbers"]["score"]), model.score([query], [rest])[0], atol=1e-6, rtol=0
            )


def test_what_cannot_be_read_is_told_and_never_scored(folder, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n")
    right = [{"id": "broken", "image": "bad.png", "label": 1}, {"id": "good", "text": "a dog", "label": 1}]
    rows = [{"id": f"q{at}", "query": query, "candidates": right} for at, query in enumerate(["a", "b", "c"])]
    rows[1]["query"] = {"image": "bad.png"}
    corpus = [{"id": "d1", "text": "a cat"}, {"id": "d2", "image": "none.png"}, {"id": 5, "image": "bad.png"}]
    paths = {
        name: str(write(tmp_path / name, each)) for name, each in (("rows", rows), ("corpus", [*corpus, {}]))
    }
    data = {"name": "candidates", "path": paths["rows"]}
    out = mine(recipe(folder, tmp_path / "out", data=data, corpus=paths["corpus"]))
    found = told(out)
    assert found["unreadable_documents"] == {"truncated": 2, "missing_file": 1} and found["bad"] == {
        "1": "truncated"
    }
    assert found["skipped"] == {"no_id": 1} and found["documents"] == 5 and found["recall"] == 0.5
    assert [{each["id"] for each in row["candidates"]} for row in lines(out / "candidates.jsonl")] == [
        {"d1", "good"}
    ] * 2
    rows = [{"id": "q", "query": "a", "candidates": right[:1]}]
    data["path"] = str(write(tmp_path / "none", rows))
    with pytest.raises(UserError, match="no document can be read"):
        mine(recipe(folder, tmp_path / "other", data=data, corpus=None))


def test_ids_that_are_places_hold_within_a_query(folder, tmp_path):
    rows = [
        {"query": f"query {at}", "pos": [f"text {at}"], "neg": ["shared", f"other {at}"]} for at in range(3)
    ]
    data = {"name": "flag_embedding", "path": str(write(tmp_path / "rows", rows))}
    out = mine(recipe(folder, tmp_path / "out", data=data, corpus=None))
    assert told(out)["documents"] == 7
    names = {"rows:1/0", "rows:1/1", "rows:1/2", "rows:2/0", "rows:2/2", "rows:3/0", "rows:3/2"}
    assert all(own.keys() == names for own in read_run(out / "run.trec").values())
    for at, row in enumerate(lines(out / "candidates.jsonl"), 1):
        assert [each["id"] for each in row["candidates"] if each["label"]] == [f"rows:{at}/0"]
    said = {"s": "SHARED", "t": "text 1", "t2": "Text 1", "0": "more"}
    corpus = [{"id": id, "text": text} for id, text in said.items()]
    path = str(write(tmp_path / "corpus", corpus))
    out = mine(recipe(folder, tmp_path / "more", data=data, corpus=path))
    names = {*(names - {"rows:1/1", "rows:2/0"}), *said}
    assert all(own.keys() == names for own in read_run(out / "run.trec").values())
    right = [each["id"] for each in lines(out / "candidates.jsonl")[1]["candidates"] if each["label"]]
    assert right == ["t"] and told(out)["excluded"]["same_as_positive"] == 1


@pytest.mark.parametrize(
    ("candidate", "more", "said"),
    [
        (
            {"id": "t0", "text": "not what t0 is"},
            {},
            "'t0' is one document of the corpus .* and another one of data",
        ),
        ({"id": "p0", "image": "1.png"}, {}, "'p0' is one document of the corpus"),
        ({"id": "two words", "text": "x"}, {}, "'two words' is an id with blanks, which a run cannot hold"),
    ],
)
def test_ids_that_mean_two_things_are_told(candidate, more, said, folder, tmp_path):
    path = write(folder / "odd.jsonl", [{"id": "q", "query": "x", "candidates": [{**candidate, "label": 1}]}])
    with pytest.raises(DataError, match=said):
        mine(recipe(folder, tmp_path / "out", data={"name": "candidates", "path": str(path)}, **more))


def test_a_candidate_whose_picture_lies_elsewhere_is_the_corpus_own(folder, tmp_path):
    (tmp_path / "copy.png").write_bytes((folder / "0.png").read_bytes())
    rows = [{"id": "q", "query": "x", "candidates": [{"id": "p0", "image": "copy.png", "label": 1}]}]
    data = {"name": "candidates", "path": str(write(tmp_path / "rows", rows))}
    out = mine(recipe(folder, tmp_path / "out", data=data))
    assert told(out)["documents"] == 56


def test_embeddings_of_other_documents_are_not_used(folder, tmp_path, monkeypatch):
    path, plain = write(folder / "before.jsonl", lines(folder / "corpus.jsonl")), Parts.add
    told = recipe(folder, tmp_path / "out", corpus=str(path))
    monkeypatch.setattr(Parts, "add", lambda *rest: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mine(told)
    monkeypatch.setattr(Parts, "add", plain)
    write(path, lines(folder / "corpus.jsonl")[::-1])
    run, other = (read_run(mine(each) / "run.trec") for each in (told, recipe(folder, tmp_path / "x")))
    assert run.keys() == other.keys() and all(run[id] == pytest.approx(other[id]) for id in run)


def test_rows_of_other_documents_are_not_mixed(folder, tmp_path, monkeypatch):
    path = write(folder / "changed.jsonl", lines(folder / "corpus.jsonl"))
    told = recipe(folder, tmp_path / "out", corpus=str(path))
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert mine(told) is None
    monkeypatch.delenv("WORLD_SIZE")
    write(path, lines(folder / "corpus.jsonl")[:-1])
    with pytest.raises(UserError, match="its queries or documents are not those that a part of the rows"):
        mine(told)
    with pytest.raises(RecipeError, match="holds a run of another recipe"):
        mine(recipe(folder, tmp_path / "out", k=3))
