"""Where a model lies, a folder or what the Hub gives, and by whom it was laid out."""

from hashlib import blake2b, file_digest
from pathlib import Path

from vlalign.models import lora, manifest, open_clip_layout
from vlalign.types import UserError

WORDS = ("*.json", "*.txt", "*.model", "*.jinja")  # configs and tokenizers, read before weights are chosen
WEIGHTS = {
    "open_clip": (open_clip_layout.WEIGHTS, "open_clip_pytorch_model.safetensors"),
    "adapter": (lora.WEIGHTS,),
    "towers": ("model*.safetensors", "encoder/*.safetensors"),  # the latter of what a head lies on
}


def layout(folder: Path) -> str:
    """`open_clip`, `towers` (each in its subfolder, weights together), `adapter` (without what it lies on),
    `reranker` (or what captions, or embeds by a language model) or `transformers`.
    """
    if (folder / open_clip_layout.CONFIG).is_file():
        return "open_clip"
    if (folder / lora.CONFIG).is_file() and not (folder / "config.json").is_file():
        return "adapter"
    if (folder / manifest.FILE).is_file() and not (folder / "config.json").is_file():
        return "towers"
    if (folder / "config.json").is_file():
        own = manifest.reads(folder) in ("candidates", "captions") or manifest.whole(folder)
        return "reranker" if own else "transformers"
    raise UserError(
        f"{folder}: this is no model folder; "
        f"it has neither {manifest.FILE} nor {open_clip_layout.CONFIG} nor config.json"
    )


def located(model: str, revision: str | None) -> Path:
    """The local folder of a model, downloaded when it is a Hub id."""
    if not model.removeprefix("local-dir:").strip():
        raise UserError(
            f"model: '{model}' names nothing; give a model's folder or Hub id ('.' is this folder)"
        )
    path = Path(model.removeprefix("local-dir:"))
    if path.is_dir():
        inner = path / "model"
        return inner if inner.is_dir() and not any(path.glob("*.safetensors")) else path
    id = model.removeprefix("hf-hub:")
    if id.count("/") > 1 or id.startswith((".", "/", "~")):
        raise UserError(f"{model}: there is no such folder, and it is no Hub id either")
    return _download(id, revision)


def folder_digest(folder: Path) -> str:
    """Another one where the weights of a model's folder are, a config or a tokenizer."""
    digest = blake2b(digest_size=16)
    for path in sorted(each for kind in (*WORDS, "*.safetensors") for each in folder.rglob(kind)):
        with path.open("rb") as file:
            own = file_digest(file, lambda: blake2b(digest_size=16)).hexdigest()
        digest.update(f"{path.relative_to(folder)}\0{own}\0".encode())
    return digest.hexdigest()


def _download(id: str, revision: str | None) -> Path:
    """First the configs, then the safetensors that they speak of: never pickles or code."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        folder = Path(snapshot_download(id, revision=revision, allow_patterns=list(WORDS)))
        wanted = WEIGHTS.get(layout(folder), ("model*.safetensors",))
        folder = Path(snapshot_download(id, revision=revision, allow_patterns=[*WORDS, *wanted]))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"{id}: neither a folder nor a model that the Hub gives: {error}") from error
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{id}: it has no safetensors weights, and pickled ones are not loaded")
    return folder
