"""All candidates in one prompt: what a number's share is, that places say nothing, what is kept of a list."""

import json
from math import log

import pytest
import torch

from tests.language_models import language_model
from tests.multimodal_models import picture
from tests.multimodal_models import reranker as seeing
from tests.unit.infer.mined import lines, write
from vlalign.infer.judge import judge
from vlalign.infer.judges.listwise import ListwiseJudge, orders
from vlalign.infer.score_store import said
from vlalign.models.lists import Lists
from vlalign.recipe.decode import load_recipe
from vlalign.registry import JUDGES, MODELS
from vlalign.types import BadRow, Item

QUERY = Item(text="a red car")
ITEMS = [Item(text=text) for text in ("a red car near a tree", "a cat", "no", "the small dog in the house")]
SLOTS = torch.tensor([3.0, 0.5, -1, 2, 0, 1, -2, 4, 7])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return language_model(tmp_path_factory.mktemp("listwise") / "base", "llama")


def spec(folder, **more):
    return {"name": "llm_reranker", "id": str(folder), "lists": {"length": 512}} | more


def built(folder, **more):
    return JUDGES.decode({"name": "listwise", "model": spec(folder)} | more).build()


def shares(judge, items, query=QUERY):
    [told] = judge.measure(query, items)
    return [told[at][0] for at in range(len(items))]


def naive(model, query, items, order):
    """Shares by candidate, of each order: whole prompts, transformers alone, a loop over candidates."""
    found = []
    for own in order:
        prompt = model.taught.read(query, [items[at] for at in own])[1]
        with torch.no_grad():
            logits = model.net(input_ids=torch.tensor([prompt.ids])).logits[0, -1].double()
        words = [model.process.tokenizer(str(n + 1))["input_ids"][-1] for n in range(len(items))]
        odds = [float(logits[word].exp()) for word in words]
        found.append({at: odds[place] / sum(odds) for place, at in enumerate(own)})
    return found


@pytest.mark.parametrize("wanted", [None, 1, 2, 8])
def test_the_measurement_is_the_log_of_the_mean_share_over_orders(folder, wanted, monkeypatch):
    model = MODELS.decode(spec(folder)).build().eval()
    order = orders([said(each) for each in ITEMS], wanted)
    assert len(order) == (wanted or 4)
    each = naive(model, QUERY, ITEMS, order)
    expected = [log(sum(own[at] for own in each) / len(each)) for at in range(4)]
    assert shares(built(folder, orders=wanted), ITEMS) == pytest.approx(expected, abs=1e-4)
    assert len({round(x, 4) for x in expected}) == 4
    monkeypatch.setattr("vlalign.infer.judges.listwise.TOKENS", 1)  # a forward each
    assert shares(built(folder, orders=wanted), ITEMS) == pytest.approx(expected, abs=1e-4)


def test_each_stands_in_each_place_equally_often():
    for count in range(1, 10):
        told = [f"text {at}" for at in range(count)]
        for rounds in (1, 3):
            found = orders(told, None if rounds == 1 else rounds * count)
            for own in found:
                assert sorted(own) == [*range(count)]
            for place in range(count):
                assert sorted(own[place] for own in found) == sorted([*range(count)] * rounds)
    told = [f"text {at}" for at in range(8)]
    assert len({tuple(own) for own in orders(told, 16)}) == 16  # the second round is of another shuffle
    places = [[own.index(at) for own in orders(told, 2)] for at in range(8)]
    assert all(abs(a - b) == 4 for a, b in places)  # a few are far from each other
    assert orders(told, 8, seed=1) != orders(told, 8)


class BySlot(ListwiseJudge):
    """Answers by place alone."""

    def logits(self, query, candidates, order):
        return SLOTS[: len(candidates)].expand(len(order), -1)


def test_who_answers_by_place_alone_gives_all_candidates_one_score(folder):
    one = BySlot(JUDGES.decode({"name": "listwise", "model": spec(folder)}))
    for count in (1, 2, 4, 9):
        items = [Item(text=f"thing {at}") for at in range(count)]
        assert shares(one, items) == pytest.approx([-log(count)] * count, abs=1e-12)
    once = BySlot(JUDGES.decode({"name": "listwise", "model": spec(folder), "orders": 1}))
    assert sorted(shares(once, ITEMS)) == pytest.approx(sorted(SLOTS[:4].double().log_softmax(0).tolist()))


def test_the_order_of_the_row_says_nothing_and_shares_are_of_one_whole(folder):
    one = built(folder, orders=2)
    found = shares(one, ITEMS)
    turned = shares(one, ITEMS[2:] + ITEMS[:2])
    assert turned == pytest.approx(found[2:] + found[:2], abs=1e-5)
    assert sum(torch.tensor(found).exp().tolist()) == pytest.approx(1, abs=1e-5)
    assert shares(built(folder), ITEMS) != pytest.approx(found, abs=1e-4)


