"""Whether weights of tokens help a captioner to say what it sees, by equal steps over the same descriptions.

    vlalign train recipes/generate/small_llava.yaml
    python scripts/compare_tokens.py --init runs/small_llava/model --readme README.md

The descriptions are those of one piece of clip art each. Arms: `plain` weighs nothing; `prior` weighs a token
by how badly a language model of the same captions guesses it (recipes/generate/prior.yaml); `shuffled` deals
these weights anew among the tokens of each caption; `rarity` has the tokens' shares in place of the language
model, `random` one that has learnt nothing. All that differs between seeds is the first projector, where
`--init` gives none, and the order of rows.

First what is asked of pictures that no arm has seen: of two descriptions, the true one and the same with one
attribute (a colour, a concrete noun of WordNet) that is another of its class, which has the larger mean
log-probability? Then the mean loss of the tokens of such words, of function words, and of what ends a
description, in true ones. Which words these are was fixed without any model. Differences are from `plain`
over the same seeds, with 95 % intervals over trainings. Rows are one split of one set, so for the question
there is a second interval, over the descriptions that are asked about, each by the mean of its items and of
all seeds: the verdict is by it, with Holm's correction over the arms.

Finished cells are kept in the folder, a line each, and not run again with the same settings.
"""

import argparse
import json
import multiprocessing
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from kept import Kept
from PIL import Image
from rich.console import Console
from tables import between
from token_words import Swap, Words, swaps
from torch.nn.attention import SDPBackend, sdpa_kernel
from verdicts import Paired, holm, paired, verdict

import vlalign
from vlalign.data.hashing import hash63
from vlalign.files import write_json, write_text
from vlalign.models.layout import folder_digest, located
from vlalign.recipe.decode import load_recipe
from vlalign.registry import SOURCES
from vlalign.train.loop import train
from vlalign.types import BadRow

RECIPES = Path(__file__).parents[1] / "recipes" / "generate"
BEGIN, END = "<!-- tokens: written by scripts/compare_tokens.py -->", "<!-- end of the tokens -->"
SIZE, ITEMS = 128, 400  # pixels of a picture's side, and questions
LEARNED, UNSEEN = "train", "unseen"
PLAIN, PRIOR = "plain", "prior"
LM = "caption_lm"  # a run, within the folder
ARMS: dict[str, tuple[str | None, Mapping[str, Any]]] = {  # a reference, and fields of the weighter
    PLAIN: (None, {}),
    PRIOR: ("model", {}),
    "shuffled": ("model", {"shuffled": True}),
    "rarity": ("unigram", {}),
    "random": ("random", {}),
}
RIVALS = ("shuffled", "rarity", "random")  # what `prior` is compared with besides
METRICS = {
    "right": "right, %",
    "visual": "loss of visual words",
    "function": "loss of function words",
    "end": "loss of the end",
}
FAST = torch.cpu._is_avx512_bf16_supported()  # elsewhere bfloat16 is many times slower than float32


class Cell(NamedTuple):
    """One training."""

    arm: str
    seed: int


