"""What a reranker loses in few bits, and whether it loses less where GPTQ minds the tokens that matter.

    scripts/quickstart out=runs/quickstart
    python scripts/compare_quantization.py --encoder runs/quickstart/model --readme README.md

The reranker learns what verbs mean as in scripts/compare_rerankers.py, by contrast, one seed, but keeps all
layers: cut off after some it has no perplexity to speak of. Each arm but rounding is calibrated by pairs of
its training rows, drawn anew for each seed, by which rotations are drawn too. What is measured, in bfloat16
where the machine is fast at it, is of test queries: KL, from the probabilities that float32 gives to a
query's candidates; Kendall's tau of the orders; nDCG@10; and the log-loss of the queries' texts, of which the
perplexity is the exponential. Each arm less plain GPTQ, rotated alike, over the same seeds: 95 % intervals,
and verdicts corrected by Holm. The weighted error is what an arm minimises itself, and proves nothing.
"""

import argparse
import json
import multiprocessing
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from compare_rerankers import LORA, PARTS, SETTINGS, gains
from kept import Kept
from numpy.typing import NDArray
from rerank_cells import FAST, Queries, padded, trained
from rerank_cells import Cell as Training
from rerank_data import words
from rich.console import Console
from scipy.special import log_softmax
from scipy.stats import kendalltau
from tables import between
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from verdicts import Paired, holm, paired, verdict

import vlalign
from vlalign import files
from vlalign.evals.candidates import plain
from vlalign.infer.quantize import quantize, read
from vlalign.models.layout import folder_digest, located
from vlalign.recipe.decode import load_recipe

BEGIN, END = (
    "<!-- quantization: written by scripts/compare_quantization.py -->",
    "<!-- end of quantization -->",
)
RECIPE = Path(__file__).parents[1] / "recipes" / "quantize" / "rsq.yaml"
ROUND, GPTQ = "round to nearest", "GPTQ"
IMPORTANCES = ("attention_concentration", "first_tokens", "activation_norm", "activation_difference")
IMPORTANCES += ("token_frequency", "token_similarity")
ARMS = (ROUND, GPTQ, *IMPORTANCES)
LOW = {True: 0.01, False: 0.1}  # the paper's, with rotation and without
METRICS = {"kl": -1, "loss": -1, "tau": 1, "ndcg": 1}  # which way is better
NAMES = {"kl": "KL", "loss": "log-loss", "tau": "tau", "ndcg": "nDCG@10"}
RATE = 1e-3  # of the reranker's training
TARGET = [f"layers.{layer}.{part}" for layer in range(26, 30) for part in PARTS]  # the last with adapters
TEXTS, IGNORED = 16, -100  # in a forward, and what is no token
Floats = NDArray[np.float64]


class Cell(NamedTuple):
    """One model in few bits."""

    arm: str
    rotate: bool
    seed: int


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all cells share. `reranker`: its folder; `rows`: of `train/` and `test/`; `queries`: of its."""

    reranker: str
    rows: str
    bits: int = 3
    group: int | None = None
    samples: int = 64
    queries: int = 200

    @property
    def digest(self) -> str:
        """Another one where a cell may be another; of a reranker the weights count."""
        told = {**asdict(self), "reranker": folder_digest(located(self.reranker, None)), "rows": None}
        return json.dumps(told, sort_keys=True)


@dataclass(frozen=True)
class Answers:
    """What a model says of the test: scores [Q, C], -inf for none, and log-losses of the texts [Q]."""

    queries: Queries
    scores: Floats
    losses: Floats

    @classmethod
    @torch.autocast("cpu", torch.bfloat16, enabled=FAST)
    def rounded(cls, model: Any, setting: Setting) -> "Answers":
        """In bfloat16 where the machine is fast at it, as such a model is used."""
        return cls.of(model, setting)

    @classmethod
    def of(cls, model: Any, setting: Setting) -> "Answers":
        """In float32, of the queries whose right answer is among the candidates."""
        every = Queries.of(Path(setting.rows) / "test")
        some = slice(setting.queries)
        asked = Queries(every.rows, every.asked, every.places[some], every.first[some], every.right[some])
        rows = [asked.rows[place] for place in asked.places]
        scores = [
            model.score([plain(row["query"])], [[plain(each) for each in row["candidates"]]])[0].tolist()
            for row in rows
        ]
        return cls(asked, padded(scores), log_losses(model.model, [row["query"].text for row in rows]))

    @property
    def ndcg(self) -> Floats:
        """nDCG@10 [Q]."""
        return gains(self.queries.ranks(self.scores))[0]

    def measured(self, whole: "Answers") -> dict[str, float]:
        """Means over queries, beside those of the model that this one was made of."""
        return {
            "kl": float(divergence(whole.scores, self.scores).mean()),
            "loss": float((self.losses - whole.losses).mean()),
            "tau": float(agreement(whole.scores, self.scores).mean()),
            "ndcg": float((self.ndcg - whole.ndcg).mean()),
        }


@torch.no_grad()
def log_losses(model: Any, texts: Sequence[str]) -> Floats:
    """Of each text's tokens by those before them, the mean in nats [Q]; none sees the padding behind it."""
    read = [torch.tensor(model.process.tokenizer(text)["input_ids"]) for text in texts]
    places, found = sorted(range(len(read)), key=lambda at: len(read[at])), np.empty(len(read))
    for some in (places[at : at + TEXTS] for at in range(0, len(places), TEXTS)):
        ids = pad_sequence([read[at] for at in some], batch_first=True, padding_value=IGNORED)
        logits = model.net(ids.clamp(min=0).to(model.device)).logits[:, :-1].float().cpu()
        losses = F.cross_entropy(logits.mT, ids[:, 1:], reduction="none", ignore_index=IGNORED)
        found[some] = losses.sum(1) / (ids[:, 1:] != IGNORED).sum(1)
    return found


