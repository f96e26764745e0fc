"""Does RankMe, which sees no label, tell which run is better?

Runs of one recipe whose towers are locked: heads alone learn, on features that are computed once. Each run
draws its multiplier (1 / temperature, kept fixed), rate, weight decay, batch and first weights; runs take
turns between two objectives. RankMe is that of the rows that were trained on. What it should foretell is the
mean reciprocal rank, the mean of both directions, on the data of the recipe's first evaluator.

Told of each objective's runs and of all: Spearman's correlation with its 95 % bootstrap interval over runs
(of one cell each, uncorrected for the number of cells), and the regret: the best run's mean reciprocal rank
less that of the run with the highest RankMe, beside that of a run chosen at random.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import Arm, Rows, Towers, measured, trained
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata
from tables import stamp

from vlalign.evals.evaluators.embedding_health import health
from vlalign.files import write_json
from vlalign.models.pair import Bias, DualEncoder
from vlalign.recipe.decode import load_recipe
from vlalign.train.model import build

RECIPE = "recipes/align/quickstart.yaml"
BIASES = {"info_nce": Bias(), "sigmoid": Bias(init=-10.0, learn=True)}
ARMS = {
    name: Arm(task={"targets": "identity", "terms": [{"objective": name}]}, bias=bias, learn=False)
    for name, bias in BIASES.items()
}
RANGES = {"scale": (3, 100), "lr": (1e-4, 1e-2), "weight_decay": (1e-3, 1), "batch": (32, 512)}  # log-uniform
KINDS = ("image", "text", "pairs", "cross")
RESAMPLES = 2000


def drawn(run: int, seed: int) -> dict[str, Any]:
    """What a run is made of."""
    random = np.random.default_rng([seed, run])
    found = {name: float(np.exp(random.uniform(*np.log(bounds)))) for name, bounds in RANGES.items()}
    return {"objective": list(ARMS)[run % len(ARMS)], **found, "batch": round(found["batch"]), "seed": run}


@torch.no_grad()
def rank_me(model: DualEncoder, seen: Rows, unseen: Rows) -> dict[str, float]:
    """RankMe of each kind on what was trained on, and the mean reciprocal rank on what was not."""
    image, text = model.encode_image({"features": seen.image}), model.encode_text({"features": seen.text})
    found = health(image, text)
    return {"mrr": measured(model, unseen)["mrr"]} | {kind: found[f"rank_me_{kind}"] for kind in KINDS}


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Rank correlation over the last axis, ties at their mean rank; NaN where one side is constant."""
    ranks = [rankdata(each, axis=-1) for each in (x, y)]
    a, b = (each - each.mean(-1, keepdims=True) for each in ranks)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def told(rank: np.ndarray, quality: np.ndarray, seed: int) -> dict[str, float]:
    """How well one column of runs orders another, and what choosing by it costs."""
    picks = np.random.default_rng(seed).integers(len(rank), size=(RESAMPLES, len(rank)))
    low, high = np.nanquantile(spearman(rank[picks], quality[picks]), [0.025, 0.975])
    best = quality.max()
    return {
        "runs": len(rank),
        "rho": float(spearman(rank, quality)),
        "low": float(low),
        "high": float(high),
        "best": float(best),
        "regret": float(best - quality[rank.argmax()]),
        "random_regret": float(best - quality.mean()),
    }


def summary(runs: Sequence[Mapping[str, Any]], seed: int) -> list[dict[str, Any]]:
    """A row for each objective, and for all together, and each kind of RankMe."""
    groups = {arm: [run for run in runs if run["objective"] == arm] for arm in ARMS} | {"all": list(runs)}
    return [
        {"among": among, "rank_me": kind}
        | told(*(np.array([run[name] for run in group]) for name in (kind, "mrr")), seed)
        for among, group in groups.items()
        for kind in KINDS
    ]


def study(recipe: str, overrides: Sequence[str], runs: int, seed: int) -> dict[str, Any]:
    """Train and measure every run."""
    one = load_recipe(recipe, overrides, verb="train")
    model = build(one)
    towers = Towers(model)
    seen, unseen = (towers.rows(spec.build(one.data.limits)) for spec in (one.data.train, one.evals[0].data))
    done = []
    for run in range(runs):
        start, made = time.process_time(), drawn(run, seed)
        own = trained(
            seen, ARMS[made["objective"]], dim=model.dim, steps=one.steps,
            **{name: made[name] for name in ("seed", *RANGES)},
        )  # fmt: skip
        made |= {"cpu_seconds": time.process_time() - start, **rank_me(own, seen, unseen)}
        numbers = ", ".join(f"{name} {value:.3g}" for name, value in made.items() if name != "objective")
        print(f"{made['objective']}: {numbers}", flush=True)
        done.append(made)
    return {
        "recipe": recipe,
        "overrides": list(overrides),
        **stamp(),
        "summary": summary(done, seed),
        "runs": done,
    }


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the summary as a table."""
    names = ("runs", "rho", "95 % interval", "best MRR", "regret", "regret of a random choice")
    table = Table("among", "RankMe of", *names, title="RankMe against MRR on unseen data")
    for row in rows:
        numbers = [f"{row[name]:.4f}" for name in ("best", "regret", "random_regret")]
        interval = f"{row['low']:+.2f} to {row['high']:+.2f}"
        table.add_row(
            row["among"], row["rank_me"], str(row["runs"]), f"{row['rho']:+.2f}", interval, *numbers
        )
    Console(width=140).print(table)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the recipe, such as steps=100")
    asked = parser.parse_args()
    if asked.runs < (least := 2 * len(ARMS)):
        parser.error(f"--runs must be >= {least}, two of each objective, got {asked.runs}")
    found = study(asked.recipe, asked.overrides, asked.runs, asked.seed)
    if asked.json:
        write_json(asked.json, found)
    show(found["summary"])


if __name__ == "__main__":
    main()
