"""The study of RankMe: what it draws, what it tells of its runs, and that it runs."""

import json
import sys
from importlib import import_module

import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend("scripts")
    return import_module("study_rank_me")


def test_spearman_is_scipys_also_with_ties(script):
    random = np.random.default_rng(0)
    for values in (None, 4):
        x, y = random.random((2, 5, 20)) if values is None else random.integers(values, size=(2, 5, 20))
        wanted = [spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)]
        assert script.spearman(x, y) == pytest.approx(wanted, abs=1e-12)
    assert np.isnan(script.spearman(np.ones(3), np.arange(3)))


def test_what_is_told_of_a_column_of_runs(script):
    quality = np.array([0.1, 0.4, 0.3, 0.2, 0.5, 0.35])
    perfect = script.told(quality * 100, quality, seed=0)
    assert (perfect["rho"], perfect["regret"], perfect["low"]) == pytest.approx((1, 0, 1))
    wrong = script.told(-quality, quality, seed=0)
    assert wrong["rho"] == pytest.approx(-1) and wrong["regret"] == pytest.approx(0.4)
    random = np.random.default_rng(1)
    truth = random.normal(size=60)
    noisy = script.told(truth + 0.7 * random.normal(size=60), truth, seed=0)
    assert 0.5 < noisy["low"] < noisy["rho"] < noisy["high"] < 1
    assert noisy["best"] == truth.max()
    assert noisy["random_regret"] == pytest.approx(truth.max() - truth.mean())


def test_draws_are_repeatable_and_within_their_ranges(script):
    runs = [script.drawn(run, seed=0) for run in range(200)]
    assert runs[7] == script.drawn(7, seed=0) != script.drawn(7, seed=1)
    assert [run["objective"] for run in runs[:3]] == ["info_nce", "sigmoid", "info_nce"]
    for name, (low, high) in script.RANGES.items():
        values = np.log([run[name] for run in runs])
        tenth = np.log(high / low) / 10
        assert np.log(low) <= values.min() < np.log(low) + tenth
        assert np.log(high) - tenth < values.max() <= np.log(high)


def test_four_short_runs(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLALIGN_CACHE", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    lines = []
    for row in range(40):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / f"{row}.png")
        lines.append(json.dumps({"id": f"r{row}", "image": f"{row}.png", "caption": f"a picture {row}"}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    data = f"{{name: jsonl, path: {tmp_path / 'rows.jsonl'}, id: id}}"
    evals = f"evals=[{{name: retrieval, dataset: own, data: {data}}}]"
    out, recipe = tmp_path / "found.json", "recipes/tiny/quickstart.yaml"
    short = ["--runs", "4", "--json", str(out), "--recipe", recipe, f"data.train={data}", evals, "steps=20"]
    monkeypatch.setattr(sys, "argv", ["study", *short])
    script.main()
    found = json.loads(out.read_text())
    assert [run["objective"] for run in found["runs"]] == ["info_nce", "sigmoid"] * 2
    assert all(0 < run["mrr"] <= 1 and 1 < run["image"] < 33 for run in found["runs"])
    assert len({run["mrr"] for run in found["runs"]}) > 1
    assert [(row["among"], row["rank_me"], row["runs"]) for row in found["summary"]] == [
        (among, kind, runs)
        for among, runs in (("info_nce", 2), ("sigmoid", 2), ("all", 4))
        for kind in script.KINDS
    ]
    assert "RankMe against MRR" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["study", "--runs", "3"])
    with pytest.raises(SystemExit):
        script.main()
