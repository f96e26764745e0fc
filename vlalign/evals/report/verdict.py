"""The first sentence of a report, computed from its numbers."""

from collections.abc import Sequence

from vlalign.evals.report.words import percent, plain
from vlalign.specs import EvalRow

# the task, most telling first -> the metric that is told, and what it says
TOLD = {
    "zeroshot_retrieval": ("text_to_image_R@10", "finds the right picture among its first ten for {shares}"),
    "zeroshot_classification": ("acc1", "names the right class, never trained on it, for {shares}"),
    "linear_probe": ("acc1", "gives a linear classifier what it needs to be right for {shares}"),
}


def verdict(rows: Sequence[EvalRow]) -> str:
    """One sentence on the first task of TOLD that was measured: each of its data sets, beside chance."""
    for task, (metric, sentence) in TOLD.items():
        measured = [row for row in rows if row.task == task]
        if measured:
            shares = [
                (percent(row.metrics[metric]), plain(row.dataset), _beside(row, metric)) for row in measured
            ]
            told = [f"{share} of {dataset} ({beside})" for share, dataset, beside in shares]
            return f"This model {sentence.format(shares=_listed(told))}."
    return ""


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _beside(row: EvalRow, metric: str) -> str:
    """`chance 2.7 %`, and a warning where the difference may be luck: under two standard errors."""
    chance, value = row.chance[metric], row.metrics[metric]
    account = row.exhibits.get("rows", {})
    count = account.get("captions") or account.get("used")
    if value <= chance:
        return f"no better than chance, {percent(chance)}"
    if count and value - chance < 2 * (chance * (1 - chance) / count) ** 0.5:
        return f"hardly told from chance, {percent(chance)}"
    return f"chance {percent(chance)}"
