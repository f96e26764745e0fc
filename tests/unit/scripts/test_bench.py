"""The frame of the benchmarks, and that the losses that they compare are one."""

import json
import sys
from importlib import import_module

import pytest
import torch


@pytest.fixture
def measure(monkeypatch):
    monkeypatch.syspath_prepend("scripts")
    return import_module("measure")


def touch(mebibytes: int):
    """A step that fills so much memory."""
    return lambda: torch.ones(mebibytes, 2**18)


def run(measure, monkeypatch, benches, *arguments):
    monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
    measure.main(benches, "told")


def one(measure, name, ours, theirs, **more):
    return lambda repeats: [measure.row(name, "anchor", [ours] * repeats, [theirs] * repeats, **more)]


@pytest.mark.parametrize(
    ("at_most", "target", "ratio", "met"),
    [(False, 4, 4, True), (False, 5, 4, False), (True, 0.2, 0.25, False)],
)
def test_a_row_has_medians_and_their_ratio(measure, at_most, target, ratio, met):
    row = measure.row("n", "a", [2, 9, 1], [8, 1, 8], target=target, at_most=at_most, items=16)
    assert (row.ratio, row.met, row.ours, row.theirs, row.repeats) == (ratio, met, 8, 2, 3)
    assert row.spread == ((0.125, 9) if at_most else (1 / 9, 8))


def test_both_sides_are_timed_by_turns(measure, monkeypatch):
    seen = []
    clock = iter(range(100))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    row = measure.compared("n", "a", lambda: seen.append("o"), lambda: seen.append("t"), target=1, repeats=2)
    assert seen == list("ot" * 4) and (row.ours, row.repeats, row.met) == (1, 2, True)


def test_a_short_step_fills_its_turn(measure, monkeypatch):
    seen, clock = [], iter(range(100))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock) / 16)
    row = measure.compared("n", "a", lambda: seen.append("o"), lambda: seen.append("t"), target=1, repeats=1)
    assert seen == [*"otot", *"oooo", *"tttt"] and row.ours == 1 / 16 / 4


def test_the_peak_is_what_the_step_adds(measure):
    assert 250 < measure.peak(touch, 256, warm=(1,)) < 300


def test_a_curve_has_the_slopes_of_its_logarithms(measure):
    row = measure.curve("n", "a", lambda n: 3 * n, lambda n: n**2, [1, 2, 4], unit="MiB")
    assert (round(row.ours, 6), round(row.theirs, 6), row.met) == (1, 2, None)
    assert row.points["theirs"] == [1, 4, 16]


def test_rows_run_again_replace_theirs_and_the_others_stay(measure, monkeypatch, tmp_path, capsys):
    file = tmp_path / "rows.json"
    benches = {name: one(measure, name, 1.0, 2.0, target=1) for name in ("a", "b")}
    run(measure, monkeypatch, benches, "--json", file, "--repeats", "3")
    benches["b"] = one(measure, "b", 4.0, 2.0, target=1, note="why")
    run(measure, monkeypatch, benches, "--only", "b", "--json", file)
    rows = json.loads(file.read_text())
    assert [(row["name"], row["ratio"], row["met"], row["repeats"]) for row in rows] == [
        ("a", 2, True, 3),
        ("b", 0.5, False, 5),
    ]
    assert all(row["commit"] and "torch" in row["machine"] for row in rows)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{measure.BEGIN}\nold\n{measure.END}\nafter\n")
    run(measure, monkeypatch, benches, "--json", file, "--readme", readme)
    told = readme.read_text()
    assert told.startswith("before\n") and told.endswith("\nafter\n") and "old" not in told
    assert "| b | anchor | 4 s | 2 s | 0.5x (0.5 to 0.5) | >= 1x | no: why |" in told
    readme.write_text("nothing")
    with pytest.raises(SystemExit):
        run(measure, monkeypatch, benches, "--json", file, "--readme", readme)
    assert "there is no '<!-- bench" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"), [(("--repeats", "0"), ">= 1, got 0"), (("--readme", "README.md"), "no such file")]
)
def test_mistakes_on_the_command_line_are_told(measure, monkeypatch, capsys, arguments, told):
    with pytest.raises(SystemExit):
        run(measure, monkeypatch, {}, *arguments)
    assert told in capsys.readouterr().err


def test_a_missing_package_is_told(measure, monkeypatch):
    def bench(repeats):
        import_module("no_such_anchor")

    with pytest.raises(SystemExit, match="a needs the package 'no_such_anchor'; pip install"):
        run(measure, monkeypatch, {"a": bench})


def test_every_bench_is_found_under_its_own_name(measure):
    benches = import_module("bench_all").discovered().keys()
    assert {"loss_memory", "loss_time", "three_objectives"} <= benches
    assert {"train_small", "train_base", "accumulate", "locked"} <= benches
    assert {"zero_shot_build", "zero_shot", "retrieval", "embedding"} <= benches


@pytest.mark.parametrize("objective", ["info_nce", "sigmoid"])
def test_both_sides_give_one_loss_and_one_gradient(measure, objective):
    import_module("bench_loss").agree(objective)
