"""Uploading a saved model to the Hub, with its adapters, recipe, metrics and card."""

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from vlalign import __version__
from vlalign.models.card import Facts, card
from vlalign.models.fetching import line
from vlalign.models.parcel import PushError, collect, collect_adapter, read_texts, refuse_secrets

LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")
PARTS = (
    ".safetensors",
    ".json",
    ".jinja",
)  # what an earlier push left of another model would mislead loaders
WAITS = (1, 3)  # seconds before a call that the Hub stumbled over is made again
Answer = TypeVar("Answer")


def push(
    folder: str | Path,
    repo: str,
    *,
    private: bool = True,
    message: str = "Upload with vlalign",
    dry_run: bool = False,
    licence: str = "other",
    adapter: bool = False,
    endpoint: str | None = None,
) -> list[tuple[str, int]]:
    """Upload a model folder, or a finished run's `out`, in one commit; name and bytes of each file that goes.

    A `README.md` that the folder has goes as it is, otherwise one is written. What the repository has of
    weights and configs (`*.safetensors`, `*.json`, `*.jinja`) and the folder has not is deleted there.
    `licence` is an identifier that the Hub knows, such as `apache-2.0`. `adapter`: of a reranker or
    captioner what was learned on top of its base. `dry_run` contacts nothing.

    Raises:
        PushError: the folder is no model, a text holds a secret, nobody is logged in, the repository exists
            and is public though `private` is asked for, the Hub refused, or it cannot be reached.
    """
    from huggingface_hub import get_token

    _check_names(repo, licence)
    folder, token = Path(folder), get_token()
    files = (collect_adapter if adapter else collect)(folder)
    texts = read_texts(files, own=token)
    contents: dict[str, Path | bytes] = dict(files)
    if "README.md" not in files:
        readme = card(Facts.read(repo, folder, files, texts, licence))
        refuse_secrets(readme, "README.md", own=token)
        contents["README.md"] = readme.encode()
    if not dry_run:
        if token is None:
            raise PushError(f"{repo}: nobody is logged in to the Hub; run `hf auth login` or set HF_TOKEN")
        _upload(contents, repo, private, message, endpoint)
    return [
        (name, len(it) if isinstance(it, bytes) else it.stat().st_size)
        for name, it in sorted(contents.items())
    ]


def _check_names(repo: str, licence: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
        valid = repo.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise PushError(
            f"'{repo}' is no name of a repository; write owner/name in letters, digits, '-', '_', '.'"
        )
    if not LICENCE.fullmatch(licence):
        raise PushError(f"'{licence}' is no licence's identifier; write one such as apache-2.0, or other")


def _upload(
    files: Mapping[str, Path | bytes], repo: str, private: bool, message: str, endpoint: str | None
) -> None:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # the HTTP client's

    api = HfApi(endpoint=endpoint, library_name="vlalign", library_version=__version__)
    try:
        _again(lambda: api.create_repo(repo, private=private, exist_ok=True))
        there = _again(lambda: api.model_info(repo))
        public = private and not there.private
        if not public:
            additions = [CommitOperationAdd(name, content) for name, content in files.items()]
            names = [file.rfilename for file in there.siblings or ()]
            stale = [name for name in names if name not in files and name.endswith(PARTS)]
            deletions = [CommitOperationDelete(name) for name in stale]
            api.preupload_lfs_files(repo, additions)  # repeats what fails, so that the commit below is small
            _again(lambda: api.create_commit(repo, [*additions, *deletions], commit_message=message))
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise _told(error, repo, api.endpoint) from error
    if public:
        raise PushError(
            f"{repo} exists and is public; make it private on the Hub, or push with private=false"
        )


def _again(call: Callable[[], Answer]) -> Answer:
    """Make a call that huggingface_hub makes once, and again while the Hub answers 500 or more."""
    from huggingface_hub.errors import HfHubHTTPError

    for wait in WAITS:
        try:
            return call()
        except HfHubHTTPError as error:
            if error.response.status_code < 500:
                raise
        time.sleep(wait)
    return call()


def _told(error: Exception, repo: str, endpoint: str) -> PushError:
    """One sentence about what befell an upload. Addresses are left out: they can be signed."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # huggingface_hub wraps what befalls a large file
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        sentence = {
            401: "the Hub does not accept the login (401); run `hf auth login` or set HF_TOKEN anew",
            403: "the login may not write there (403); use a token that may write, or another repository",
            404: "the Hub has no such repository for this login (404); check its name and the token's rights",
        }.get(
            status, f"the Hub answered {status} {error.server_message or ''}".rstrip() + "; try again later"
        )
        return PushError(f"{repo}: {sentence}")
    if isinstance(error, HTTPError | OSError):
        return PushError(
            f"{repo}: the Hub at {endpoint} cannot be reached ({line(error)}); check the network"
        )
    return PushError(f"{repo}: the Hub refused the upload: {line(error)}")
