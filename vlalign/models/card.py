"""The model card: what a model is, how it is used, what it was made from, and its numbers beside chance."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Self

from vlalign import __version__
from vlalign.models.captioner_card import CaptionerFacts
from vlalign.models.parcel import PushError
from vlalign.models.reranker_card import RerankerFacts, fenced
from vlalign.specs import EvalRow
from vlalign.types import Licence

TASK = "zero-shot-image-classification"
ADAPTERS = ("image_adapter", "text_adapter", "adapter")
TERMS = ("terms", "answer_terms", "token_terms")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a card tells. `files`: names in the repository; `config`: config.json; `written`: recipe.yaml."""

    repo: str
    files: Collection[str]
    config: Mapping[str, Any] = field(default_factory=dict)
    written: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[EvalRow] = ()
    licences: Sequence[Licence] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    licence: str = "other"
    reranker: RerankerFacts | None = None
    captioner: CaptionerFacts | None = None
    prompted: bool = False  # an embedder whose prompts only vlalign writes

    @classmethod
    def read(
        cls, repo: str, folder: Path, files: Collection[str], texts: Mapping[str, str], licence: str
    ) -> Self:
        """What a model's texts say, and the head of the log in its run's `folder`. Raises PushError."""
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError

        try:
            header = _header(folder / "log.jsonl")
            manifest = json.loads(texts.get("vlalign.json", "{}"))
            recipe = YAML(typ="safe").load(texts.get("recipe.yaml", "")) or {"model": manifest.get("spec")}
            return cls(
                repo=repo,
                files=files,
                config=json.loads(texts.get("config.json", "{}")),
                written=texts.get("recipe.yaml", ""),
                recipe=recipe,
                metrics=[_row(row) for row in json.loads(texts.get("metrics.json", "[]"))],
                licences=[Licence(**it) for it in header.get("rows", {}).get("licences", ())],
                versions=header.get("versions", {"vlalign": __version__}),
                licence=licence,
                reranker=RerankerFacts.read(manifest, files, texts, recipe),
                captioner=CaptionerFacts.read(manifest, files, texts),
                prompted="prompt" in (manifest.get("spec") or {}),
            )
        except (ValueError, TypeError, LookupError, AttributeError, YAMLError) as error:
            raise PushError(
                "no card can be written from recipe.yaml, metrics.json, config.json and log.jsonl "
                f"({type(error).__name__}: {error}); mend them, or put a README.md beside the weights"
            ) from error

    @property
    def name(self) -> str:
        """The repository without its owner."""
        return self.repo.rpartition("/")[2]

    @property
    def adapters(self) -> list[str]:
        """The folders of the towers' adapters."""
        return [folder for folder in ADAPTERS if any(name.startswith(f"{folder}/") for name in self.files)]

    @property
    def library(self) -> str:
        """Whose loader reads the files: the Hub shows its snippet and counts its downloads."""
        if own := self.reranker or self.captioner:
            return own.library
        if "open_clip_config.json" in self.files:
            return "open_clip"
        whole = "model.safetensors" in self.files and "model_type" in self.config
        return "transformers" if whole and not self.prompted else "vlalign"

    @property
    def summary(self) -> str:
        """One sentence: the model, its towers, and how long it learned from what loss."""
        kind, rows = self.captioner.kind if self.captioner else "vision-language model", "pairs"
        if self.reranker:
            kind, rows = "reranker", "queries"
        parts = [f"A {kind} trained with vlalign"]
        if model := self.recipe.get("model"):
            towers = [
                f"{side} tower {_told(it)}"
                for side, it in _fields(model).items()
                if side in ("image", "text")
            ]
            parts.append(", ".join([_told(model), *towers]))
        if "steps" in self.recipe:
            parts.append(f"{self.recipe['steps']} steps of {self.recipe['data']['batch']} {rows}")
        task = _fields(self.recipe.get("task", {}))
        if terms := [term for name in TERMS for term in task.get(name) or ()]:
            parts.append("objective " + " and ".join(_told(term["objective"]) for term in terms))
        return "; ".join(parts) + "."


def card(facts: Facts) -> str:
    """README.md of a repository: YAML metadata that the Hub indexes, then markdown for people."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_template),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
        undefined=StrictUndefined,
    )
    environment.filters |= {"cell": _cell, "number": _number, "fenced": fenced}
    return environment.get_template("card.md.jinja").render(facts=facts, metadata=_metadata(facts))


def _template(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _metadata(facts: Facts) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type=row.task,
            dataset_type=row.dataset,
            dataset_name=row.dataset,
            metric_type=name,
            metric_value=value,
        )
        for row in facts.metrics
        for name, value in row.metrics.items()
        if math.isfinite(value)  # the Hub's index takes no other
    ]
    unstated = facts.licence == "other"  # the Hub wants that one named
    lora = ["peft", "lora"] if facts.adapters else []
    tag = "feature-extraction" if facts.prompted else TASK
    own = {"pipeline_tag": tag, "tags": ["vlalign", "vision-language", "image-text-retrieval", *lora]}
    return str(
        ModelCardData(
            library_name=facts.library,
            license=facts.licence,
            **(it.metadata if (it := facts.reranker or facts.captioner) else own),
            model_name=facts.name,
            eval_results=results or None,
            license_name="of-its-data-and-weights" if unstated else None,
            license_link="README.md" if unstated else None,
        ).to_yaml()
    )


def _header(log: Path) -> Mapping[str, Any]:
    """What a run was made of: its versions, and the licences of its data."""
    if not log.exists():
        return {}
    with log.open(encoding="utf-8") as lines:
        header: Mapping[str, Any] = json.loads(next(lines, "{}")).get("header", {})
    return header


def _row(row: Mapping[str, Any]) -> EvalRow:
    metrics, chance = (
        {name: float(value) for name, value in row[key].items()} for key in ("metrics", "chance")
    )
    return EvalRow(dataset=str(row["dataset"]), task=str(row["task"]), metrics=metrics, chance=chance)


def _fields(component: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a component that a recipe names: its fields, when it was not written as a name alone."""
    return {} if isinstance(component, str) else component


def _told(component: str | Mapping[str, Any]) -> str:
    """A component of a recipe by its name, and by its `id` when it has one."""
    fields = _fields(component)
    return f"`{fields.get('name', component)}`" + (f" ({fields['id']})" if fields.get("id") else "")


def _cell(text: str) -> str:
    """Text inside one cell of a markdown table."""
    return " ".join(str(text).replace("|", "\\|").split())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
