"""Many sets and the means over them: a folder in MMEB's layout, against loops written by hand."""

import json
import math
from functools import cache
from statistics import fmean

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import vlalign
from vlalign.evals.ranking import measured
from vlalign.evals.report.page import write as write_report
from vlalign.evals.rows import write_rows
from vlalign.recipe.decode import load_recipe
from vlalign.registry import EVALUATORS, encode
from vlalign.types import DataError, Item, Limits

SETS = {"Things": 4, "Places": 2, "Answers": 3, "Boxes": 1}  # queries
GROUPS = {"classification": ["Things", "Places"], "vqa": ["Answers"], "new": ["Boxes", "Places", "Answers"]}
WORDS = ["cat", "dog", "cow", "bird", "fish", "tree", "house", "car", "sky", "sea", "sun", "moon"]


class Scored:
    """Scores that look random, and are always the same."""

    def score(self, queries, candidates):
        told = [
            [self.of(query, each) for each in own] for query, own in zip(queries, candidates, strict=True)
        ]
        return [torch.tensor(own, dtype=torch.float64) for own in told]

    def of(self, query, candidate):
        return np.random.default_rng([*f"{text(query)}>{text(candidate)}".encode()]).random()


def text(each):
    return each.text if isinstance(each, Item) else each


@pytest.fixture
def folder(tmp_path):
    """Sets as MMEB-eval has them: the first target is right; those of Boxes are pictures."""
    random = np.random.default_rng(0)
    for name, queries in SETS.items():
        rows = []
        for query in range(queries):
            targets = random.choice(WORDS, 7, replace=False).tolist()
            paths = [f"{name}/{query}-{at}.png" if name == "Boxes" else "" for at in range(7)]
            asked = f"{name}/{query}.png"
            for path in filter(None, [asked, *paths]):
                (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
                pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / path)
            rows.append(
                {
                    "qry_text": f"<|image_1|>\nWhich of {name} is {query}?\n",
                    "qry_img_path": asked,
                    "tgt_text": [f"<|image_1|>\n{each}" if name == "Boxes" else each for each in targets],
                    "tgt_img_path": paths,
                }
            )
        (tmp_path / "sets" / name).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "sets" / name / "test-00000-of-00001.parquet")
    return tmp_path


def evaluator(folder, **fields):
    sets = {"name": "mmeb_eval", "path": str(folder / "sets"), "images": str(folder / "images")}
    told = {"dataset": "mmeb", "sets": sets, "groups": GROUPS, "metrics": ["Success@1", "nDCG@5"]}
    return EVALUATORS.decode({"name": "benchmark", **told, **fields})


def by_hand(folder, name, score):
    """hit@1 and ndcg_linear@5 of a set: means over rows, of which the first target alone is right."""
    hits, gains = [], []
    for row in pq.read_table(folder / "sets" / name).to_pylist():
        query = row["qry_text"].replace("<|image_1|>", "").strip(), row["qry_img_path"]
        targets = zip(row["tgt_text"], row["tgt_img_path"], strict=True)
        scores = [score(query, (t.replace("<|image_1|>", "").strip(), path)) for t, path in targets]
        rank = 1 + sum(other > scores[0] for other in scores[1:])
        hits.append(float(max(range(len(scores)), key=scores.__getitem__) == 0))
        gains.append(1 / math.log2(1 + rank) if rank <= 5 else 0.0)
    return fmean(hits), fmean(gains)


def check(folder, rows, score):
    found = {row.dataset: row.metrics for row in rows}
    wanted = {name: by_hand(folder, name, score) for name in SETS}
    for name, numbers in wanted.items():
        own = found[f"mmeb/{name}"]
        assert (own["Success@1"], own["nDCG_linear@5"]) == pytest.approx(numbers, abs=1e-12)
    means = {"mmeb": SETS} | {f"mmeb/{group}": names for group, names in GROUPS.items()}
    for dataset, names in means.items():
        for at, metric in enumerate(("Success@1", "nDCG_linear@5")):
            assert found[dataset][metric] == pytest.approx(
                fmean(wanted[name][at] for name in names), abs=1e-12
            )
    assert len({own["nDCG_linear@5"] for own in found.values()}) > 4  # they are not all alike


def test_sets_groups_and_all_are_what_loops_by_hand_say(folder, tmp_path):
    rows = evaluator(folder)(Scored(), Limits())
    assert [row.dataset for row in rows] == [f"mmeb/{name}" for name in (*SETS, *GROUPS)] + ["mmeb"]
    check(folder, rows, lambda query, target: Scored().of(query[0], target[0]))
    last = rows[-1]
    assert set(last.metrics) == set(last.chance) == {"Success@1", "nDCG_linear@5"}
    assert last.chance["Success@1"] == pytest.approx(1 / 7) and last.exhibits == {"sets": [*SETS]}
    write_rows(tmp_path / "out", rows)
    assert "mmeb/<wbr>classification" in write_report(tmp_path / "out").read_text()