class Setting(NamedTuple):
    """What all cells share. `changes`: of the recipes, by field; `lm`: of the language model's alone."""

    folder: Path
    changes: Mapping[str, Any]
    lm: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Another one where a cell may be another; of both models begun from the weights count."""
        models = [self.folder / LM, *filter(None, [self.changes.get("init")])]
        told = [
            json.dumps([{**self.changes, "init": None}, self.lm]),
            (self.folder / "items.json").read_text(encoding="utf-8"),
            load_recipe(RECIPES / "prior.yaml"),
            *(folder_digest(located(str(each), None)) for each in models),
        ]
        return f"{hash63(*told):016x}"


def prepare(folder: Path) -> None:
    """Small pictures with their descriptions, and the items."""
    spec = {"name": "openclipart", "captions": ["description"]}
    sources = {side: SOURCES.decode({**spec, "split": side}).build() for side in (LEARNED, UNSEEN)}
    times = Counter(each.captions(index)[0] for each in sources.values() for index in range(len(each)))
    captions = {side: _written(source, times, folder, side) for side, source in sources.items()}
    asked = swaps(Words.of_wordnet(), captions[LEARNED], captions[UNSEEN], ITEMS, seed=0)
    write_json(folder / "items.json", asked)  # last: what is there is whole


def _written(source: Any, times: Mapping[str, int], folder: Path, side: str) -> list[str]:
    """What is said of several pictures, or is an address, describes none and is left out."""
    lines, captions = list[str](), list[str]()
    (folder / side).mkdir(parents=True, exist_ok=True)
    for index in range(len(source)):
        [caption] = source.captions(index)
        if times[caption] > 1 or "@" in caption or "://" in caption:
            continue
        try:
            image = source[index]["image"]
        except BadRow:
            continue
        captions.append(caption)
        name = f"{side}/{index}.png"
        image.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(folder / name)
        lines.append(json.dumps({"id": str(index), "image": name, "caption": caption}) + "\n")
    write_text(folder / f"{side}.jsonl", "".join(lines))
    return captions


def reference(setting: Setting) -> Path:
    """The run of the language model that sees no picture; one that is finished is left as it is."""
    out = setting.folder / LM
    _train("caption_lm.yaml", out, setting, {"evals": [], **setting.lm})
    return out


def _train(recipe: str, out: Path, setting: Setting, changes: Mapping[str, Any]) -> None:
    data = {"name": "jsonl", "path": str(setting.folder / f"{LEARNED}.jsonl"), "id": "id"}
    told = {"out": str(out), "data.train": data, "precision": "bf16" if FAST else "fp32", "log.trackers": []}
    made = load_recipe(RECIPES / recipe, [f"{k}={json.dumps(v)}" for k, v in {**told, **changes}.items()])
    with sdpa_kernel(
        SDPBackend.MATH
    ):  # a quarter of a step less than the fused attention of bfloat16 on CPUs
        train(made)


def run(cell: Cell, setting: Setting) -> tuple[Cell, dict[str, Any]]:
    """Train one and ask it."""
    start = perf_counter()
    which, fields = ARMS[cell.arm]
    lm = {"name": "language_model", "model": str(setting.folder / LM)}
    references = {"model": lm, "random": lm | {"pretrained": False}, "unigram": {"name": "unigram"}}
    weighters = [{"name": "prior", **fields}] if which else []
    changes = {
        **setting.changes,
        "data.reference": references[which] if which else None,
        "task.token_terms": [{"objective": "cross_entropy", "weighters": weighters}],
        "seed": cell.seed,
        "evals": [],
    }
    with tempfile.TemporaryDirectory(dir=setting.folder) as name:
        _train("prior.yaml", Path(name) / "run", setting, changes)
        trained = perf_counter()
        found = measured(vlalign.load(Path(name) / "run"), setting.folder)
    return cell, {**found, "seconds": [trained - start, perf_counter() - trained]}


def measured(model: Any, folder: Path) -> dict[str, Any]:
    """`right`: the share of items; `described`: by description, with that as mean; losses, nats a token."""
    rows = [
        json.loads(line) for line in (folder / f"{UNSEEN}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    items = [Swap(*each) for each in json.loads((folder / "items.json").read_text(encoding="utf-8"))]
    pictures, captions = [folder / row["image"] for row in rows], [row["caption"] for row in rows]
    with torch.autocast("cpu", torch.bfloat16, enabled=FAST):
        own = model.losses(pictures, captions)
        other = model.losses([pictures[each.row] for each in items], [each.false for each in items])
    less = torch.stack([x.mean() - own[each.row].mean() for x, each in zip(other, items, strict=True)])
    right = ((less > 0) + 0.5 * (less == 0)).tolist()
    described = dict.fromkeys([str(each.row) for each in items], 0.0)
    for each, one in zip(items, right, strict=True):
        described[str(each.row)] += one * len(described) / len(items)
    by_kind, words = defaultdict[str, list[float]](list), Words.of_wordnet()
    for losses, caption in zip(own, captions, strict=True):
        kinds = token_kinds(words, model.model.process.tokenizer, caption)
        for kind, loss in zip(kinds, losses.tolist(), strict=False):  # the end of a long one is cut
            by_kind[kind].append(loss)
    means = {kind: sum(each) / len(each) for kind, each in by_kind.items()}
    return {
        "right": sum(right) / len(items),
        "described": described,
        "loss": float(torch.cat(own).mean()),
        **means,
    }


def token_kinds(words: Words, tokenizer: Any, caption: str) -> list[str]:
    """`visual`, `function` or `other` of each token of a caption, and `end` of what ends it."""
    spans = words.spans(caption)
    found = tokenizer(caption, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    kinds = [next((kind for a, b, kind in spans if a < stop and start < b), "other") for start, stop in found]
    return [*kinds, "end"]


def summary(done: Mapping[Cell, Mapping[str, Any]]) -> dict[str, dict[str, Paired]]:
    """Each metric of an arm that has all seeds of `plain`, less its; and that of `prior` less its rivals'.

    `described`: over descriptions, all others over seeds.
    """
    own: dict[str, dict[int, Mapping[str, Any]]] = {}
    for cell, row in done.items():
        own.setdefault(cell.arm, {})[cell.seed] = row
    whole = [arm for arm in ARMS if own.get(arm, {}).keys() == own.get(PLAIN, {}).keys()]
    pairs = {arm: (arm, PLAIN) for arm in whole[1:]}
    pairs |= {f"{PRIOR} less {arm}": (PRIOR, arm) for arm in RIVALS if {arm, PRIOR} <= {*whole}}

    def column(arm: str, metric: str) -> dict[int, float]:
        if metric != "described":
            return {seed: row[metric] for seed, row in own[arm].items()}
        each = [row[metric] for row in own[arm].values()]
        return {int(place): sum(one[place] for one in each) / len(each) for place in each[0]}

    return {
        name: {
            each: paired(column(arm, each), column(base, each), len(pairs))
            for each in (*METRICS, "described")
        }
        for name, (arm, base) in pairs.items()
    }


def table(done: Mapping[Cell, Mapping[str, Any]]) -> list[str]:
    """Markdown: `plain`, what the others differ from it by, and what could have been seen."""
    found = summary(done)
    corrected = holm({name: each["described"].p for name, each in found.items()})
    base = [row for cell, row in done.items() if cell.arm == PLAIN]
    means = [sum(row[name] for row in base) / len(base) for name in METRICS]
    lines = [f"| | {' | '.join(METRICS.values())} | verdict |", "|---" * (len(METRICS) + 2) + "|"]
    lines.append(f"| {PLAIN} | {100 * means[0]:.1f} | {' | '.join(f'{each:.3f}' for each in means[1:])} | |")
    for name, each in found.items():
        over = each["described"]
        told = [
            f"{_cell(each['right'], 100, 1)}, [{100 * over.low:+.1f}, {100 * over.high:+.1f}] "
            f"(D {100 * over.detectable:.1f})",
            *(_cell(each[name], 1, 3) for name in list(METRICS)[1:]),
        ]
        lines.append(f"| {' | '.join([name, *told, verdict(over, corrected[name])])} |")
    seeds = (
        f"{len(base)} seeds, {len(base[0]['described'])} descriptions; D: the difference that would be found "
        "in 4 of 5 such studies; of what is right, first over seeds, then over descriptions."
    )
    return [*lines, "", seeds]


def _cell(each: Paired, times: float, digits: int) -> str:
    mean, low, high = (f"{times * x:+.{digits}f}" for x in (each.mean, each.low, each.high))
    return f"{mean} [{low}, {high}] (D {times * each.detectable:.{digits}f})"


def measure(setting: Setting, arms: Sequence[str], seeds: int, processes: int, say: Any) -> dict[Cell, Any]:
    """Every cell that is missing, each on one thread."""
    done = Kept(setting.folder / "cells.jsonl", Cell, setting.digest)
    wanted = [Cell(arm, seed) for seed in range(seeds) for arm in arms]
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(processes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        todo = [cell for cell in wanted if cell not in done.rows]
        for cell, row in pool.imap_unordered(partial(run, setting=setting), todo):
            done.add(cell, row)
            trained, asked = row["seconds"]
            say(f"{cell.arm}, seed {cell.seed}: {100 * row['right']:.1f} %, {trained:.0f} + {asked:.0f} s")
    return {cell: done.rows[cell] for cell in wanted}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--init", help="a captioner to start from, of the recipe's shape")
    parser.add_argument("--steps", type=int, default=50, help="of 16 rows")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS)[1:], default=list(ARMS)[1:])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("runs/compare_tokens"))
    parser.add_argument("--readme", type=Path, metavar="README.md", help="write the table into it")
    asked = parser.parse_args()
    if asked.seeds < 2:
        parser.error(f"--seeds must be >= 2, got {asked.seeds}")
    if asked.readme:
        between(asked.readme.read_text(encoding="utf-8"), BEGIN, END, "")  # or hours would be for nothing
    if not (asked.folder / "items.json").is_file():
        prepare(asked.folder)
    setting = Setting(asked.folder, {"init": asked.init, "steps": asked.steps}, {})
    reference(setting)
    console = Console(width=160)
    done = measure(setting, [PLAIN, *asked.arms], asked.seeds, asked.processes, console.print)
    lines = table(done)
    console.print("\n".join(lines))
    if asked.readme:
        text = asked.readme.read_text(encoding="utf-8")
        write_text(asked.readme, between(text, BEGIN, END, "\n".join(lines)))


if __name__ == "__main__":
    main()
