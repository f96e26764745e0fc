"""Who finds the right texts that nobody has labelled, among the hard negatives of the pipeline's retriever?

    vlalign pipeline recipes/pipelines/unime_v2.yaml --jobs 2
    python scripts/compare_filters.py runs/unime_v2_pipeline/judge --readme README.md

Rows are Google's emoji, called by their labels; what is to be found are tags of the same concept that share
no word with the label. Each filter suspects what scores above a threshold, the best for F1 on one half of the
concepts, used on the other. Intervals: 95 %, 2,000 samples of concepts. The control has the judge's own
scores, each another candidate's of the same query.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from sklearn.metrics import precision_recall_curve
from tables import between

from vlalign.data.hashing import hash63
from vlalign.data.items import normal
from vlalign.data.overlap import word_overlap
from vlalign.files import write_text
from vlalign.infer.calibrate import calibrated

BEGIN, END = "<!-- filters: written by scripts/compare_filters.py -->", "<!-- end of filters -->"
SAMPLES = 2000
COSINE, WORDS = "cosine of the retriever", "words in common"
JUDGE, CONTROL = "judge", "the judge's scores, permuted"
Floats = NDArray[np.float64]


class Pairs:
    """Queries' unlabelled candidates, side by side: `scores` by filter, what is `right`, `concept` [P]."""

    def __init__(self, folder: Path) -> None:
        scores: dict[str, list[float]] = {}
        right, concept = list[bool](), list[str]()
        for line in (folder / "candidates.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            style, _, code = row["id"].partition("/")
            if style != "google":
                continue
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
            concept += [code.partition("-")[0]] * len(others)
        if not any(right):
            raise SystemExit(f"{folder}: no candidate is right and not labelled; is it the pipeline's judge?")
        self.scores = {name: np.array(own) for name, own in scores.items()}
        self.right, self.concept = np.array(right), np.unique(concept, return_inverse=True)[1]
        both = np.stack([self.scores[COSINE], self.scores[WORDS]], 1)
        self.scores["these two in one regression"] = calibrated(both, self.right, self.concept, 2)

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
    parser.add_argument("folder", type=Path, help="what the pipeline's stage `judge` wrote")
    parser.add_argument("--readme", type=Path, metavar="README.md", help="write the table into it")
    asked = parser.parse_args()
    pairs = Pairs(asked.folder)
    found = about(pairs)
    head = (
        f"{found['pairs']:,} unlabelled candidates of {found['concepts']} concepts, {found['right']} right."
    )
    lines = [head, "", *table(pairs)]
    Console(width=160).print("\n".join(lines))
    if asked.readme:
        text = asked.readme.read_text(encoding="utf-8")
        write_text(asked.readme, between(text, BEGIN, END, "\n".join(lines)))


if __name__ == "__main__":
    main()