def test_a_dual_encoder_is_measured_by_the_cosines_of_what_it_embeds(folder):
    torch.manual_seed(0)
    model = vlalign.load("recipes/tiny/open_clip")

    @cache
    def embedded(each):
        images = (folder / "images" / each[1],) if each[1] else ()
        return model.embed([Item(text=each[0], images=images)])[0]

    rows = evaluator(folder)(model, Limits())
    check(folder, rows, lambda query, target: float(embedded(query) @ embedded(target)))


def test_ndcg_with_linear_gains_is_the_loop_by_hand():
    """Grades, several right ones, and right ones that were not retrieved."""
    random = np.random.default_rng(3)
    run, qrels = {}, {}
    for query in "abcdefgh":
        documents = [f"d{at}" for at in range(9)]
        qrels[query] = {each: int(random.integers(0, 4)) for each in documents}
        run[query] = {each: float(x) for each, x in zip(documents[:7], random.permutation(7), strict=True)}
    (found,) = measured(run, qrels, ("nDCG@5",), "linear").values()
    for query, scores in run.items():
        ranked = sorted(scores, key=scores.get, reverse=True)[:5]
        best = sorted(qrels[query].values(), reverse=True)[:5]
        gain = sum(qrels[query][each] / math.log2(2 + at) for at, each in enumerate(ranked))
        most = sum(grade / math.log2(2 + at) for at, grade in enumerate(best))
        assert found[query] == pytest.approx(gain / most, abs=1e-12)


def test_first_stage_and_fusion_have_means_of_their_own(tmp_path):
    for at, name in enumerate(("one", "two")):
        home = tmp_path / name
        home.mkdir()
        lines = [{"_id": id, "text": f"{id} {name}"} for id in "abc"]
        (home / "corpus.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
        (home / "queries.jsonl").write_text('{"_id": "q", "text": "q"}\n')
        (home / "qrels.tsv").write_text(f"query-id\tcorpus-id\tscore\nq\t{'ab'[at]}\t1\n")
        (home / "run.trec").write_text(
            "".join(f"q Q0 {id} 0 {score} t\n" for id, score in zip("abc", (3, 2, 1), strict=True))
        )
    told = {"sets": {"name": "mrb", "path": str(tmp_path)}, "groups": {"some": ["two"]}, "metrics": ["P@1"]}
    told |= {"groups": {"some": ["two"], "both": ["one", "two"]}, "dataset": "mrb", "first_stage": "score"}
    rows = EVALUATORS.decode({"name": "benchmark", **told})(Scored(), Limits())
    kinds = ("/first_stage", "/fused", "")
    assert [row.dataset for row in rows[6:]] == [
        f"mrb{mean}{kind}" for mean in ("/some", "/both", "") for kind in kinds
    ]
    found = {row.dataset: row.metrics["P@1"] for row in rows}
    assert (found["mrb/some/first_stage"], found["mrb/both/first_stage"]) == (0, 0.5)
    assert found["mrb"] == found["mrb/both"] == (found["mrb/one"] + found["mrb/two"]) / 2


def test_what_cannot_be_measured_is_told_before_anything_is(folder):
    own = evaluator(folder, groups={"all": ["Things", "Nowhere", "Boxes", "Else"]})

    class Nothing:
        def score(self, queries, candidates):
            raise AssertionError

    for begin in (lambda: own(Nothing(), Limits()), own.data.build):
        with pytest.raises(
            DataError, match="sets has no Nowhere, Else; put the sets there, or take them out"
        ):
            begin()
    evaluator(folder).data.build()
    (folder / "sets" / "Boxes" / "test-00000-of-00001.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        evaluator(folder).data.build()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"groups": {}}, "groups must have sets, each once in a group: there is none"),
        ({"groups": {"a": []}}, "groups must have sets, each once in a group: a"),
        ({"groups": {"a": ["x", "x"]}}, "groups must have sets, each once in a group: a"),
        ({"groups": {"a": ["x"], "x": ["y"]}}, "'x' is both"),
        ({"sets": {"name": "jsonl", "path": "x"}}, "sets must be read from a folder each"),
        ({"metrics": ["hit@1"]}, "'hit@1' is no metric of a ranking"),
        ({"limit": 0}, "limit must be >= 1, got 0"),
    ],
)
def test_mistakes_are_told_when_it_is_read(folder, fields, why):
    with pytest.raises(ValueError, match=why):
        evaluator(folder, **fields)


def test_the_recipe_has_every_set_of_mmeb_in_one_meta_task_and_on_one_side(folder):
    (own,) = load_recipe("recipes/eval/mmeb.yaml").evals
    sizes = {name: len(sets) for name, sets in own.groups.items()}
    assert sizes == {
        "classification": 10, "vqa": 10, "retrieval": 12, "grounding": 4, "in_distribution": 20,
        "out_of_distribution": 16,
    }  # fmt: skip
    of = [{name for group in part for name in own.groups[group]} for part in ([*sizes][:4], [*sizes][4:])]
    assert of[0] == of[1] and len(of[0]) == 36
    assert EVALUATORS.decode(encode(own, component=True)) == own
    assert encode(evaluator(folder, limit=2), component=True)["limit"] == 2
    assert [row.exhibits["rows"]["used"] for row in evaluator(folder, limit=2)(Scored(), Limits())[:4]] == [
        2,
        2,
        2,
        1,
    ]
