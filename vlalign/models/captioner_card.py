"""What a captioner's card tells besides: what it is asked, who loads it, and what it was made from."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

from vlalign.registry import MODELS

TASK = "image-to-text"
GRID = "timm_grid"  # the type of a tower that only this package knows


@dataclass(frozen=True, kw_only=True)
class CaptionerFacts:
    """`spec`: the model's, as its manifest tells it; `base`: `id` and `revision` on the Hub, if known.

    Of a model that was made of parts, the base is the language model. `alone`: an adapter without the weights
    it lies on; `own`: only this package has the class of the tower.
    """

    spec: Mapping[str, Any]
    base: Mapping[str, str]
    alone: bool
    adapted: bool
    own: bool

    @classmethod
    def read(
        cls, manifest: Mapping[str, Any], files: Collection[str], texts: Mapping[str, str]
    ) -> Self | None:
        """Of a model's files; None where it is no captioner."""
        spec = manifest.get("spec", {})
        name = spec.get("name", ":")
        if ":" in name or getattr(MODELS.get(name), "reads", None) != "captions":
            return None
        config, adapter = (json.loads(texts.get(it, "{}")) for it in ("config.json", "adapter_config.json"))
        on = {"id": adapter["base_model_name_or_path"], "revision": adapter["revision"]} if adapter else {}
        return cls(
            spec=spec,
            base=on or manifest.get("base", {}),
            alone=bool(adapter),
            adapted=any(it.endswith("adapter_config.json") for it in files),
            own=(config.get("vision_config") or {}).get("model_type") == GRID,
        )

    @property
    def blind(self) -> bool:
        """Whether it reads captions alone, as a `text_lm` does."""
        return "ask" not in self.spec

    @property
    def kind(self) -> str:
        """What it is, in words."""
        return "language model of captions" if self.blind else "captioner"

    @property
    def made(self) -> Mapping[str, Any] | None:
        """The parts that it was made of, None where it began as a whole."""
        return self.spec.get("made")

    @property
    def library(self) -> str:
        """Whose loader the Hub shows."""
        return "peft" if self.alone else "vlalign" if self.own else "transformers"

    @property
    def metadata(self) -> dict[str, Any]:
        """What the card's head says of it."""
        own = ["captions"] if self.blind else ["captioner", "image-captioning"]
        tags = ["vlalign", *own, *(["peft", "lora"] if self.adapted else [])]
        relation = "adapter" if self.alone else "finetune"
        base = {"base_model": self.base["id"], "base_model_relation": relation} if self.base else {}
        return {"pipeline_tag": "text-generation" if self.blind else TASK, "tags": tags, **base}