def divergence(whole: Floats, own: Floats) -> Floats:
    """KL(whole | own) of the softmax over the candidates of each query, [Q] in nats."""
    p, q = (log_softmax(each, axis=1) for each in (whole, own))
    there = np.isfinite(whole)
    return np.where(there, np.exp(p) * (np.where(there, p, 0) - np.where(there, q, 0)), 0).sum(1)


def agreement(whole: Floats, own: Floats) -> Floats:
    """Kendall's tau-b of the orders of each query's candidates, [Q]; 0 where all scores are equal."""
    there = np.isfinite(whole)
    found = [kendalltau(a[on], b[on]).statistic for a, b, on in zip(whole, own, there, strict=True)]
    return np.nan_to_num(np.array(found))


def cells(seeds: int, arms: Sequence[str] = ARMS) -> list[Cell]:
    """Rounding alone looks at no seed."""
    return [
        Cell(arm, rotate, seed)
        for seed in range(seeds)
        for rotate in (False, True)
        for arm in arms
        if seed == 0 or arm != ROUND or rotate
    ]


def run(cell: Cell, setting: Setting, whole: Answers) -> tuple[Cell, dict[str, Any]]:
    """Make it by the recipe, load it, and ask it."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = {"name": "candidates", "path": str(Path(setting.rows) / "train" / "taught.jsonl")}
        told: dict[str, Any] = {
            "out": folder,
            "model": setting.reranker,
            "bits": setting.bits,
            "group": setting.group,
            "rotate": cell.rotate,
            "method": "round" if cell.arm == ROUND else "gptq",
            "data": None if cell.arm == ROUND else data,
            "samples": setting.samples,
            "importance": cell.arm if cell.arm in IMPORTANCES else None,
            "low": LOW[cell.rotate],
            "seed": cell.seed,
        }
        out = quantize(load_recipe(RECIPE, [f"{name}={json.dumps(value)}" for name, value in told.items()]))
        found = Answers.rounded(vlalign.load(out), setting).measured(whole)
        return cell, {"error": read(out)["error"], **found}


def measure(
    todo: Sequence[Cell], setting: Setting, whole: Answers, processes: int
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Each on one thread, as it is done."""
    if processes == 1:
        yield from (run(cell, setting, whole) for cell in todo)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(partial(run, setting=setting, whole=whole), todo)


def complete(
    file: Path, setting: Setting, whole: Answers, seeds: int, processes: int = 1, arms: Sequence[str] = ARMS
) -> Mapping[Cell, Mapping[str, Any]]:
    """Measure what is missing, a line of `file` a cell."""
    done = Kept(file, Cell, setting.digest)
    todo = [cell for cell in cells(seeds, arms) if cell not in done.rows]
    for cell, row in measure(todo, setting, whole, processes):
        done.add(cell, row)
    return done.rows


def of_arm(
    done: Mapping[Cell, Mapping[str, Any]], arm: str, rotate: bool, metric: str, seeds: int
) -> dict[int, float]:
    """A metric by seed."""
    once = arm == ROUND and not rotate
    return {seed: done[Cell(arm, rotate, 0 if once else seed)][metric] for seed in range(seeds)}


def compared(
    done: Mapping[Cell, Mapping[str, Any]], rotate: bool, metric: str, seeds: int, arms: Sequence[str]
) -> tuple[dict[str, Paired], dict[str, float]]:
    """Each arm less plain GPTQ, above 0 where it is better, and p-values corrected."""
    base, sign = of_arm(done, GPTQ, rotate, metric, seeds), METRICS[metric]
    others = [arm for arm in arms if arm != GPTQ]
    found = {}
    for arm in others:
        own = of_arm(done, arm, rotate, metric, seeds)
        signed = ({seed: sign * each for seed, each in x.items()} for x in (own, base))
        found[arm] = paired(*signed, len(others))
    return found, holm({arm: each.p for arm, each in found.items()})


