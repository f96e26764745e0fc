"""What a recipe of `vlalign pipeline` may say."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vlalign.recipe.offline import named

FOLDER = re.compile(r"\{(\w+)\}(?=/|$)")  # at the beginning of a text: what a stage above wrote
ONE = re.compile(r"/(\d+)(?=/|$)")  # behind it: one of its seeds
OWN = "stages"  # the folder of what is known of all of them
Found = Literal["informative", "not informative"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A verb's `recipe`, a file, with `overrides` by dotted path as on the command line.

    A text that begins with `{name}` means the folder that the stage of that name wrote. `seeds`: the stage is
    run so many times, each with its own `seed` if the verb has one, in `out/STAGE/SEED`; it reads the same
    seed of stages that have several, or the one that is named, `{name}/0`. `when`: it is run where stages of
    `vlalign judge` found their judges to be so.
    """

    recipe: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    seeds: int | None = None
    when: Mapping[str, Found] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named(self, "recipe")
        if self.seeds is not None and self.seeds < 1:
            raise ValueError(f"seeds must be >= 1 or null, got {self.seeds}")
        if taken := {"out", "verb", *(["seed"] if self.seeds is not None else [])} & set(self.overrides):
            raise ValueError(f"overrides must not hold {sorted(taken)[0]}, which the pipeline sets")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A table: of each stage that measured `metric` on `dataset`, its mean over seeds and its gain over
    `baseline`, a stage, paired by seed. `controls`: of a stage another that its gain over is told as well.
    """

    dataset: str
    metric: str
    baseline: str
    controls: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PipelineRecipe:
    """`vlalign pipeline`: writes `out/STAGE` of each and `out/{recipe.yaml, pipeline.json, report.html}`.

    A stage reads only stages above it. It is not run again while its recipe, its inputs and the code are the
    same; what it wrote before with others is moved aside, to `STAGE.1`. A stage that fails leaves those that
    do not read it.
    """

    verb: Literal["pipeline"]
    out: str
    stages: Mapping[str, Stage]
    compare: tuple[Comparison, ...] = ()

    def __post_init__(self) -> None:
        named(self, "out")
        if not self.stages:
            raise ValueError("stages is empty; name at least one")
        above = dict[str, Stage]()
        for name, stage in self.stages.items():
            if not re.fullmatch(r"\w+", name) or name == OWN:
                raise ValueError(f"stages must be called by letters, digits and _, and not '{OWN}': '{name}'")
            self._check(name, stage, above)
            above[name] = stage
        for each in self.compare:
            if each.baseline not in self.stages:
                raise ValueError(f"compare must have a stage as baseline, and '{each.baseline}' is none")
            if unknown := {*each.controls, *each.controls.values()} - self.stages.keys():
                raise ValueError(f"compare.controls must name stages, and '{min(unknown)}' is none")

    def _check(self, name: str, stage: Stage, above: Mapping[str, Stage]) -> None:
        for text in texts(stage.overrides):
            if (read := FOLDER.match(text)) is None or not (text[read.end() :] or read[1] in self.stages):
                continue
            rest, other = text[read.end() :], above.get(read[1])
            if other is None:
                raise ValueError(
                    f"stages.{name} must read stages above it, and '{read[1]}' of '{text}' is none; "
                    f"above are: {', '.join(above) or 'none'}"
                )
            if other.seeds is None:
                continue
            seed = int(one[1]) if (one := ONE.match(rest)) else (stage.seeds or 0) - 1
            if one is None and stage.seeds is None:
                raise ValueError(
                    f"stages.{name} must have seeds, for it reads '{text}' and {read[1]} has {other.seeds}; "
                    f"or name one of them: '{{{read[1]}}}/0{rest}'"
                )
            if seed >= other.seeds:
                raise ValueError(
                    f"stages.{name} must not read seed {seed} of {read[1]}, which has {other.seeds} from 0 on"
                )
        for other_name in stage.when:
            if other_name not in above or above[other_name].seeds is not None:
                raise ValueError(
                    f"stages.{name}.when must name a stage above it, without seeds, got '{other_name}'"
                )


def texts(value: Any) -> Iterator[str]:
    """Every text in plain values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from texts(each)
