"""Stages: which are run, in which order, on what, and what becomes of them when one fails or is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.unit.data.json_lines import lines
from vlalign.cli.main import app
from vlalign.infer import pipeline as module
from vlalign.infer.pipeline import pipeline
from vlalign.infer.stages import code, runs
from vlalign.recipe.decode import load_recipe
from vlalign.types import RecipeError, UserError

ROOT = Path(__file__).parents[3]
VERB = """#!{python} -SE
import json, os, sys, time
_, _, _, verb, recipe, *told = sys.argv
told = dict(each.split("=", 1) for each in told)
out = json.loads(told["out"])
name = os.path.relpath(out, {out!r})
with open({said!r}, "a") as file:
    file.write(name + " " + json.dumps({{k: json.loads(v) for k, v in told.items() if k != "out"}}) + "\\n")
print("I am", name)
os.makedirs(out + "/model", exist_ok=True)
open(out + "/model/weights", "w").write(name)
behave = {behave!r} + "/" + name.replace("/", "-")
if os.path.exists(behave):
    exec(open(behave).read())
metrics = [{{"dataset": "d", "task": "t", "metrics": {{"mrr": 0.5}}, "chance": {{}}}}]
if name.startswith("better"):
    metrics[0]["metrics"]["mrr"] = 0.6 + 0.01 * json.loads(told.get("seed", "0"))
open(out + "/metrics.json", "w").write(json.dumps(metrics))
if verb == "judge":
    open(out + "/judged.json", "w").write(json.dumps({{"informative": os.path.exists(behave + "!")}}))
