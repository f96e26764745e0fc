"""One run of a stage: which recipe it is, what it reads, and whether it was done already."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vlalign.evals.report.versions import versions
from vlalign.files import write_json
from vlalign.recipe.decode import load_recipe
from vlalign.recipe.pipelining import FOLDER, ONE, OWN, PipelineRecipe, Stage, texts
from vlalign.registry import encode
from vlalign.types import RecipeError

PACKAGE = "package:"  # before the name of one that holds weights
ELSEWHERE = ("out", "store")  # where a run writes
SOURCES = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Run:
    """`name`: `STAGE` or `STAGE/SEED`; `arguments`: of its verb; `after`: names of the runs that it reads."""

    name: str
    stage: str
    seed: int | None
    out: Path
    verb: str
    arguments: tuple[str, ...]
    after: frozenset[str]
    when: Mapping[str, str]

    def recipe(self) -> Any:
        """As the verb will read it. Raises RecipeError."""
        path, *overrides = self.arguments
        return load_recipe(path, overrides)

    def key(self) -> str:
        """Another one where the recipe, a file that it names, a package or the code is another.

        Files that are named inside files, pictures for one, do not count, nor does what is on a hub.
        """
        plain = {name: x for name, x in encode(self.recipe()).items() if name not in ELSEWHERE}
        found = [_identity(text, self.out.resolve()) for text in sorted({*texts(plain)})]
        told = json.dumps([plain, [each for each in found if each], code()], default=str)
        return blake2b(told.encode(), digest_size=16).hexdigest()

    @property
    def pipeline(self) -> Path:
        """The folder of all."""
        return self.out.parents[self.seed is not None]

    @property
    def state(self) -> Path:
        """What is known of it: `{"key", "state", "verb", "seconds"}`."""
        return self.pipeline / OWN / f"{self.name.replace('/', '-')}.json"

    @property
    def log(self) -> Path:
        """What it said."""
        return self.state.with_suffix(".log")

    def known(self) -> Mapping[str, Any]:
        """What was noted of it, nothing where it never began or its folder is gone."""
        try:
            told: dict[str, Any] = json.loads(self.state.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return told if self.out.is_dir() or told.get("state") == "begun" else {}

    def note(self, **known: Any) -> None:
        """Keep what is known of it."""
        write_json(self.state, known)

    def set_aside(self) -> None:
        """Its folder, if it is there, under the first name that is free."""
        self.state.unlink(missing_ok=True)
        if self.out.exists():
            free = (self.out.with_name(f"{self.out.name}.{number}") for number in range(1, 10**6))
            self.out.rename(next(each for each in free if not each.exists()))


def runs(recipe: PipelineRecipe) -> list[Run]:
    """Of every stage as often as it has seeds, in order. Raises RecipeError with what its recipe lacks."""
    found = list[Run]()
    for name, stage in recipe.stages.items():
        told, _ = _told(recipe, name, stage, None if stage.seeds is None else 0)
        try:
            first = load_recipe(stage.recipe, _arguments(told))
        except RecipeError as error:
            raise RecipeError(f"stages.{name}: {error}") from None
        if not hasattr(first, "out") or first.verb == recipe.verb:
            raise RecipeError(
                f"stages.{name}: {stage.recipe} is for 'vlalign {first.verb}', which cannot be a stage"
            )
        for judge in stage.when:
            if next((run.verb for run in found if run.name == judge), "judge") != "judge":
                raise RecipeError(f"stages.{name}.when: '{judge}' does not judge; name a stage that does")
        for seed in [None] if stage.seeds is None else range(stage.seeds):
            told, after = _told(recipe, name, stage, seed)
            own = {"seed": seed} if seed is not None and hasattr(first, "seed") else {}
            found.append(
                Run(
                    name=name if seed is None else f"{name}/{seed}",
                    stage=name,
                    seed=seed,
                    out=Path(told["out"]),
                    verb=first.verb,
                    arguments=(stage.recipe, *_arguments(told | own)),
                    after=frozenset(after),
                    when=stage.when,
                )
            )
    return found


def _told(
    recipe: PipelineRecipe, name: str, stage: Stage, seed: int | None
) -> tuple[dict[str, Any], set[str]]:
    """A run's overrides, with folders in place of names, and the runs that it comes after."""
    after = set(stage.when)

    def folder(text: str) -> str:
        if (read := FOLDER.match(text)) is None or (other := recipe.stages.get(read[1])) is None:
            return text
        own, rest = read[1], text[read.end() :]
        if other.seeds is not None and not (one := ONE.match(rest)):
            own = f"{own}/{seed}"
        elif other.seeds is not None and one:
            own, rest = f"{own}/{one[1]}", rest[one.end() :]
        after.add(own)
        return f"{Path(recipe.out) / own}{rest}"

    out = Path(recipe.out) / name
    told = {**_changed(stage.overrides, folder), "out": str(out if seed is None else out / str(seed))}
    return told, after


def _arguments(told: Mapping[str, Any]) -> list[str]:
    parts = sorted(told.items(), key=lambda each: each[0].count("."))  # a whole before what is in it
    return [f"{path}={json.dumps(value, ensure_ascii=False)}" for path, value in parts]


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """Plain values, each text changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _changed(each, change) for name, each in value.items()}
    return [_changed(each, change) for each in value] if isinstance(value, list | tuple) else value


def _identity(text: str, but: Path) -> Any:
    """Of what a text names: files by size and time, but those in a folder; a package by its version."""
    if text.startswith(PACKAGE):
        try:
            return text, version(text.removeprefix(PACKAGE))
        except PackageNotFoundError:
            return None
    try:
        return [*_files(Path(text).expanduser(), but)] if text.strip() else None
    except (OSError, RuntimeError):  # too long for a path, or of a user who is none
        return None


def _files(path: Path, but: Path) -> Iterator[tuple[str, int, int]]:
    every = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    for each in every:
        if not each.resolve().is_relative_to(but):
            found = each.stat()
            yield str(each), found.st_size, found.st_mtime_ns


def code() -> str:
    """Of this package's sources and of what they run with."""
    files = sorted(path for path in SOURCES.rglob("*") if path.suffix in (".py", ".jinja", ".css"))
    stats = ((path, path.stat()) for path in files)
    return _read(tuple((path, found.st_size, found.st_mtime_ns) for path, found in stats))


@lru_cache(maxsize=1)
def _read(files: tuple[tuple[Path, int, int], ...]) -> str:
    """The same of files with sizes and times, so that a pipeline of many stages reads them once."""
    found = blake2b(json.dumps(versions()).encode(), digest_size=16)
    for path, *_ in files:
        found.update(str(path.relative_to(SOURCES)).encode() + path.read_bytes())
    return found.hexdigest()
