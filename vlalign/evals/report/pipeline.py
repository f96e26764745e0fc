"""`pipeline.json` and `report.html` of a pipeline: its stages, what its judges are worth, its comparisons."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlalign.evals.metrics.paired import paired
from vlalign.evals.report.page import rendered
from vlalign.evals.report.versions import versions
from vlalign.evals.rows import METRICS
from vlalign.files import write_json, write_text
from vlalign.recipe.schemas import Comparison, PipelineRecipe

Values = dict[int | None, float]  # by seed, None of a stage that has none
Runs = Sequence[Mapping[str, Any]]  # "name", "stage", "seed", "verb", "state", "why", "seconds"


def report(recipe: PipelineRecipe, runs: Runs) -> None:
    """Write both files into `recipe.out`."""
    out = Path(recipe.out)
    found = [run for run in runs if run["state"] in ("done", "unchanged")]
    gates = {name for stage in recipe.stages.values() for name in stage.when}
    told = {
        "stages": list(runs),
        "judges": {run["name"]: _judged(out / run["name"]) for run in found if run["stage"] in gates},
        "comparisons": [
            {"dataset": each.dataset, "metric": each.metric, "baseline": each.baseline, "rows": rows}
            for each in recipe.compare
            if (rows := _compared(_values(out, found, each.dataset, each.metric), each))
        ],
    }
    write_json(out / "pipeline.json", told)
    about = {
        "name": out.resolve().name,
        "runs": len(runs),
        "failed": [run["name"] for run in runs if run["state"] == "failed"],
        "seconds": sum(run["seconds"] or 0 for run in runs),
        "table": [_stage(name, [run for run in runs if run["stage"] == name]) for name in recipe.stages],
        "versions": versions(),
        "recipe": (out / "recipe.yaml").read_text(encoding="utf-8"),
    }
    write_text(out / "report.html", rendered("pipeline.html.jinja", {**about, **told}))


def _judged(out: Path) -> dict[str, Any]:
    """What a judge's stage found, and that in a sentence."""
    told: dict[str, Any] = json.loads((out / "judged.json").read_text(encoding="utf-8"))
    kept: dict[str, Any] = {
        name: told[name] for name in ("queries", "pairs", "score", "alone", "gain", "treated") if name in told
    }
    gains = "; ".join(
        f"{name.replace('_', ' ')} {interval(told['gain'][name])}"
        for name in told.get("baselines", ())
        if name in told.get("gain", {})
    )
    said = "informative" if told.get("informative") else "judge not informative"
    return {**kept, "verdict": f"{said}; in reciprocal rank it gains over {gains}" if gains else said}


def _values(out: Path, runs: Runs, dataset: str, metric: str) -> dict[str, Values]:
    """A metric by stage and seed, where there is one."""
    values: dict[str, Values] = {}
    for run in runs:
        path = out / run["name"] / METRICS
        for row in json.loads(path.read_text(encoding="utf-8")) if path.exists() else ():
            if row["dataset"] == dataset and metric in row["metrics"]:
                values.setdefault(run["stage"], {})[run["seed"]] = row["metrics"][metric]
    return values


def _compared(values: Mapping[str, Values], asked: Comparison) -> list[dict[str, Any]]:
    """Rows of a table."""
    rows = list[dict[str, Any]]()
    for stage, own in values.items():
        row = {"stage": stage, "seeds": len(own), "mean": sum(own.values()) / len(own), "gain": ""}
        row |= _less(own, {} if stage == asked.baseline else values.get(asked.baseline, {}))
        control = asked.controls.get(stage, "")
        if less := _less(own, values.get(control, {})):
            row["control"] = {"stage": control, **less}
        rows.append(row)
    return rows


def _less(own: Values, base: Values) -> dict[str, Any]:
    """A gain. A stage without seeds is met by every seed, one with seeds by the same ones."""
    shared = [seed for seed in own if seed in base or None in base]
    if not shared:
        return {}
    other = [base[seed] if seed in base else base[None] for seed in shared]
    found = paired([own[seed] for seed in shared], other)
    return {"paired": len(shared), **found, "gain": interval(found)}


def interval(found: Mapping[str, float]) -> str:
    """A difference with its interval, if it has one."""
    told = f"{found['difference']:+.4f}"
    return f"{told} [{found['low']:+.4f}, {found['high']:+.4f}]" if "low" in found else told


def _stage(name: str, runs: Runs) -> dict[str, Any]:
    """A line for all seeds of a stage."""
    states = dict.fromkeys(run["state"] for run in runs)
    why = dict.fromkeys(run["why"] for run in runs if run["why"])
    return {
        "name": name,
        "verb": runs[0]["verb"],
        "runs": len(runs),
        "state": ", ".join(states),
        "why": "; ".join(why),
        "seconds": sum(run["seconds"] or 0 for run in runs),
    }
