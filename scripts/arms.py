"""What `compare_methods.py` compares: each method as its recipe says it, and the data that it is put to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from cells import Arm, Rows
from study_data import BOILERPLATE, CLIP_ART, EMOJI, NAMES, data

from vlalign.models.pair import Bias

BASELINE, TWIN = "info_nce", "info_nce, another seed"
ORACLE = "planted pairs removed"


def terms(*objectives: Any, **more: Any) -> dict[str, Any]:
    """A task of these objectives over the table."""
    return {"targets": "identity", "terms": [{"objective": each, **more} for each in objectives]}


def beside(objective: Any, scale: float, **arm: Any) -> Arm:
    """The baseline with a companion, an objective of the embeddings themselves."""
    companion = {"objective": objective, "scale": scale}
    return Arm(task=terms(BASELINE) | {"embedding_terms": [companion]}, **arm)


def one_way(objective: Any, direction: str, scale: float = 1.0, **more: Any) -> dict[str, Any]:
    """A term in one direction."""
    return {"objective": objective, "directions": [direction], "scale": scale, **more}


def taught(objective: Any) -> Arm:
    """The baseline beside a teacher's opinion of every picture and caption of a batch."""
    contrast = {"objective": BASELINE}
    return Arm(
        task={"targets": "identity", "terms": [contrast, {"objective": objective, "targets": TEACHER}]},
        annotate=TEXTS,
    )


UNLIKE, LIKE = "unlike batches (G-SimCLR)", "like batches (MCL)"
RCAL, FILTER, SENTENCES = "virtual pictures (RCAL)", "filter (ALIGN)", "a sentence at a time (ConVIRT)"
SMOOTH, GCOOL = "label smoothing (ALIGN)", "communities, negatives weighed (gCooL)"
DYNAMIC = ("dynamic, linupper", "dynamic, quadratic")
CONVIRT = "two directions, 3 to 1 (ConVIRT)"
OWN = {"name": "info_nce", "temperature": "1/SCALE"}
IMAGES = {"image_features": {"name": "features", "side": "image"}}
TEXTS = {"text_features": {"name": "features", "side": "text"}}
# A reader of captions in the pictures' place: probabilities exp(5 (cosine - 1)), of which few are high.
TEACHER = {"name": "cwcl", "field": "text_features", "sharpness": 5.0}
KL, LIST_MLE, CPRD = (
    f"a teacher's {what}" for what in ("shares (KL)", "order (ListMLE)", "hard order (CPRD)")
)
CLUSTERS = {"cluster": {"name": "kmeans", "k": 300, "side": "text"}}
FEW = {"cluster": {"name": "kmeans", "k": 2, "side": "image"}}
SUBCLASSES = {
    "subclass": {"name": "subclasses", "by": "subcategory", "side": "image"},
    "spread": {"name": "spread", "by": "subcategory", "side": "image"},
}