"""


@pytest.fixture
def house(tmp_path, monkeypatch):
    """Recipes, and a program that stands for the verbs: it notes what it was told, and writes metrics."""
    (tmp_path / "behave").mkdir()
    program = tmp_path / "python"
    told = {"said": str(tmp_path / "said"), "behave": str(tmp_path / "behave"), "out": str(tmp_path / "out")}
    program.write_text(VERB.format(python=sys.executable, **told))
    program.chmod(0o755)
    monkeypatch.setattr(module.sys, "executable", str(program))
    (tmp_path / "soup.yaml").write_text('verb: soup\nout: x\nmodels: ["a", "b"]\n')
    lines(tmp_path / "rows.jsonl", {"query": "a cat", "candidates": [{"text": "cat", "label": 1}, "dog"]})
    (tmp_path / "judge.yaml").write_text(
        f"verb: judge\nout: x\ndata: {{name: candidates, path: {tmp_path}/rows.jsonl}}\njudges: [overlap]\n"
    )
    return tmp_path


def recipe(house: Path, stages: dict, **more):
    told = {"verb": "pipeline", "out": str(house / "out"), "stages": stages, **more}
    (house / "p.yaml").write_text(json.dumps(told))
    return load_recipe(house / "p.yaml")


def soup(house: Path, first: str = "a", **more) -> dict:
    return {"recipe": str(house / "soup.yaml"), "overrides": {"models": [first, "b"]}, **more}


def trained(house: Path, **more) -> dict:
    return {"recipe": str(ROOT / "recipes/tiny/clip.yaml"), **more}


def said(house: Path) -> list[str]:
    """Names of what was run since it was last asked."""
    path = house / "said"
    found = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [each.split()[0] for each in found]


def chain(house: Path) -> dict:
    return {
        "one": soup(house),
        "two": soup(house, "{one}/model"),
        "three": soup(house, "{two}"),
        "other": soup(house),
    }


def behave(house: Path, name: str, code: str) -> None:
    (house / "behave" / name).write_text(code)


def test_what_is_done_is_not_run_again_and_what_it_reads_is_part_of_it(house):
    (house / "data").mkdir()
    (house / "data" / "a").write_text("1")
    stages = {**chain(house), "other": soup(house, str(house / "data"))}
    assert pipeline(recipe(house, stages))
    assert sorted(said(house)) == ["one", "other", "three", "two"]
    assert pipeline(recipe(house, stages))
    assert said(house) == []
    found = json.loads((house / "out" / "pipeline.json").read_text())["stages"]
    assert [each["state"] for each in found] == ["unchanged"] * 4
    (house / "data" / "a").write_text("12")  # an input of one
    assert pipeline(recipe(house, stages))
    assert said(house) == ["other"] and (house / "out" / "other.1" / "metrics.json").exists()
    (house / "out" / "one" / "metrics.json").write_text("[]")  # nobody reads it
    assert pipeline(recipe(house, stages))
    assert said(house) == []
    (house / "out" / "one" / "model" / "weights").write_text("others")
    assert pipeline(recipe(house, stages))
    assert said(house) == ["two", "three"]
    stages["two"] = soup(house, "{one}/other")
    assert pipeline(recipe(house, stages))
    assert said(house) == ["two", "three"]


def test_what_is_gone_is_made_again_and_a_state_that_is_cut_is_none(house):
    assert pipeline(recipe(house, chain(house)))
    said(house)
    shutil.rmtree(house / "out" / "one")
    assert pipeline(recipe(house, chain(house)))
    assert said(house) == ["one", "two", "three"]
    (house / "out" / "stages" / "other.json").write_text('{"key": "')
    assert pipeline(recipe(house, chain(house)))
    assert said(house) == ["other"] and (house / "out" / "other.1").is_dir()


def test_an_input_is_found_where_its_verb_would_find_it_and_out_is_none_of_it(house, monkeypatch):
    monkeypatch.setenv("HOME", str(house / "home"))
    (house / "home" / "a b").mkdir(parents=True)
    stages = {"one": soup(house, "~/a b"), "two": soup(house, str(house / "out"))}
    assert pipeline(recipe(house, stages))
    said(house)
    (house / "home" / "a b" / "new").write_text("")
    assert pipeline(recipe(house, {"one": stages["one"]})) and said(house) == ["one"]
    two = {"two": soup(house, str(house / "out" / "two"))}  # which it writes itself
    assert pipeline(recipe(house, two)) and pipeline(recipe(house, two)) and said(house) == ["two"]


def test_another_version_of_the_code_runs_all_again(house, monkeypatch):
    assert pipeline(recipe(house, {"one": soup(house)}))
    monkeypatch.setattr("vlalign.infer.stages.code", lambda: "another")
    assert pipeline(recipe(house, {"one": soup(house)}))
    assert said(house) == ["one", "one"]


def test_code_is_what_the_files_say(tmp_path, monkeypatch):
    monkeypatch.setattr("vlalign.infer.stages.SOURCES", tmp_path)
    found = [code() for text in ("1", "10", "1") if (tmp_path / "a.py").write_text(text)]
    assert found[0] == found[2] != found[1]


def test_folders_take_the_place_of_names_wherever_a_text_begins_with_one(house):
    judge = {
        "recipe": str(house / "judge.yaml"),
        "overrides": {"store": "{one}/s.sqlite", "number": "{x} {one} \U0001f600"},
    }
    (run,) = [each for each in runs(recipe(house, {"one": soup(house), "two": judge})) if each.name == "two"]
    assert (
        f'store="{house}/out/one/s.sqlite"' in run.arguments
        and 'number="{x} {one} \U0001f600"' in run.arguments
    )
    assert run.after == {"one"}


def test_a_part_is_overridden_after_the_whole_that_holds_it(house):
    wanted = {"choose.k": 3, "choose": {"treat": "relabel", "k": 8}, "store": "s"}
    judge = {"recipe": str(house / "judge.yaml"), "overrides": wanted}
    [run] = runs(recipe(house, {"one": judge}))
    choose = run.recipe().choose
    assert (choose.k, choose.treat) == (3, "relabel")


def test_a_failed_stage_leaves_the_others_and_is_run_again(house):
    behave(house, "two", "print('it is broken'); sys.exit(2)")
    heard: list[str] = []
    assert not pipeline(recipe(house, chain(house)), tell=heard.append)
    assert sorted(said(house)) == ["one", "other", "two"]
    told = {
        each["name"]: each for each in json.loads((house / "out" / "pipeline.json").read_text())["stages"]
    }
    assert [told[name]["state"] for name in ("one", "two", "three", "other")] == [
        "done",
        "failed",
        "left out",
        "done",
    ]
    assert told["three"]["why"] == "two is failed"
    assert any("it is broken" in line and "two.log" in line for line in heard)
    (house / "behave" / "two").unlink()
    (house / "out" / "two" / "kept").write_text("what it had")
    assert pipeline(recipe(house, chain(house)))
    assert said(house) == ["two", "three"] and (house / "out" / "two" / "kept").exists()


def test_from_a_stage_all_that_read_it_are_run_again(house):
    assert pipeline(recipe(house, chain(house)))
    said(house)
    assert pipeline(recipe(house, chain(house)), again="two")
    assert said(house) == ["two", "three"] and (house / "out" / "three.1" / "metrics.json").exists()
    with pytest.raises(RecipeError, match="no stage 'four'; there are one, two, three, other"):
        pipeline(recipe(house, chain(house)), again="four")


def test_seeds_are_runs_of_their_own_that_read_the_same_seed_and_are_compared_by_it(house):
    stages = {
        "base": trained(house, seeds=3),
        "better": trained(house, seeds=3, overrides={"init": "{base}/model"}),
        "all": soup(house, "{base}/2/model"),
        "first": trained(house, seeds=2, overrides={"init": "{base}/0/model"}),
    }
    compare = [{"dataset": "d", "metric": "mrr", "baseline": "base"}]
    told = recipe(house, stages, compare=compare)
    by_name = {each.name: each for each in runs(told)}
    assert list(by_name)[:4] == ["base/0", "base/1", "base/2", "better/0"]
    assert by_name["better/1"].after == {"base/1"} and "seed=1" in by_name["better/1"].arguments
    assert f'init="{house}/out/base/1/model"' in by_name["better/1"].arguments
    assert by_name["all"].after == {"base/2"} and by_name["first/1"].after == {"base/0"}
    assert f'init="{house}/out/base/0/model"' in by_name["first/1"].arguments
    assert f'models=["{house}/out/base/2/model", "b"]' in by_name["all"].arguments
    assert pipeline(told, jobs=2)
    assert len(said(house)) == 9
    (table,) = json.loads((house / "out" / "pipeline.json").read_text())["comparisons"]
    rows = {row["stage"]: row for row in table["rows"]}
    assert rows["base"]["mean"] == 0.5 and rows["base"]["gain"] == "" and rows["all"]["seeds"] == 1
    assert rows["better"]["difference"] == pytest.approx(0.11) and rows["better"]["seeds"] == 3
    assert rows["better"]["paired"] == 3 and "difference" not in rows["all"]  # which has no seed
    assert rows["better"]["low"] < 0.11 < rows["better"]["high"]
    page = (house / "out" / "report.html").read_text()
    assert "+0.1100 [" in page and "better" in page


@pytest.mark.parametrize("informative", [True, False])
def test_a_gate_lets_one_branch_pass(house, informative):
    if informative:
        behave(house, "judge!", "")
    stages = {
        "judge": {"recipe": str(house / "judge.yaml")},
        "on": soup(house, when={"judge": "informative"}),
        "after": soup(house, "{on}"),
        "dial": soup(house, when={"judge": "not informative"}),
    }
    assert pipeline(recipe(house, stages))
    assert said(house) == (["judge", "on", "after"] if informative else ["judge", "dial"])
    found = json.loads((house / "out" / "pipeline.json").read_text())
    assert found["judges"]["judge"]["verdict"] == ("informative" if informative else "judge not informative")
    left = [each["why"] for each in found["stages"] if each["state"] == "left out"]
    assert left == (
        ["judge is informative"] if informative else ["judge is not informative", "on is left out"]
    )


def test_a_gate_that_cannot_be_read_is_told_and_one_that_is_none_is_refused(house):
    stages = {
        "judge": {"recipe": str(house / "judge.yaml")},
        "on": soup(house, when={"judge": "informative"}),
    }
    pipeline(recipe(house, stages))
    (house / "out" / "judge" / "judged.json").write_text("{")
    with pytest.raises(UserError, match=r"judged.json cannot be read.*run that stage again with --from"):
        pipeline(recipe(house, stages))
    stages = {"judge": soup(house), "on": soup(house, when={"judge": "informative"})}
    with pytest.raises(RecipeError, match="stages.on.when: 'judge' does not judge"):
        pipeline(recipe(house, stages))


def test_a_baseline_that_lost_seeds_is_met_by_those_that_it_has(house):
    behave(house, "base-1", "sys.exit(1)")
    stages = {"base": trained(house, seeds=3), "better": trained(house, seeds=3), "alone": trained(house)}
    compare: list = [{"dataset": "d", "metric": "mrr", "baseline": each} for each in ("base", "alone")]
    compare[1] |= {"controls": {"better": "base", "base": "better"}}
    assert not pipeline(recipe(house, stages, compare=compare), jobs=3)
    one, other = json.loads((house / "out" / "pipeline.json").read_text())["comparisons"]
    rows = [{row["stage"]: row for row in each["rows"]} for each in (one, other)]
    assert rows[0]["better"]["paired"] == 2 and rows[0]["better"]["difference"] == pytest.approx(0.11)
    assert rows[1]["better"]["paired"] == 3 and rows[1]["base"]["paired"] == 2
    control = rows[1]["better"]["control"]  # which tells what it tells as a baseline
    assert control == {"stage": "base"} | {
        name: rows[0]["better"][name] for name in control if name != "stage"
    }
    assert rows[1]["base"]["control"]["difference"] == pytest.approx(-0.11)
    assert "control" not in rows[1]["alone"] and "control" not in rows[0]["better"]
    page = (house / "out" / "report.html").read_text()
    assert page.count("over its control") == 1 and f"{control['gain']} base" in page


@pytest.mark.parametrize("whom", ["the pipeline", "a stage", "both, in order"])
def test_killed_it_goes_on_where_it_stopped(house, whom):
    """The pipeline alone is killed: what it began goes on, and nobody else may write there meanwhile."""
    behave(house, "two", f"open({str(house / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    recipe(house, chain(house))
    program = (
        "import sys; from vlalign.infer import pipeline as m; from vlalign.recipe.decode import load_recipe\n"
        f"sys.executable = {str(house / 'python')!r}\n"
        f"sys.exit(not m.pipeline(load_recipe({str(house / 'p.yaml')!r})))"
    )
    own = subprocess.Popen([PYTHON, "-c", program], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not ((house / "pid").exists() and (house / "pid").read_text()):
        assert time.monotonic() < end and own.poll() is None
        time.sleep(0.05)
    stage = int((house / "pid").read_text())
    if whom == "both, in order":
        own.terminate()
        assert own.wait(60) != 0
        with pytest.raises(ProcessLookupError):
            os.kill(stage, 0)
    else:
        os.kill(own.pid if whom == "the pipeline" else stage, signal.SIGKILL)
        assert own.wait(60) == (-9 if whom == "the pipeline" else 1)
    behave(house, "two", "")
    (house / "out" / "two" / "kept").write_text("")
    if whom == "the pipeline":
        with pytest.raises(UserError, match=r"another process writes .*two; wait for it or end it"):
            pipeline(load_recipe(house / "p.yaml"))
        os.kill(stage, signal.SIGKILL)
        time.sleep(0.2)
    said(house)
    assert pipeline(load_recipe(house / "p.yaml"))
    assert "two" in (ran := said(house)) and "one" not in ran and (house / "out" / "two" / "kept").exists()


PYTHON = sys.executable


def test_a_launcher_starts_the_verbs_that_processes_share(house, monkeypatch):
    started: list[list[str]] = []

    class Started:
        returncode = 0

        def __init__(self, command: list[str], **more: object) -> None:
            started.append(command[1:])
            (house / "out" / "judge").mkdir(exist_ok=True)
            (house / "out" / "judge" / "judged.json").write_text("{}")

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(module.subprocess, "Popen", Started)
    stages = {"judge": {"recipe": str(house / "judge.yaml")}, "soup": soup(house)}
    pipeline(recipe(house, {"soup": stages["soup"]}), launch=["--config_file", "ddp.yaml"])
    pipeline(recipe(house, stages), launch=["--config_file", "ddp.yaml"])
    assert started[0][:3] == ["-m", "vlalign", "soup"]
    launched = ["-m", "accelerate.commands.launch", "--config_file", "ddp.yaml", "-m", "vlalign", "judge"]
    assert started[1][:7] == launched


@pytest.mark.parametrize(
    ("stages", "why"),
    [
        ({"a": {"recipe": "no.yaml"}}, r"stages.a: no.yaml: there is no such recipe"),
        ({"a": {"overrides": {"models": ["{b}/x", "y"]}}}, r"stages above it, and 'b' of"),
        ({"a": {"overrides": {"out": "x"}}}, "overrides: must not hold out, which the pipeline sets"),
        ({"a": {"overrides": {"models": ["{a}", "y"]}}}, r"stages above it, and 'a' of"),
        ({"a": {"overrides": {"models": ["{b}", "y"]}}, "b": {}}, r"stages above it, and 'b' of"),
        ({"a": {"seeds": 2}, "b": {"overrides": {"models": ["{a}/2/m"]}}}, "seed 2 of a, which has 2"),
        ({"a": {"seeds": 0}}, "seeds: must be >= 1 or null, got 0"),
        ({"a b": {}}, "must be called by letters, digits and _"),
        ({"a": {"when": {"b": "informative"}}}, r"stages.a.when must name a stage above it"),
        ({"a": {"overrides": {"modles": ["x"]}}}, "Did you mean 'models'"),
        ({"a": {"seeds": 2}, "b": {"overrides": {"models": ["{a}/m"]}}}, r"name one of them: '\{a\}/0/m'"),
        ({"a": {"seeds": 2}, "b": {"seeds": 3, "overrides": {"models": ["{a}/m"]}}}, "not read seed 2 of a"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_is_run(house, stages, why):
    told = {name: {"recipe": str(house / "soup.yaml"), **own} for name, own in stages.items()}
    with pytest.raises(RecipeError, match=why):
        pipeline(recipe(house, told))
    assert said(house) == []


def test_a_folder_of_another_verb_and_a_baseline_that_is_none_are_refused(house):
    (house / "out").mkdir()
    (house / "out" / "recipe.yaml").write_text((house / "soup.yaml").read_text())
    with pytest.raises(RecipeError, match="holds a run of another verb"):
        pipeline(recipe(house, chain(house)))
    with pytest.raises(RecipeError, match="compare: must have a stage as baseline, and 'x' is none"):
        recipe(house, chain(house), compare=[{"dataset": "d", "metric": "m", "baseline": "x"}])
    compare = [{"dataset": "d", "metric": "m", "baseline": "one", "controls": {"two": "x"}}]
    with pytest.raises(RecipeError, match="compare.controls must name stages, and 'x' is none"):
        recipe(house, chain(house), compare=compare)


def test_the_command_line_tells_what_became_of_it(house):
    compare = [{"dataset": "d", "metric": "mrr", "baseline": "one"}]
    recipe(house, chain(house), compare=compare)
    told = CliRunner().invoke(app, ["pipeline", str(house / "p.yaml"), "--jobs", "2"])
    assert told.exit_code == 0, told.output
    assert "one: done" in told.output and "+0.0000" in told.output and "report.html" in told.output
    behave(house, "one", "sys.exit(1)")
    told = CliRunner().invoke(app, ["pipeline", str(house / "p.yaml"), "--from", "one"])
    assert told.exit_code == 1 and "one: failed, it ended with 1" in told.output
