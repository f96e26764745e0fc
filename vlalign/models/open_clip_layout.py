"""Models of open_clip by name or from a folder, and the folder layout that open_clip reads."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import Tensor

from vlalign import files
from vlalign.models import checkpoints
from vlalign.models.fetching import fetching
from vlalign.registry import suggestion
from vlalign.types import UserError

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
LOCAL, HUB = "local-dir:", "hf-hub:"
LAYOUT = "open_clip"
ARRAYS = (".npy", ".npz")  # weights of big_vision, which open_clip reads


def create(
    id: str, pretrained: str | None, image_size: int | None = None, dim: int | None = None
) -> tuple[Any, dict[str, Any]]:
    """open_clip's model with its text tower apart, and the config that builds it again. Raises UserError.

    `id`: a name that open_clip lists, `hf-hub:ORG/NAME`, or `local-dir:FOLDER` (weights are optional there).
    `dim` replaces the width of the joint space of a model without weights. CoCa gives its contrastive half.
    """
    import open_clip

    config, folder = _config(id, pretrained), _folder(id)
    weights = pretrained or id.startswith(HUB) or (folder and any(folder.glob("*.safetensors")))
    if dim is not None and weights and dim != config["embed_dim"]:
        raise UserError(
            f"model.dim: {id} comes with weights of width {config['embed_dim']}, not {dim}; set dim to it"
        )
    patch = config["vision_cfg"].get("patch_size", 1)
    if image_size is not None and isinstance(patch, int) and image_size < patch:
        raise UserError(f"image_size: {id} cuts images into patches of {patch} pixels, got {image_size}")
    if pretrained and Path(pretrained).suffix not in ARRAYS and Path(pretrained).is_file():
        checkpoints.read(pretrained)  # says what is wrong with the file, which open_clip does not
    options = {} if dim is None else {"embed_dim": dim}
    quiet = nullcontext() if weights else _random_on_purpose()
    with quiet, fetching(f"{id} {pretrained or ''}".rstrip(), "open_clip"):
        net = open_clip.create_model(
            id,
            pretrained,
            require_pretrained=bool(weights),  # else what it cannot download stays random
            force_custom_text=True,
            force_quick_gelu=config.get("quick_gelu", False),
            force_image_size=image_size,
            pretrained_text=False,
            **options,
        )
    config |= options
    if image_size is not None:
        config["vision_cfg"]["image_size"] = image_size
    if config.pop("multimodal_cfg", None) is not None:
        config["custom_text"] = True
        for tower, part in ((net.visual, config["vision_cfg"]), (net.text, config["text_cfg"])):
            tower.output_tokens = part["output_tokens"] = False
    return net, config


@contextmanager
def _random_on_purpose() -> Iterator[None]:
    """Keeps open_clip from warning, on the root logger, of a model that is meant to have random weights."""
    root = logging.getLogger()

    def wanted(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        return "no CLIP weights found" not in said and "initialized randomly" not in said

    root.addFilter(wanted)
    try:
        yield
    finally:
        root.removeFilter(wanted)


def _folder(id: str) -> Path | None:
    return Path(id.removeprefix(LOCAL)) if id.startswith(LOCAL) else None


def _config(id: str, pretrained: str | None) -> dict[str, Any]:
    import open_clip

    folder = _folder(id)
    if folder and not (folder / CONFIG).is_file():
        raise UserError(f"{id}: there is no {CONFIG} in this folder")
    with fetching(id, "open_clip"):
        config: dict[str, Any] | None = open_clip.get_model_config(id if ":" in id else id.replace("/", "-"))
    if config is None:
        known = open_clip.list_models()
        raise UserError(
            f"open_clip has no model '{id}'.{suggestion(id, known)} It lists {len(known)} of them"
        )
    if config["text_cfg"].get("tokenizer_kwargs", {}).get("trust_remote_code"):
        raise UserError(
            f"{id}: its {CONFIG} wants to run code that comes with its tokenizer, which open_clip models "
            "may not; take trust_remote_code out of text_cfg.tokenizer_kwargs in a copy of it"
        )
    config = deepcopy(config)
    if pretrained and ":" not in id:
        tags = open_clip.list_pretrained_tags_by_model(id.replace("/", "-"))
        if pretrained not in tags and not Path(pretrained).is_file():
            raise UserError(
                f"pretrained: '{pretrained}' is neither a file nor a tag of {id}."
                f"{suggestion(pretrained, tags)} Known: {', '.join(tags) or 'none'}"
            )
        if (open_clip.get_pretrained_cfg(id.replace("/", "-"), pretrained) or {}).get("quick_gelu"):
            config["quick_gelu"] = True  # these weights were trained with it, whatever the config says
    return config


def tokenizer_of(id: str, config: Mapping[str, Any]) -> Any:
    """The tokenizer of a model, at the context length of its config. Raises UserError."""
    import open_clip

    text = config["text_cfg"]
    options = {"trust_remote_code": False} if text.get("hf_tokenizer_name") else {}  # above the config's own
    with fetching(f"{id}: its tokenizer", "open_clip"):
        return open_clip.get_tokenizer(
            id if ":" in id else id.replace("/", "-"),
            context_length=text.get("context_length", 77),
            **options,
        )


def write_config(folder: Path, config: Mapping[str, Any], preprocess: Mapping[str, Any]) -> None:
    """`open_clip_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / CONFIG, {"model_cfg": config, "preprocess_cfg": preprocess})


def write_tokenizer(folder: Path, process: Any) -> None:
    """Tokenizer files of transformers; open_clip's own tokenizer needs none."""
    if hasattr(process.tokenizer, "save_pretrained"):
        process.tokenizer.save_pretrained(str(folder))


def write_model(folder: Path, image: Any, text: Any, state: Mapping[str, Tensor]) -> None:
    """Two towers of this module as a folder that open_clip loads by `local-dir:FOLDER`.

    `state`: the pair's, plain.
    """
    same = image.config == text.config
    config = dict(deepcopy(image.config))
    config["text_cfg"] = deepcopy(text.config["text_cfg"])
    config.pop("nonscalar_logit_scale", None)
    if not same:
        config["custom_text"] = True
    own = {"logit_scale": state["scale"].reshape(())}
    bias = state["bias"].reshape(())
    config.pop("init_logit_bias", None)
    if "init_logit_bias" in image.config or bias.item() != 0.0:
        config["init_logit_bias"] = bias.item()
        own["logit_bias"] = bias
    apart = config.get("custom_text", False) or bool(config["text_cfg"].get("hf_model_name"))
    for name, tensor in state.items():
        if name.startswith("image.net."):
            own[f"visual.{name.removeprefix('image.net.')}"] = tensor
        elif name.startswith("text.net."):
            own[f"{'text.' if apart else ''}{name.removeprefix('text.net.')}"] = tensor
    write_config(folder, config, image.preprocess)
    write_tokenizer(folder, text.process)
    checkpoints.write(own, folder / WEIGHTS)
