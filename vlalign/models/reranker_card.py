"""What a reranker's card tells besides: prompt and answers, its base, and how other libraries ask it."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from vlalign.registry import MODELS

TASK = "text-ranking"
VLLM = {  # architectures that vLLM turns into a classifier by the rows of two words
    "Qwen3ForCausalLM": "Qwen3ForSequenceClassification",
    "Qwen3VLForConditionalGeneration": "Qwen3VLForSequenceClassification",
}
AUTO = {  # the end of an architecture -> the class of transformers that loads it
    "ForCausalLM": "AutoModelForCausalLM",
    "ForConditionalGeneration": "AutoModelForImageTextToText",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
}


@dataclass(frozen=True, kw_only=True)
class RerankerFacts:
    """`spec`: the model's, as its manifest tells it; `base`: its `id` and `revision` on the Hub, if known.

    `alone`: an adapter without the weights it lies on. `tokens`: of the words that are compared, yes first.
    `first_stages`: of each evaluated data set, the number of its candidates that found them.
    """

    spec: Mapping[str, Any]
    base: Mapping[str, str]
    alone: bool
    adapted: bool
    pictures: bool
    crossed: bool  # sentence-transformers' CrossEncoder reads it
    templated: bool  # its chat template is its prompt
    architecture: str
    tokens: Sequence[int] = ()
    first_stages: Mapping[str, str] = field(default_factory=dict)
    offset: Mapping[str, Any] | None = None

    @classmethod
    def read(
        cls,
        manifest: Mapping[str, Any],
        files: Collection[str],
        texts: Mapping[str, str],
        recipe: Mapping[str, Any],
    ) -> Self | None:
        """Of a model's files; None where it is no reranker."""
        spec = manifest.get("spec", {})
        name = spec.get("name", ":")
        if ":" in name or getattr(MODELS.get(name), "reads", None) != "candidates":
            return None
        config, adapter, score = (
            json.loads(texts.get(name, "{}"))
            for name in ("config.json", "adapter_config.json", "1_LogitScore/config.json")
        )
        classes = config.get("architectures") or [(adapter.get("auto_mapping") or {}).get("base_model_class")]
        ids = [score[name] for name in ("true_token_id", "false_token_id") if score.get(name) is not None]
        on = {"id": adapter["base_model_name_or_path"], "revision": adapter["revision"]} if adapter else {}
        task = recipe.get("task")
        return cls(
            spec=spec,
            base=on or manifest.get("base", {}),
            alone=bool(adapter),
            adapted=any(name.endswith("adapter_config.json") for name in files),
            pictures=bool({"preprocessor_config.json", "processor_config.json"} & set(files)),
            crossed="modules.json" in files,
            templated="chat_template.jinja" in files and bool(ids),
            architecture=classes[0] or "",
            tokens=ids,
            first_stages={
                each["dataset"]: each["first_stage"]
                for each in recipe.get("evals") or ()
                if isinstance(each, Mapping) and each.get("first_stage") and each.get("dataset")
            },
            offset=task.get("offset") if isinstance(task, Mapping) else None,
        )

    @property
    def prompt(self) -> Mapping[str, Any] | None:
        """`text` with its places, `instruction`, `yes`, `no` and `start`; None where a head scores."""
        return self.spec.get("prompt")

    @property
    def words(self) -> list[str]:
        """Those that are compared, yes first."""
        return [word for word in (self.prompt["yes"], self.prompt["no"]) if word] if self.prompt else []

    @property
    def auto(self) -> str:
        """The class of transformers that loads the weights."""
        return next((name for end, name in AUTO.items() if self.architecture.endswith(end)), "")

    @property
    def cut(self) -> bool:
        """Whether layers of the base were left out, which PEFT does not know."""
        return self.alone and self.spec.get("layer") is not None

    @property
    def overrides(self) -> str | None:
        """What vLLM is told, as JSON; None where it does not read this model."""
        if self.alone or not self.templated or self.architecture not in VLLM or self.words != ["yes", "no"]:
            return None
        return json.dumps(
            {
                "architectures": [VLLM[self.architecture]],
                "classifier_from_token": ["no", "yes"],
                "is_original_qwen3_reranker": True,
            }
        )

    @property
    def library(self) -> str:
        """Whose loader the Hub shows."""
        return "peft" if self.alone else "sentence-transformers" if self.crossed else "transformers"

    @property
    def metadata(self) -> dict[str, Any]:
        """What the card's head says of it."""
        tags = ["vlalign", "reranker", "cross-encoder"]
        tags += ["sentence-transformers"] if self.crossed and not self.cut else []
        tags += ["transformers"] + (["peft", "lora"] if self.adapted else [])
        relation = "adapter" if self.alone else "finetune"
        base = {"base_model": self.base["id"], "base_model_relation": relation} if self.base else {}
        return {"pipeline_tag": TASK, "tags": tags, **base}


def fenced(text: str, language: str = "") -> str:
    """A block of markdown that shows a text as it is, whatever it holds."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"
