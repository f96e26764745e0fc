"""What a recipe of `vlalign judge` may say."""

from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Literal

from vlalign.recipe.abstaining import Abstention
from vlalign.recipe.facets import Facets
from vlalign.recipe.offline import check_written, named
from vlalign.recipe.reads import reads
from vlalign.registry import JUDGES, SOURCES
from vlalign.specs import JudgeSpec, SourceSpec
from vlalign.types import Limits

OVERLAP = "overlap"  # the share of words in common, which every judge is compared with
VOTE = "vote"  # of the labels of what a judge is shown, which it is compared with where it is shown any
CERTAIN = "_certain"  # what the name of the number ends with that tells whether a pair is judged
Treatment = Literal["drop", "soft", "relabel"]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A logistic regression of what is right on all that was measured: its probability is the score.

    Of one number it is Platt's scaling (1999), of a hidden state a probe, of several numbers their fusion.
    Queries are parted into `folds`, those that share a right candidate on one side, and each fold is told by
    the regression of the others, whose penalty is chosen among their own parts.
    """

    folds: int = 2

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise ValueError(f"folds must be >= 2, got {self.folds}")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which candidates stay beside the positives: UniME-V2, Gu et al. 2025, https://arxiv.org/abs/2510.13515.

    A negative that scores above the lowest positive less `margin`, and above `least`, may be right and not
    labelled. `treat` it: `drop` it; keep it as it is with its `soft` score; or `relabel` it as a positive. Of
    the other negatives `k` are taken, every `stride`th, again from the next one when the end is reached.
    """

    margin: float = 0.01
    treat: Treatment = "drop"
    k: int = 8
    stride: int = 5
    least: float | None = None

    def __post_init__(self) -> None:
        if not isfinite(self.margin):
            raise ValueError(f"margin must be finite, got {self.margin}")
        if self.least is not None and not isfinite(self.least):
            raise ValueError(f"least must be finite or null, got {self.least}")
        for name in ("k", "stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """The labels themselves, each flipped with the chance `flip`: what a judge of that quality would gain.

    What is `known` is not flipped.
    """

    flip: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip must be between 0 and 1, got {self.flip}")


@dataclass(frozen=True, kw_only=True)
class Demonstrations:
    """`k` labelled pairs that a judge is shown before each pair, the most similar last.

    RAICL, Zhan et al. 2025, https://arxiv.org/abs/2505.02087. They are of other concepts than the pair; with
    `calibrate` of its own fold, so that the regression which tells its score has not seen its label either.
    `model`: a dual encoder's folder or Hub id, or `package:NAME` of a text encoder: pairs are as similar as
    its embeddings are. `candidate`: how much that of a pair's candidate counts, where the query's counts 1;
    with 0 all pairs of a query are shown the same. `balanced`: at most half of them are right, or wrong.
    """

    model: str
    k: int = 4
    candidate: float = 1.0
    balanced: bool = True

    def __post_init__(self) -> None:
        named(self, "model")
        if self.k < 1:
            raise ValueError(f"k must be >= 1, got {self.k}; leave demonstrations out to show none")
        if not (isfinite(self.candidate) and self.candidate >= 0):
            raise ValueError(f"candidate must be finite and >= 0, got {self.candidate}")


@dataclass(frozen=True, kw_only=True)
class JudgeRecipe:
    """`vlalign judge`: writes `out/{recipe.yaml, candidates.jsonl, judged.json}`.

    `data`: queries with candidates. `judges` measure each pair, by names of one's own; `numbers` are measured
    already, such as a first stage's score. `rasch`: which of these are ratings, whose one ability, in logits,
    is a measurement in place of theirs. `calibrate`: what all that was measured says together, a probability;
    without, the one number that was measured is the score. Or an `oracle` tells it. `number`: what it is
    called in `candidates.jsonl`. `label`: the number that is above 0 where a candidate is right.
    `demonstrations`: what judges are shown that can be shown some; their labels' vote is then told too.
    `known`: the number that is above 0 where a candidate is labelled already, if that is less than what is
    right. No judge is needed for these: with `calibrate` their score is 1, they calibrate nothing, tell
    nothing of a judge, and are the positives of `choose`: which candidates stay. `abstain`: which pairs are
    too uncertain to be judged. `permute`: a seed, by which each query's scores are dealt anew among its
    candidates but those that are known: a control, which knows nothing and has the same scores. `store`: the
    file that keeps what was measured, by default one for all runs of this user: a pair is never measured
    twice.
    """

    verb: Literal["judge"]
    out: str
    data: Annotated[SourceSpec, SOURCES]
    judges: tuple[Annotated[JudgeSpec, JUDGES], ...] = ()
    numbers: tuple[str, ...] = ()
    demonstrations: Demonstrations | None = None
    rasch: Facets | None = None
    calibrate: Calibration | None = None
    oracle: Oracle | None = None
    number: str = "judge_score"
    label: str = "label"
    known: str | None = None
    abstain: Abstention | None = None
    choose: Choice | None = None
    permute: int | None = None
    store: str | None = None
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        named(self, "out", "number", "label", *(["store"] if self.store is not None else []))
        if reads(self.data) != "candidates":
            raise ValueError("data must be queries with candidates, as the source `candidates` reads them")
        check_written(self.number, "one")
        new = {self.number, *([f"{self.number}{CERTAIN}"] if self.abstain is not None else [])}
        if taken := sorted(new & {*self.numbers, self.label, self.known, OVERLAP} - {None}):
            raise ValueError(f"number must be a new name, and '{taken[0]}' is another number's")
        if {self.label, OVERLAP, VOTE} & set(self.numbers):
            raise ValueError(
                f"numbers must not be the label, '{OVERLAP}' or '{VOTE}', got {list(self.numbers)}"
            )
        shows = any(getattr(each, "shows", False) for each in self.judges)
        if self.demonstrations is not None and not shows:
            raise ValueError(
                "demonstrations: none of judges can be shown any; name an endpoint, or yes_no or likert with "
                "a prompt that is a conversation"
            )
        measured = len(self.judges) + len(self.numbers)
        if bool(measured) == (self.oracle is not None):
            raise ValueError("name judges or numbers, or an oracle alone")
        if self.oracle is not None and (self.calibrate is not None or self.rasch is not None):
            raise ValueError("calibrate and rasch: an oracle needs none; leave one out")
        measured -= len(self.rasch.ratings) - 1 if self.rasch is not None else 0
        if measured > 1 and self.calibrate is None:
            raise ValueError(f"calibrate: {measured} measurements are one score only when it is there")
        if self.abstain is not None and self.calibrate is None:
            raise ValueError("abstain: how certain a score is, a calibrated probability tells; set calibrate")
        if any(getattr(each, "refers", False) for each in self.judges) and self.known is None:
            raise ValueError("judges: one of them measures beside a right answer; set known to who is one")