def test_orders_prompts_and_weights_have_digests_of_their_own(folder, tmp_path):
    other = language_model(tmp_path / "other", "llama", seed=1)
    plain = {"name": "listwise", "model": spec(folder)}
    several = [
        plain,
        plain | {"orders": 4},
        plain | {"seed": 1},
        plain | {"model": spec(folder, lists={"length": 500})},
        plain | {"model": spec(folder, lists={"length": 512, "after": "("})},
        plain | {"model": spec(other)},
    ]
    assert len({JUDGES.decode(each).build().digest for each in several}) == 6
    untold = JUDGES.decode({"name": "listwise", "model": {"name": "llm_reranker", "id": str(folder)}}).build()
    assert untold.spec.lists == Lists()


def test_pictures_are_seen_by_their_candidates(tmp_path):
    seeing(tmp_path / "base", "qwen3_vl")
    model = {"name": "mllm_reranker", "id": str(tmp_path / "base"), "lists": {"length": 512}}
    for at in range(3):
        picture(at).save(tmp_path / f"{at}.png")
    paths = [Item(text="a cat", images=(tmp_path / f"{at}.png",)) for at in range(3)]
    one = JUDGES.decode({"name": "listwise", "model": model}).build()
    live = one.scorer.model
    opened = [Item(text="a cat", images=(picture(at),)) for at in range(3)]
    found = shares(one, opened)
    assert len({round(x, 5) for x in found}) == 3
    totals = [0.0] * 3
    for own in orders([said(each) for each in opened]):
        read = live.taught.read(QUERY, [opened[at] for at in own])
        with torch.no_grad():
            numbers = live({"pairs": live.taught.join([read])}).numbers.double().softmax(0)
        for at, share in zip(own, numbers.tolist(), strict=True):
            totals[at] += share / 3
    assert found == pytest.approx([log(each) for each in totals], abs=1e-4)
    assert len(shares(one, paths)) == 3  # paths are opened


def judged(folder, tmp_path, rows, out):
    told = {"verb": "judge", "out": str(tmp_path / out), "store": str(tmp_path / "s.sqlite")}
    told["data"] = {"name": "candidates", "path": str(write(tmp_path / f"{out}.jsonl", rows))}
    told["judges"] = [{"name": "listwise", "model": spec(folder)}]
    (tmp_path / f"{out}.yaml").write_text(json.dumps(told))
    found = judge(load_recipe(tmp_path / f"{out}.yaml"))
    rows = lines(found / "candidates.jsonl")
    return {row["id"]: {each["text"]: each["judge_score"] for each in row["candidates"]} for row in rows}


def row(name, *texts):
    candidates = [{"id": f"{name}{at}", "text": text, "label": at % 2} for at, text in enumerate(texts)]
    return {"id": name, "query": "a red car", "candidates": candidates}


def test_a_list_is_measured_once_and_one_with_another_candidate_anew(folder, tmp_path, monkeypatch):
    asked, plain = [], ListwiseJudge.measure

    def measure(self, query, candidates):
        asked.append([each.text for each in candidates])
        return plain(self, query, candidates)

    monkeypatch.setattr(ListwiseJudge, "measure", measure)
    first = judged(folder, tmp_path, [row("q", "a cat", "a dog", "a tree")], "first")
    assert asked == [["a cat", "a dog", "a tree"]]
    again = judged(folder, tmp_path, [row("p", "a tree", "a cat", "a dog", "a cat")], "again")
    assert len(asked) == 1 and again["p"] == first["q"]  # in another order, one of them twice
    more = judged(folder, tmp_path, [row("q", "a cat", "a dog", "a tree", "no")], "more")
    assert asked[1:] == [["a cat", "a dog", "a tree", "no"]]  # none of them is known in this company
    assert all(more["q"][text] != first["q"][text] for text in first["q"])
    fewer = judged(folder, tmp_path, [row("q", "a cat", "a dog")], "fewer")
    assert asked[2:] == [["a cat", "a dog"]] and set(fewer["q"]) == {"a cat", "a dog"}


def test_a_longer_list_is_told_and_costs_its_own_row_alone(folder, tmp_path):
    with pytest.raises(BadRow, match="10 candidates, and a list has 9 at most"):
        shares(built(folder), [Item(text=f"thing {at}") for at in range(10)])
    long = row("long", *(f"thing {at}" for at in range(10)))
    found = judged(folder, tmp_path, [long, row("q", "a cat", "a dog")], "out")
    assert set(found) == {"q"}
    bad = json.loads((tmp_path / "out" / "judged.json").read_text())["bad"]
    assert set(bad) == {"0"} and bad["0"].startswith("long_list: 10 candidates")
    with pytest.raises(ValueError, match="orders must be >= 1"):
        JUDGES.get("listwise")(model=None, orders=0)
    with pytest.raises(ValueError, match="it reads pairs beside one, and this reads lists"):
        JUDGES.decode({"name": "listwise", "model": spec(folder, lists=None, reference={})})