def table(done: Mapping[Cell, Mapping[str, Any]], seeds: int, arms: Sequence[str] = ARMS) -> list[str]:
    """Markdown: a row an arm, in hundredths; differences are gains, and the verdict is on KL."""
    heads = [cell for name in NAMES.values() for cell in (name, f"gain on {GPTQ} [95 %]")]
    lines = [f"| rotated | arm | weighted error | {' | '.join(heads)} | verdict on KL |"]
    lines.append("|---" * (len(heads) + 4) + "|")
    for rotate in (False, True):
        found = {metric: compared(done, rotate, metric, seeds, arms) for metric in METRICS}
        for arm in arms:
            errors = [each for each in of_arm(done, arm, rotate, "error", seeds).values() if each is not None]
            told = ["yes" if rotate else "no", arm, f"{100 * np.mean(errors):.2f}" if errors else ""]
            for metric in METRICS:
                own = of_arm(done, arm, rotate, metric, seeds)
                told += [f"{100 * np.mean([*own.values()]):.2f}", _gain(found[metric][0].get(arm))]
            each, p = (x.get(arm) for x in found["kl"])
            told.append(verdict(each, p) if each is not None and p is not None else "")
            lines.append(f"| {' | '.join(told)} |")
    return lines


def _gain(found: Paired | None) -> str:
    if found is None:
        return ""
    mean, low, high = (f"{100 * x:+.2f}" for x in (found.mean, found.low, found.high))
    return f"{mean} [{low}, {high}]"


def head(setting: Setting, whole: Answers, same: Answers, seeds: int) -> str:
    """The model in float32 beside its first stage, and what was done to it. `same`: its rounded answers."""
    first = gains(whole.queries.ranks(whole.queries.first))[0]
    less = paired(dict(enumerate(whole.ndcg.tolist())), dict(enumerate(first.tolist())))
    low, high = (f"{100 * x:+.1f}" for x in (less.low, less.high))
    group = f"groups of {setting.group}" if setting.group else "a scale a row"
    floor = same.measured(whole)
    return (
        f"{setting.bits} bits, {group}, {setting.samples} pairs, {seeds} seeds, {len(first)} queries. In "
        f"float32 nDCG@10 is {100 * whole.ndcg.mean():.1f}, {100 * less.mean:+.1f} [{low}, {high}] to the "
        f"first stage's, and the perplexity {np.exp(whole.losses.mean()):.1f}. Its own weights in the "
        f"arithmetic that few bits are asked in: KL {100 * floor['kl']:.2f}, tau {100 * floor['tau']:.1f}. "
        "In hundredths:"
    )


def reranker(encoder: str, folder: Path) -> Path:
    """Mined rows in `folder/words`, and the folder of what has learned from them; both once."""
    (folder / "words").mkdir(parents=True, exist_ok=True)
    words(encoder, folder / "words")
    if not (folder / "run" / "model").exists():
        usual = SETTINGS["words"]
        whole = {**usual.model, "layer": None, "lora": {**LORA, "target": TARGET}}
        how = replace(usual, model=whole)
        trained(Training("words", "contrastive", 0, RATE), how, folder / "words", folder)
    return folder / "run" / "model"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", required=True, help="the first stage: a dual encoder's folder or Hub id")
    parser.add_argument("--folder", type=Path, default=Path("runs/compare_quantization"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="GPTQ is always among them")
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--group", type=int)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--readme", type=Path, metavar="README.md", help="write the table into it")
    asked = parser.parse_args()
    if asked.readme:
        between(asked.readme.read_text(encoding="utf-8"), BEGIN, END, "")
    model = reranker(asked.encoder, asked.folder)
    setting = Setting(
        reranker=str(model), rows=str(asked.folder / "words"), bits=asked.bits, group=asked.group
    )
    whole, same = (ask(vlalign.load(model), setting) for ask in (Answers.of, Answers.rounded))
    arms = [arm for arm in ARMS if arm in {GPTQ, *asked.arms}]
    done = complete(asked.folder / "cells.jsonl", setting, whole, asked.seeds, asked.processes, arms)
    lines = [head(setting, whole, same, asked.seeds), "", *table(done, asked.seeds, arms)]
    Console(width=200).print("\n".join(lines))
    if asked.readme:
        text = asked.readme.read_text(encoding="utf-8")
        files.write_text(asked.readme, between(text, BEGIN, END, "\n".join(lines)))


if __name__ == "__main__":
    main()
