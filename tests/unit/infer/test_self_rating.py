"""Ratings beside a right answer: by hand, beside which answer, kept for whom, and learnt from."""

import json

import pytest
import torch

import vlalign
from tests.language_models import language_model
from tests.unit.infer.mined import lines, write
from vlalign.infer.judge import judge
from vlalign.infer.judges.likert import Likert
from vlalign.infer.judges.self_rating import SelfRatingJudge, rated
from vlalign.models.weights import save
from vlalign.recipe.decode import load_recipe
from vlalign.registry import JUDGES, MODELS
from vlalign.train.loop import train
from vlalign.types import Item, RecipeError, UserError

PROMPT = {"name": "chat", "system": "From 0 to 9?", "text": "{query}\n{document}"}
REFERENCE = {"text": "{query} (such as {reference})"}
TEXTS = ["a red car near a tree", "a cat", "a small dog in the house"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("self_rating")
    language_model(place / "base", "llama")
    save(vlalign.load("recipes/tiny/open_clip").model, place / "encoder")
    return place


def told(folder, **fields):
    model = {"name": "llm_reranker", "id": str(folder / "base"), "prompt": PROMPT}
    own = {"name": "self_rating", "model": model, "encoder": str(folder / "encoder"), "reference": REFERENCE}
    return own | fields


def built(folder, **fields):
    return JUDGES.decode(told(folder, **fields)).build()


def recipe(folder, out, rows, **fields):
    own = {"verb": "judge", "out": str(out), "judges": [told(folder)], "known": "label", "number": "rating"}
    own |= {"data": {"name": "candidates", "path": str(write(out.with_suffix(".jsonl"), rows))}}
    own |= {"store": str(folder / f"{out.parent.name}.sqlite"), **fields}
    path = out.with_suffix(".yaml")
    path.write_text(json.dumps(own))
    return load_recipe(path)


def rows(count=12):
    return [
        {
            "id": f"q{at}",
            "query": f"what is {at}",
            "candidates": [
                {"id": str(n), "text": f"{text} {at}", "label": int(n in (1, 2))}
                for n, text in enumerate(TEXTS)
            ],
        }
        for at in range(count)
    ]


def measured(judge, query, texts, right):
    [found] = judge.measure(Item(text=query), [Item(text=each) for each in texts], Item(text=right))
    return [own for [own] in found.values()]


def test_it_is_the_mean_of_what_the_model_expects_and_of_the_cosine(folder):
    spec = MODELS.decode(told(folder)["model"])
    likert = Likert(model=spec, lowest=0, highest=9).build()
    [asked] = likert.measure(Item(text="a car (such as a red car)"), [Item(text=each) for each in TEXTS])
    [cosine] = vlalign.load(folder / "encoder").score(["a red car"], [TEXTS])
    parts = [asked[at][0] for at in range(3)], [9 * min(max(x, 0.0), 1.0) for x in cosine.tolist()]
    for share in (0.0, 0.25, 0.5, 1.0):
        found = measured(built(folder, share=share), "a car", TEXTS, "a red car")
        wanted = [share * a + (1 - share) * b for a, b in zip(*parts, strict=True)]
        assert found == pytest.approx(wanted, abs=1e-4) and all(0 <= each <= 9 for each in found)


def test_the_mean_rises_with_both_and_stays_within_the_scale():
    grid = torch.linspace(0, 9, 10), torch.linspace(-1, 1, 21)
    both = torch.stack([rated(torch.full((21,), float(x)), grid[1], 0.5) for x in grid[0]])
    assert (
        (both.diff(dim=0) > 0).all()
        and (both.diff(dim=1) >= 0).all()
        and (both[:, 10:].diff(dim=1) > 0).all()
    )
    assert both.min() == 0 and both.max() == 9


def test_whatever_tells_another_rating_has_another_digest(folder):
    others = [{"share": 0.4}, {"reference": {"text": "{query} {reference}"}}]
    others += [{"encoder": "recipes/tiny/open_clip"}]
    assert len({built(folder, **fields).digest for fields in ({}, *others)}) == 4
    model = told(folder)["model"]
    assert built(folder, model=model | {"reference": REFERENCE}).digest == built(folder).digest
    with pytest.raises(UserError, match="likert expects a number from 0 to 9"):
        built(folder, model=model | {"prompt": "chat"})
    with pytest.raises(UserError, match="likert expects a number from 0 to 9"):  # its words are no question
        built(folder, model=model | {"prompt": {"name": "chat", "yes": "9", "no": "0"}})
    with pytest.raises(ValueError, match="share must be between 0 and 1, got 2"):
        JUDGES.decode(told(folder, share=2.0))


def test_each_is_rated_beside_the_first_that_is_known_and_a_new_right_answer_is_asked_anew(
    folder, tmp_path, monkeypatch
):
    plain, asked = SelfRatingJudge.measure, []

    def measure(self, query, candidates, right):
        asked.append((query.text, right.text, len(candidates)))
        return plain(self, query, candidates, right)

    monkeypatch.setattr(SelfRatingJudge, "measure", measure)
    own = rows(4)
    out = judge(recipe(folder, tmp_path / "first", own))
    assert asked == [(f"what is {at}", f"a cat {at}", 3) for at in range(4)]
    found = [[each["rating"] for each in row["candidates"]] for row in lines(out / "candidates.jsonl")]
    by_hand = measured(built(folder), "what is 2", [f"{each} 2" for each in TEXTS], "a cat 2")
    assert found[2] == pytest.approx(by_hand, abs=1e-5)
    account = json.loads((out / "judged.json").read_text())
    assert account["queries"] == 4 and "score" not in account and "informative" not in account
    asked.clear()
    own[1]["candidates"][1]["label"] = 0  # now the next one is the right answer
    own[3]["candidates"][1]["label"] = own[3]["candidates"][2]["label"] = 0  # and here there is none
    out = judge(recipe(folder, tmp_path / "again", own))
    assert asked == [("what is 1", "a small dog in the house 1", 3)]
    assert json.loads((out / "judged.json").read_text())["bad"] == {
        "3": "no_right_answer: no candidate has a number 'label' above 0, and each is read beside one"
    }


def test_what_is_right_and_not_known_tells_of_it(folder, tmp_path):
    own = rows()
    for row in own:
        for each in row["candidates"]:
            each["right"], each["label"] = each["label"], int(each["id"] == "1")
    out = judge(recipe(folder, tmp_path / "out", own, label="right"))
    told = json.loads((out / "judged.json").read_text())
    assert told["counted"] == 2 * len(own) and "score" in told  # the right answer itself is no test
    with pytest.raises(RecipeError, match="measures beside a right answer; set known to who is one"):
        recipe(folder, tmp_path / "none", own, known=None)


def test_a_reranker_learns_from_it_and_is_asked_alone(folder, tmp_path):
    out = judge(recipe(folder, tmp_path / "rated", rows()))
    changes = [f"out={tmp_path / 'learnt'}", f"data.train.path={out / 'candidates.jsonl'}", "log.trackers=[]"]
    learnt = train(load_recipe("recipes/tiny/self_judge.yaml", changes))
    told = [json.loads(line) for line in (learnt / "log.jsonl").read_text().splitlines()[1:]]
    assert len(told) == 3 and {"self_judge.beside", "self_judge.alone", "self_judge.kl"} <= set(
        told[0]["parts"]
    )
    changes = [f"out={tmp_path / 'judged'}", f"data.path={out / 'candidates.jsonl'}", "choose=null"]
    changes += [f"judges.0.model.id={learnt / 'model'}", f"store={tmp_path / 's.sqlite'}"]
    made = judge(load_recipe("recipes/judge/self_judge.yaml", changes))
    account = json.loads((made / "judged.json").read_text())
    assert account["abstained"]["coverage"] == pytest.approx(0.9, abs=0.03)
    assert set(account["alone"]) >= {"likert", "overlap"}
