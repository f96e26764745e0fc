"""An adapter alone, of a reranker or captioner: what it lies on is told when saved, and found when loaded."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlalign.files import write_json
from vlalign.models import lora, manifest
from vlalign.models.checkpoints import PEFT
from vlalign.models.layout import folder_digest, layout, located
from vlalign.types import UserError

KINDS = ("candidates", "captions")  # what the models read that have one adapter
Base = dict[str, str]  # a model of the Hub: its `id`, and the `revision` whose weights were read


def base_of(model: Any) -> Base | None:
    """What a reranker or a captioner was made from, or its language model where it was made of parts.

    None where that is not on the Hub, or was random.
    """
    spec = getattr(model.spec, "made", None) or model.spec
    if getattr(model.spec, "reads", None) not in KINDS or not getattr(spec, "pretrained", False):
        return None
    return _known(spec.id if spec is model.spec else spec.language)


def _known(id: str) -> Base | None:
    """A model as it was last read from the Hub: its revision is the commit that the cache calls main."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if Path(id).exists():
        return None
    try:
        found = try_to_load_from_cache(id, "config.json")
    except HFValidationError:
        return None
    return {"id": id, "revision": Path(found).parent.name} if isinstance(found, str) else None


def pin(model: Any, folder: Path) -> None:
    """Tell PEFT, in an adapter's folder, what is adapted, and which weights of the Hub it lies on.

    Nothing of the base is told where more was learned than the folder holds.
    """
    from safetensors import safe_open

    if not (folder / lora.CONFIG).is_file():
        return
    with safe_open(folder / lora.WEIGHTS, "pt") as tensors:
        names = {name.removeprefix(PEFT) for name in tensors.keys()}  # noqa: SIM118
    learned = {name for name, each in model.named_parameters() if each.requires_grad and ".lora_" not in name}
    started = getattr(model, "started_from", None)
    base = base_of(model) if started is None else _known(started)
    if started is None and getattr(model.spec, "made", None):
        base = None  # the adapter lies on all parts, of which the language model is one
    if not {name.removeprefix("net.") for name in learned} <= names:
        base = None
    net = type(model.net)
    told = json.loads((folder / lora.CONFIG).read_text(encoding="utf-8")) | {
        "base_model_name_or_path": base and base["id"],
        "revision": base and base["revision"],
        "auto_mapping": {"base_model_class": net.__name__, "parent_library": net.__module__},
        "target_modules": sorted(name.removesuffix(lora.DOWN) for name in names if name.endswith(lora.DOWN)),
        "inference_mode": True,
    }
    write_json(folder / lora.CONFIG, told)


def digest(folder: Path) -> str:
    """Of a model's folder, and where it is an adapter alone of what it lies on."""
    own = folder_digest(folder)
    if layout(folder) != "adapter":
        return own
    told = json.loads((folder / lora.CONFIG).read_text(encoding="utf-8"))
    base = told.get("base_model_name_or_path")
    return f"{own} {folder_digest(located(base, told.get('revision')))}" if base else own


def merged(folder: Path, name: str, trust_remote_code: bool) -> Any:
    """The model of an adapter's folder, added to its base. `name`: what the user calls it.

    Raises UserError.
    """
    try:
        told = json.loads((folder / lora.CONFIG).read_text(encoding="utf-8"))
        id, revision = str(told["base_model_name_or_path"] or ""), told["revision"]
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{name}: its {lora.CONFIG} cannot be read: {error}") from error
    if manifest.reads(folder) not in KINDS or not id:
        missing = "its base model" if not id else f"what it is asked, as {manifest.FILE} does"
        raise UserError(
            f"{name}: this is an adapter alone, and nothing in it tells {missing}; load the merged model, "
            "which lies in the folder above it where vlalign saved it"
        )
    spec: Any = manifest.read(folder, trust_remote_code)
    try:
        base = located(id, revision)
        if layout(base) not in ("transformers", "reranker"):
            raise UserError("it is no model of transformers")
    except UserError as error:
        raise UserError(f"{name}: it is an adapter on {id} at revision {revision}: {error}") from error
    parts = {"made": None} if hasattr(spec, "made") else {}
    model = replace(spec, id=str(base), pretrained=True, lora=None, **parts).build()
    lora.merge(model.net, folder)
    return model
