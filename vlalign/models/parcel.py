"""What of a saved model leaves this machine: an allow-list of names, no link out of the folder, no secret."""

import json
import os
import re
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

from vlalign.types import UserError

WEIGHTS = "*.safetensors"
TOKENIZERS = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model")  # the binary ones
ALLOWED = (WEIGHTS, "*.json", "*.txt", "*.jinja", *TOKENIZERS, "README.md", "LICENSE", "recipe.yaml")
NEVER = (".*", "step_*", "checkpoint*", "logs", "log.*", "*_log.*")  # of a folder too: nothing under it goes
CONFIGS = ("vlalign.json", "open_clip_config.json", "config.json")  # a loader finds one of them
OF_A_RUN = ("recipe.yaml", "metrics.json")  # beside the `model` folder of a finished run
ADAPTER = "adapter/"  # where a reranker's lies in its folder
OF_THE_WHOLE = (WEIGHTS, "config.json", "generation_config.json", "README.md")  # which no adapter has alone

SECRETS = {
    "a Hub token": r"\bhf_[A-Za-z0-9]{20,}",
    "an API key": r"\b(?:sk-[\w-]{20,}|AIza[\w-]{35}|(?:AKIA|ASIA)[0-9A-Z]{16}\b)",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{20,})",
    "a Slack token": r"\bxox[abeoprs]-[\w-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"://[\w.-]+:[\w.%~!$-]{4,}@[\w-]+",
    "a password or key": r"(?i:api[_-]?key|secret|passw(?:or)?d|(?:access|auth|api)[_-]?token)[\"']?"
    r"\s*[:=]\s*[\"']?(?=[^\s\"']*\d)[\w+/.=-]{16,}",
}


class PushError(UserError):
    """An upload that cannot be, or did not come through."""


def collect(folder: Path) -> dict[str, Path]:
    """Name in the repository -> file, of a model folder or of a finished run's `out`. Raises PushError."""
    if not folder.is_dir():
        raise PushError(
            f"{folder}: there is no such folder; name a finished run's `out` or a saved model's folder"
        )
    run = (folder / "model").is_dir()
    files = _allowed(folder / "model" if run else folder)
    if run:
        files |= {name: folder / name for name in OF_A_RUN if (folder / name).is_file()}
    if not any(_matches(name, (WEIGHTS,)) for name in files) or not files.keys() & CONFIGS:
        raise PushError(
            f"{folder}: this is no saved model, it has no {WEIGHTS} beside a {' or '.join(CONFIGS)}; "
            "name a finished run's `out` or a saved model's folder"
        )
    root = folder.resolve()
    for path in files.values():
        if not path.resolve().is_relative_to(root):
            raise PushError(
                f"{path}: this is a link to {path.resolve()}, outside {folder}; put a copy in its place"
            )
    return dict(sorted(files.items()))


def collect_adapter(folder: Path) -> dict[str, Path]:
    """The same of a reranker's adapter alone, with its tokenizer and prompt. Raises PushError."""
    files = collect(folder)
    own = {name.removeprefix(ADAPTER): path for name, path in files.items() if name.startswith(ADAPTER)}
    if "adapter_config.json" not in own:
        raise PushError(f"{folder}: it has no {ADAPTER}, so it has no adapter of its own; push it whole")
    if not json.loads(own["adapter_config.json"].read_text(encoding="utf-8")).get("base_model_name_or_path"):
        raise PushError(
            f"{folder}: its adapter lies on weights that did not come from the Hub, or more was learned "
            "beside it, so nobody could load it; push the model whole"
        )
    beside = {name: path for name, path in files.items() if not name.startswith(ADAPTER)}
    return dict(sorted(({n: p for n, p in beside.items() if not _matches(n, OF_THE_WHOLE)} | own).items()))


def _allowed(root: Path) -> dict[str, Path]:
    files = {}
    for place, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not _matches(name, NEVER)]  # and os.walk follows no link
        for name in names:
            path = Path(place, name)
            if _matches(name, ALLOWED) and not _matches(name, NEVER):
                files[path.relative_to(root).as_posix()] = path
    return files


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def refuse_secrets(text: str, place: str, own: str | None = None) -> None:
    """Raise PushError with file, line and kind, never the secret, if a text has one; `own` is the login's."""
    kinds = SECRETS | ({"your own login token": re.escape(own)} if own else {})
    for kind, pattern in kinds.items():
        if found := re.search(pattern, text):
            line = text.count("\n", 0, found.start()) + 1
            raise PushError(f"{place}:{line}: this looks like {kind}; nothing was sent, take it out first")


def read_texts(files: Mapping[str, Path], own: str | None = None) -> dict[str, str]:
    """The files that people can read, by name. Raises PushError when one holds a secret."""
    texts = {}
    for name, path in files.items():
        if not _matches(path.name, (WEIGHTS, *TOKENIZERS)):
            texts[name] = path.read_text(encoding="utf-8", errors="replace")
            refuse_secrets(texts[name], str(path), own)
    return texts
