"""The comparison of rerankers in few bits: what it measures, and all of it once with a tiny model."""

import itertools
import json
import math
import pickle

import compare_quantization as compare
import numpy as np
import pytest
import torch
from compare_quantization import ARMS, GPTQ, IMPORTANCES, ROUND, Answers, Cell, Setting, cells

import vlalign
from tests.language_models import reranker
from vlalign.models.weights import save
from vlalign.registry import IMPORTANCES as REGISTERED

INF = -math.inf
SOME = (ROUND, GPTQ, "attention_concentration")


def test_all_that_is_registered_is_compared():
    assert sorted(IMPORTANCES) == REGISTERED.names() and IMPORTANCES[0] == "attention_concentration"


def test_rounding_alone_is_measured_once():
    found = cells(3)
    assert len(found) == 2 * 3 * len(ARMS) - 2 == len(set(found))
    assert [cell for cell in found if cell.arm == ROUND and not cell.rotate] == [Cell(ROUND, False, 0)]


def test_divergence_is_that_of_a_loop():
    random = np.random.default_rng(0)
    whole, own = random.normal(size=(2, 6, 5))
    whole[2:, 4], own[2:, 4] = INF, INF
    for a, b, found in zip(whole, own, compare.divergence(whole, own), strict=True):
        there = [at for at in range(5) if a[at] > INF]
        p, q = ([math.exp(x[at]) / sum(math.exp(x[k]) for k in there) for at in there] for x in (a, b))
        assert found == pytest.approx(sum(x * math.log(x / y) for x, y in zip(p, q, strict=True)))
    assert compare.divergence(whole, whole) == pytest.approx(0) and (compare.divergence(whole, own) > 0).all()
    np.testing.assert_allclose(compare.divergence(whole, own + 7), compare.divergence(whole, own))


def test_agreement_counts_pairs():
    random = np.random.default_rng(1)
    whole, own = random.normal(size=(2, 6, 5))
    whole[2:, 4], own[2:, 4] = INF, INF
    for a, b, found in zip(whole, own, compare.agreement(whole, own), strict=True):
        pairs = [(i, j) for i, j in itertools.combinations(range(5), 2) if a[j] > INF]
        signs = [np.sign(a[i] - a[j]) * np.sign(b[i] - b[j]) for i, j in pairs]
        assert found == pytest.approx(sum(signs) / len(pairs))
    assert compare.agreement(whole, 3 * whole + 1) == pytest.approx(1)
    assert compare.agreement(whole[:2], np.zeros((2, 5))).tolist() == [0, 0]


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantization")
    save(reranker(folder / "plain", "llama"), folder / "reranker")
    lines = []
    for at in range(8):
        told = [
            {"id": f"d{n}", "text": text, "label": int(n == at % 3), "score": 1.0 - n / 10}
            for n, text in enumerate(("a red car", "a small cat near a tree", f"a dog {at}"))
        ]
        lines.append(json.dumps({"id": f"q{at}", "query": f"a house and {at} dogs", "candidates": told}))
    for name in ("train/taught", "test/candidates"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Setting(reranker=str(folder / "reranker"), rows=str(folder), samples=3, queries=5)


def test_losses_of_texts_in_a_batch_are_those_of_each_alone(setting, monkeypatch):
    model = vlalign.load(setting.reranker).model
    texts = ["a red car", "a dog", "a small cat near a tree and a house", "the blue house"]
    alone = []
    for text in texts:
        ids = torch.tensor([model.process.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            odds = model.net(ids).logits[0].log_softmax(-1)
        told = [-float(odds[at, each]) for at, each in enumerate(ids[0, 1:].tolist())]
        alone.append(sum(told) / len(told))
    monkeypatch.setattr(compare, "TEXTS", 3)
    np.testing.assert_allclose(compare.log_losses(model, texts), alone, rtol=1e-5)


def test_it_is_measured_once_told_and_goes_on_where_it_stopped(setting, tmp_path, monkeypatch):
    model = vlalign.load(setting.reranker)
    whole = Answers.of(model, setting)
    assert whole.scores.shape == (5, 3) and whole.losses.shape == (5,) and len(pickle.dumps(whole))
    own = whole.measured(whole)
    assert (
        own["kl"] == pytest.approx(0) and own["tau"] == pytest.approx(1) and own["ndcg"] == own["loss"] == 0
    )
    done = compare.complete(tmp_path / "cells.jsonl", setting, whole, 2, arms=SOME)
    assert done.keys() == set(cells(2, SOME)) and len(done) == 11
    assert all(row["kl"] > 0 and row["tau"] <= 1 for row in done.values())
    assert all((row["error"] is None) == (cell.arm == ROUND) for cell, row in done.items())
    lines = compare.table(done, 2, SOME)
    assert len(lines) == 2 + 2 * len(SOME) and len({line.count("|") for line in lines}) == 1
    assert "the first stage's" in compare.head(setting, whole, Answers.rounded(model, setting), 2)

    def fail(*args):
        raise AssertionError("it was measured already")

    monkeypatch.setattr(compare, "run", fail)
    again = compare.complete(tmp_path / "cells.jsonl", setting, whole, 2, arms=SOME)
    assert {**again} == {**done}
    other = Setting(reranker=setting.reranker, rows=setting.rows, samples=4, queries=5)
    with pytest.raises(AssertionError, match="it was measured already"):
        compare.complete(tmp_path / "cells.jsonl", other, whole, 2, arms=SOME)


def test_gains_are_above_zero_where_an_arm_is_better():
    told = {GPTQ: (0.2, 0.5), ROUND: (0.5, 0.1), "attention_concentration": (0.1, 0.9)}
    done = {}
    for cell in cells(3, SOME):
        kl, tau = told[cell.arm]
        less = {"kl": kl + cell.seed / 100, "loss": kl, "tau": tau, "ndcg": tau - cell.seed / 90}
        done[cell] = {**less, "error": None if cell.arm == ROUND else 0.1}
    found, p = compare.compared(done, True, "kl", 3, SOME)
    assert found.keys() == p.keys() == {ROUND, "attention_concentration"}
    assert found["attention_concentration"].mean == pytest.approx(0.1)
    assert found[ROUND].mean == pytest.approx(-0.3)
    assert compare.compared(done, True, "tau", 3, SOME)[0][ROUND].mean == pytest.approx(-0.4)
    lines = compare.table(done, 3, SOME)
    assert "helps" in lines[-1] and "hurts" in lines[5] and "10.00" in lines[-1]