ARMS: Mapping[str, Arm] = {
    BASELINE: Arm(task=terms(BASELINE)),
    TWIN: Arm(task=terms(BASELINE)),
    # objectives
    SMOOTH: Arm(task=terms({"name": "info_nce", "label_smoothing": 0.1})),
    CONVIRT: Arm(
        task={
            "targets": "identity",
            "terms": [one_way(OWN, "query_to_key", 0.75), one_way(OWN, "key_to_query", 0.25)],
        }
    ),
    "dcl": Arm(task=terms("dcl")),
    "dcl, von Mises weights": Arm(task=terms({"name": "dcl", "sigma": 0.5})),
    "cacr": Arm(task=terms({"name": "cacr", "t_minus": "SCALE"})),
    "mann_whitney": Arm(task=terms({"name": "mann_whitney", "temperature": "1/SCALE"})),
    "pairwise_logistic": Arm(task=terms({"name": "pairwise_logistic", "temperature": "1/SCALE"})),
    "sigmoid": Arm(task=terms("sigmoid"), bias=Bias(init=-10.0, learn=True)),
    "groco": Arm(task=terms({"name": "groco", "beta": "SCALE"})),
    # companions
    "swav": beside({"name": "swav", "prototypes": 8}, 0.2),
    "simsiam": beside("simsiam", 0.2),
    "byol": beside({"name": "byol", "width": 512}, 0.2, ema=0.99),
    "barlow": beside("barlow", 1.0),
    "communities": beside("communal", 0.1, annotate=TEXTS),
    GCOOL: Arm(
        task=terms(BASELINE)
        | {"embedding_terms": [{"objective": "communal", "scale": 0.1}], "selectors": ["communal"]},
        annotate=TEXTS,
    ),
    "sbcl": beside("sbcl", 0.2, annotate=SUBCLASSES),
    "core_tuning": beside({"name": "core_tuning", "field": "subcategory"}, 0.1),
    # targets
    "cwcl": Arm(
        task={
            "targets": "identity",
            "terms": [
                one_way("info_nce", "query_to_key", targets="cwcl"),
                one_way("info_nce", "key_to_query"),
            ],
        },
        annotate=IMAGES,
    ),
    "cwcl, sharpened": Arm(
        task={
            "targets": "identity",
            "terms": [
                one_way("info_nce", "query_to_key", targets={"name": "cwcl", "sharpness": 20.0}),
                one_way("info_nce", "key_to_query"),
            ],
        },
        annotate=IMAGES,
    ),
    "graded": Arm(
        task=terms(BASELINE) | {"targets": {"name": "graded", "levels": ["category", "subcategory"]}}
    ),
    # weighters
    "focal": Arm(task=terms(BASELINE, weighters=["focal"])),
    DYNAMIC[0]: Arm(task=terms(BASELINE, weighters=[{"name": "dynamic", "warmup": 0}])),
    DYNAMIC[1]: Arm(
        task=terms(BASELINE, weighters=[{"name": "dynamic", "strategy": "quadratic", "warmup": 0}])
    ),
    "uncertainty": Arm(task=terms(BASELINE, weighters=["uncertainty"])),
    "storm": Arm(task=terms(BASELINE, weighters=["storm"])),
    # selectors, mixers, samplers
    "same concepts apart": Arm(
        task=terms(BASELINE) | {"selectors": [{"name": "same_label", "field": "concept"}]}
    ),
    "near duplicates apart": Arm(
        task=terms(BASELINE)
        | {"selectors": [{"name": "near_duplicate", "field": "text_features", "threshold": 0.8}]},
        annotate=TEXTS,
    ),
    "false negatives apart": Arm(task=terms(BASELINE) | {"selectors": ["false_negative"]}),
    "pair_mix": Arm(task=terms(BASELINE, mixers=["pair_mix"])),
    "list_mix": Arm(task=terms(BASELINE, mixers=["list_mix"])),
    UNLIKE: Arm(
        task=terms(BASELINE),
        sampler={"name": "clustered", "by": "cluster", "mode": "exclusive", "leftover": "spill"},
        annotate=CLUSTERS,
    ),
    LIKE: Arm(
        task=terms(BASELINE),
        sampler={"name": "clustered", "by": "cluster", "mode": "inclusive"},
        annotate=FEW,
    ),
    "matryoshka": Arm(
        task=terms(BASELINE)
        | {"matryoshka": [{"dim": 128}, {"dim": 64, "weight": 0.3}, {"dim": 32, "weight": 0.2}]}
    ),
    # distillation
    KL: taught({"name": "kl", "target_temperature": 0.2}),
    LIST_MLE: taught("list_mle"),
    CPRD: taught("cprd"),
    # where their data are
    "sup_re_mix": beside({"name": "sup_re_mix", "field": "order"}, 0.5),
    RCAL: Arm(task=terms(BASELINE), calibrate={"field": "subcategory", "head": 4}),
    FILTER: Arm(task=terms(BASELINE), rules={"words": (2, 20), "short_side": None, "aspect": None}),
    SENTENCES: Arm(task=terms(BASELINE), sentences=True),
}


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Data, and what is done to them. `plant`: rows and a generator -> rows, and which are planted [N].

    `metric`: what arms are compared by. `arms`: those that are, null: all that are of no condition alone.
    """

    data: str = EMOJI
    metric: str = "mrr"
    batch: int = 256
    epochs: int = 40
    plant: Callable[[Rows, np.random.Generator], tuple[Rows, torch.Tensor]] | None = None
    thin: Callable[[Rows, np.random.Generator], Rows] | None = None
    arms: tuple[str, ...] | None = None


def permuted(rows: Rows, random: np.random.Generator, share: float = 0.3) -> tuple[Rows, torch.Tensor]:
    """Some rows swap captions in a ring, so that none keeps its own."""
    ring = torch.from_numpy(random.permutation(len(rows))[: round(share * len(rows))])
    text, caption = rows.text.clone(), rows.fields["caption"].clone()
    text[ring], caption[ring] = rows.text[ring.roll(1)], rows.fields["caption"][ring.roll(1)]
    planted = torch.zeros(len(rows), dtype=torch.bool)
    planted[ring] = True
    return replace(rows, text=text, fields={**rows.fields, "caption": caption}), planted


def duplicated(rows: Rows, random: np.random.Generator, share: float = 0.3) -> tuple[Rows, torch.Tensor]:
    """Some rows come twice, as different rows of one concept: each is a false negative of the other."""
    some = torch.from_numpy(random.permutation(len(rows))[: round(share * len(rows))])
    copy = rows.at(some)
    copied = {name: torch.cat([x, copy.fields[name]]) for name, x in rows.fields.items()}
    copied["row"] = torch.cat([rows.fields["row"], copy.fields["row"] ^ 1])
    planted = torch.arange(len(rows) + len(some)) >= len(rows)
    both = (torch.cat([getattr(rows, side), getattr(copy, side)]) for side in ("image", "text"))
    return Rows(*both, copied), planted


def littered(rows: Rows, random: np.random.Generator, share: float = 0.3) -> tuple[Rows, torch.Tensor]:
    """Some captions are what stands beside pictures on pages: boilerplate, or the name of a file."""
    junk, some = data()["junk"], torch.from_numpy(random.permutation(len(rows))[: round(share * len(rows))])
    half = len(some) // 2
    names = len(BOILERPLATE) + random.permutation(len(NAMES))[: len(some) - half]
    drawn = torch.from_numpy(np.concatenate([random.integers(len(BOILERPLATE), size=half), names]))
    text, caption = rows.text.clone(), rows.fields["caption"].clone()
    text[some], caption[some] = junk.text[drawn], junk.fields["caption"][drawn]
    planted = torch.zeros(len(rows), dtype=torch.bool)
    planted[some] = True
    words = {**rows.words, **junk.words}
    return replace(rows, text=text, words=words).having(caption=caption), planted


def zipf(rows: Rows, random: np.random.Generator) -> Rows:
    """The k-th of the subcategories, in a drawn order, keeps a share of 1 / k of its rows, at least one."""
    labels = rows.fields["subcategory"].numpy()
    kept = []
    for rank, label in enumerate(random.permutation(np.unique(labels)), start=1):
        own = random.permutation(np.flatnonzero(labels == label))
        kept.append(own[: max(1, round(len(own) / rank))])
    return rows.at(torch.from_numpy(np.sort(np.concatenate(kept))))


APART = ("same concepts apart", "near duplicates apart", "false negatives apart")
OBJECTIVES = ("dcl", "cacr", "pairwise_logistic", "sigmoid")
ALONE = (RCAL, FILTER, SENTENCES, KL, LIST_MLE, CPRD, "mann_whitney", "storm")  # the last two for their cost
RIVALS = ((CPRD, KL), (CPRD, LIST_MLE))  # compared with each other as well
CONDITIONS: Mapping[str, Condition] = {
    "clean": Condition(),
    "30 % permuted captions": Condition(
        plant=permuted,
        arms=(*OBJECTIVES, SMOOTH, "focal", *DYNAMIC, "uncertainty", "storm"),
    ),
    "30 % duplicated concepts": Condition(
        epochs=31,  # as many steps as without the copies
        plant=duplicated,
        arms=("dcl", "sigmoid", SMOOTH, "communities", GCOOL, "cwcl", "cwcl, sharpened", *APART, UNLIKE),
    ),
    "batch 16": Condition(
        batch=16, epochs=6, arms=(*OBJECTIVES, "dcl, von Mises weights", "mann_whitney", "swav", "barlow")
    ),
    "Zipf tail": Condition(batch=64, epochs=120, thin=zipf, arms=(*OBJECTIVES, "sbcl", "core_tuning", RCAL)),
    "30 % junk captions": Condition(plant=littered, arms=(SMOOTH, *DYNAMIC, FILTER)),
    "graded relevance, nDCG@10": Condition(
        metric="ndcg@10", arms=("graded", "cwcl", "near duplicates apart", "sup_re_mix")
    ),
    "distilled, nDCG@10": Condition(metric="ndcg@10", arms=(KL, LIST_MLE, CPRD)),
    "clip art, several sentences": Condition(data=CLIP_ART, epochs=20, arms=(CONVIRT, SENTENCES)),
}
# Where papers, or what follows from them, say that an arm helps; one is said to hurt.
CLAIMED = {
    "clean": (
        *("swav", "simsiam", "byol", "barlow", "groco", "core_tuning"),
        *("focal", "dynamic, linupper", "pair_mix", "list_mix", LIKE),
    ),
    "30 % permuted captions": ("uncertainty", "storm", "dynamic, quadratic"),
    "30 % duplicated concepts": ("communities", GCOOL, "cwcl", "cwcl, sharpened", *APART, UNLIKE),
    "batch 16": ("dcl", "dcl, von Mises weights", "mann_whitney", "sigmoid", "swav"),
    "Zipf tail": ("cacr", "sbcl", RCAL),
    "30 % junk captions": (FILTER, "dynamic, quadratic"),
    "graded relevance, nDCG@10": ("graded", "sup_re_mix"),
    "distilled, nDCG@10": (KL, LIST_MLE, CPRD),
    "clip art, several sentences": (SENTENCES,),
}
CLAIMS = {(arm, condition): "helps" for condition, arms in CLAIMED.items() for arm in arms}
CLAIMS["dynamic, linupper", "30 % permuted captions"] = "hurts"
