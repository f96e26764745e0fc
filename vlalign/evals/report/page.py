"""`report.html`: everything a run left in its folder, on one page."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlalign.evals.report import words
from vlalign.evals.report.figures import curve, spectra
from vlalign.evals.report.log import read_lines
from vlalign.evals.report.verdict import verdict
from vlalign.evals.report.versions import versions
from vlalign.evals.rows import read_rows
from vlalign.files import write_text
from vlalign.specs import EvalRow

CURVES = {"loss": "loss", "lr": "learning rate", "scale": "scale of the cosines", "norm": "gradient norm"}


def write(out: Path) -> Path:
    """Write `out/report.html` from what `out` holds of `recipe.yaml`, `log.jsonl`, `metrics.json`,
    `exhibits.json` and `rows.json`; the page says what is absent. Returns its path.
    """
    path = out / "report.html"
    write_text(path, rendered("page.html.jinja", gather(out)))
    return path


def rendered(template: str, told: Mapping[str, Any]) -> str:
    """A page of this room."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("vlalign.evals", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        name: getattr(words, name) for name in ("amount", "breakable", "counts", "metric", "percent", "place")
    }
    environment.tests["share"] = lambda name: words.SHARE.search(name) is not None
    return environment.get_template(template).render(told)


def gather(out: Path) -> dict[str, Any]:
    """What the template shows."""
    header, lines = _log(out / "log.jsonl")
    rows = read_rows(out)
    trained = _json(out / "rows.json") or header.get("rows") or {}
    accounts = {row.dataset: row.exhibits["rows"] for row in rows if "rows" in row.exhibits}
    accounts |= {
        f"{row.dataset} (test)": row.exhibits["test_rows"] for row in rows if "test_rows" in row.exhibits
    }
    recipe = out / "recipe.yaml"
    return {
        "name": out.resolve().name,
        "verdict": verdict(rows),
        "facts": _facts(lines, rows),
        "results": rows,
        "curves": _curves(lines),
        "retrievals": [row for row in rows if "pictures" in row.exhibits],
        "groundings": [row for row in rows if "grounding" in row.exhibits],
        "enhancements": [row for row in rows if "changes" in row.exhibits],
        "spectra": [
            (row.dataset, spectra(row.dataset, row.exhibits["spectra"]))
            for row in rows
            if "spectra" in row.exhibits
        ],
        "classes": [(row.dataset, _hardest(row)) for row in rows if "classes" in row.exhibits],
        "accounts": ({"training": trained} if trained else {}) | accounts,
        "licences": _licences([header, trained, *accounts.values()]),
        "versions": header.get("versions") or versions(),
        "recipe": recipe.read_text(encoding="utf-8") if recipe.exists() else "",
    }


def _log(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The header, {} if there is none, and the lines of steps; a last line that was cut is left out."""
    if not path.exists():
        return {}, []
    lines = read_lines(path)
    header: dict[str, Any] = {}
    for line in lines:
        header |= line.get("header", {})
    return header, [line for line in lines if "loss" in line]


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _facts(lines: Sequence[Mapping[str, Any]], rows: Sequence[EvalRow]) -> dict[str, str]:
    facts: dict[str, str] = {}
    if lines:
        last = lines[-1]
        facts |= {"steps": f"{last['step']:,}", "last loss": f"{last['loss']:.4g}"}
        speeds = sorted(
            t["samples_per_second"] for line in lines if "samples_per_second" in (t := line.get("time", {}))
        )
        if speeds:
            facts["samples a second"] = f"{speeds[len(speeds) // 2]:,.0f}"
    return facts | {"evaluations": str(len(rows))}


def _curves(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """A figure for each quantity that was logged at least twice."""
    found = []
    for name, title in CURVES.items():
        points = [(line["step"], line[name]) for line in lines if name in line]
        if len(points) > 1:
            found.append((title, curve(title, *zip(*points, strict=True))))
    return found


def _hardest(row: EvalRow) -> list[Mapping[str, Any]]:
    return sorted(row.exhibits["classes"], key=lambda entry: (entry["recall"], entry["class"]))


def _licences(holders: Sequence[Mapping[str, Any]]) -> list[Mapping[str, str]]:
    """Each once, in order."""
    told = [licence for holder in holders for licence in holder.get("licences", ())]
    return list({tuple(sorted(licence.items())): licence for licence in told}.values())
