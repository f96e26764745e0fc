"""A Hub on 127.0.0.1 for tests: the calls that huggingface_hub makes to upload and download, over real HTTP.

Files lie under a folder by their hash, a commit is a tree of names, large files go by LFS, whole or in parts.
"""

import base64
import hashlib
import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

ROUTES: list[tuple[str, re.Pattern[str], str]] = []


def route(methods: str, pattern: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Handle `GET HEAD` and so on of a path; groups of the pattern become arguments."""

    def keep(handle: Callable[..., None]) -> Callable[..., None]:
        ROUTES.extend((method, re.compile(pattern), handle.__name__) for method in methods.split())
        return handle

    return keep


class Refusal(Exception):
    """An answer that is no success: its status, and the message and code that the Hub sends in headers."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True)
class Blob:
    """A file of a commit. `etag`: git's sha1 of a regular file, sha256 of one that went by LFS."""

    etag: str
    size: int
    lfs: bool


@dataclass
class Repo:
    """`commits`: sha -> name -> blob; `head`: the sha of main."""

    id: str
    private: bool
    head: str = "0" * 40
    commits: dict[str, dict[str, Blob]] = field(default_factory=lambda: {"0" * 40: {}})

    @property
    def files(self) -> dict[str, Blob]:
        """What main holds."""
        return self.commits[self.head]


@dataclass
class Failure:
    """Answer the next `times` requests of this kind with a status, or with a connection that breaks off."""

    method: str
    pattern: str
    how: int | str
    times: int


class Hub:
    """`with Hub(folder) as hub`: point HF_ENDPOINT or `endpoint=` at `hub.url`, log in with `hub.token`."""

    def __init__(
        self, folder: Path, user: str = "me", token: str = "loopback-token", part: int = 2**30
    ) -> None:
        self.folder, self.user, self.token, self.part = folder, user, token, part
        self.repos: dict[str, Repo] = {}
        self.requests: list[str] = []
        self.messages: list[str] = []
        self.failures: list[Failure] = []
        self.signature = secrets.token_hex(
            8
        )  # what a signed address of the storage carries instead of a token
        self.lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        # As of the Hub, large files lie on another origin, to which the token must not go.
        self.url, self.storage = (f"http://127.0.0.1:{server.server_address[1]}" for server in self.servers)

    def __enter__(self) -> "Hub":
        for server in self.servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def fail(self, method: str, pattern: str, how: int | str, times: int = 1) -> None:
        """`how`: a status such as 403, or `drop` to break the connection off in the middle of the request."""
        self.failures.append(Failure(method, pattern, how, times))

    def failure(self, method: str, path: str) -> int | str | None:
        """What the next request of this kind should meet, once noted as met."""
        with self.lock:
            for failure in self.failures:
                if failure.times and failure.method == method and re.search(failure.pattern, path):
                    failure.times -= 1
                    return failure.how
        return None

    def read(self, repo: str, name: str) -> bytes:
        """The bytes of a file on main."""
        return (self.folder / self.repos[repo].files[name].etag).read_bytes()

    def keep(self, content: bytes, lfs: bool) -> Blob:
        """Store bytes under the hash that the Hub calls them by."""
        told = b"" if lfs else f"blob {len(content)}\0".encode()
        blob = Blob((hashlib.sha256 if lfs else hashlib.sha1)(told + content).hexdigest(), len(content), lfs)
        beside = self.folder / f"{blob.etag}-{secrets.token_hex(4)}"  # two threads may bring the same content
        beside.write_bytes(content)
        beside.replace(self.folder / blob.etag)
        return blob


@contextmanager
def serving(folder: Path, patch: pytest.MonkeyPatch, part: int = 2**20) -> Iterator[Hub]:
    """A Hub that huggingface_hub, imported already, is logged in to and takes for the only one."""
    with Hub(folder / "hub", part=part) as hub:
        patch.setenv("HF_TOKEN", hub.token)
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no_login"))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        huggingface_hub.close_session()
        yield hub
        huggingface_hub.close_session()


class Handler(BaseHTTPRequestHandler):
    """One request. The body is always read, so that the connection can go on."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer goes out in two writes; the second must not wait for the first

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: tests read `hub.requests`."""

    def handle_any(self) -> None:
        split = urlsplit(self.path)
        self.query, path = parse_qs(split.query), unquote(split.path)
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {path}")
        how = self.hub.failure(self.command, path)
        if how == "drop":
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self.close_connection = True
            return
        self.body = self.read_body()
        try:
            if isinstance(how, int):
                raise Refusal(how, "told to fail")
            for method, pattern, name in ROUTES:
                if method == self.command and (match := pattern.fullmatch(path)):
                    return getattr(self, name)(**match.groupdict())
            raise Refusal(404, f"this server does not speak {self.command} {path}")
        except Refusal as refusal:
            headers = {"X-Error-Message": str(refusal)} | (
                {"X-Error-Code": refusal.code} if refusal.code else {}
            )
            self.reply({"error": str(refusal)}, refusal.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def reply(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, told in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, told)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def logged_in(self, required: bool = True) -> bool:
        told = self.headers.get("Authorization")
        if told is not None and told != f"Bearer {self.hub.token}":
            raise Refusal(401, "Invalid credentials in Authorization header")
        if told is None and required:
            raise Refusal(401, "Invalid username or password.")
        return told is not None

    def find(self, repo: str, write: bool = False) -> Repo:
        logged_in, found = self.logged_in(required=write), self.hub.repos.get(repo)
        if found is None or (found.private and not logged_in):
            raise Refusal(404 if logged_in else 401, "Repository not found", "RepoNotFound")
        return found

    def tree(self, repo: str, revision: str) -> tuple[Repo, str, dict[str, Blob]]:
        found = self.find(repo)
        sha = found.head if revision == "main" else revision
        if sha not in found.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found, sha, found.commits[sha]

    def signed(self) -> None:
        if self.query.get("signature") != [self.hub.signature] or "Authorization" in self.headers:
            raise Refusal(403, "the signature must match, and no token come with it")

    @route("GET", "/api/whoami-v2")
    def whoami(self) -> None:
        self.logged_in()
        self.reply({"type": "user", "name": self.hub.user, "orgs": []})

    @route("POST", "/api/repos/create")
    def create(self) -> None:
        self.logged_in()
        told = json.loads(self.body)
        owner = told["organization"] or self.hub.user
        if owner != self.hub.user:
            raise Refusal(403, f"You don't have the rights to create a model under the namespace {owner}")
        repo = f"{owner}/{told['name']}"
        exists = repo in self.hub.repos
        self.hub.repos.setdefault(repo, Repo(repo, private=told.get("visibility") == "private"))
        self.reply({"url": f"{self.hub.url}/{repo}", "name": repo, "id": repo}, 409 if exists else 200)

    @route("POST", "/api/validate-yaml")
    def validate(self) -> None:
        content = json.loads(self.body)["content"]
        block = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        try:
            valid = block is not None and "license" in YAML(typ="safe").load(block[1])
        except YAMLError:
            valid = False
        errors = [] if valid else [{"message": "the metadata has no license"}]
        self.reply({"errors": errors, "warnings": []}, 400 if errors else 200)

    @route("POST", "/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)")
    def preupload(self, repo: str, revision: str) -> None:
        files = self.find(repo, write=True).files
        answer = [
            {
                "path": told["path"],
                "uploadMode": "lfs"
                if told["path"].endswith(".safetensors") or told["size"] > 10 * 2**20
                else "regular",
                "shouldIgnore": False,
                "oid": files[told["path"]].etag if told["path"] in files else None,
            }
            for told in json.loads(self.body)["files"]
        ]
        self.reply({"files": answer})

    @route("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
    def batch(self, repo: str) -> None:
        self.find(repo, write=True)
        objects = [self.upload_action(told["oid"], told["size"]) for told in json.loads(self.body)["objects"]]
        self.reply({"transfer": "basic", "objects": objects})

    def upload_action(self, oid: str, size: int) -> dict[str, Any]:
        if (self.hub.folder / oid).exists():
            return {"oid": oid, "size": size}
        signed = f"{self.hub.storage}/storage/{oid}?signature={self.hub.signature}"
        upload: dict[str, Any] = {"href": signed}
        if size > self.hub.part:
            parts = {str(n + 1): f"{signed}&part={n + 1:05d}" for n in range(-(-size // self.hub.part))}
            upload["header"] = {"chunk_size": str(self.hub.part)} | parts
        return {
            "oid": oid,
            "size": size,
            "actions": {"upload": upload, "verify": {"href": f"{self.hub.url}/verify"}},
        }

    @route("PUT", "/storage/(?P<oid>[0-9a-f]{64})")
    def put(self, oid: str) -> None:
        self.signed()
        if part := self.query.get("part"):
            (self.hub.folder / f"{oid}.{part[0]}").write_bytes(self.body)
        else:
            self.store(oid, self.body)
        self.reply(b"", headers={"ETag": hashlib.md5(self.body).hexdigest()})

    @route("POST", "/storage/(?P<oid>[0-9a-f]{64})")
    def complete(self, oid: str) -> None:
        self.signed()
        parts = sorted(self.hub.folder.glob(f"{oid}.*"))
        self.store(oid, b"".join(part.read_bytes() for part in parts))
        self.reply({})

    def store(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, f"what came does not hash to {oid}")
        self.hub.keep(content, lfs=True)

    @route("POST", "/verify")
    def verify(self) -> None:
        self.logged_in()
        told = json.loads(self.body)
        path = self.hub.folder / told["oid"]
        if not path.exists() or path.stat().st_size != told["size"]:
            raise Refusal(404, "that object never arrived")
        self.reply({})

    @route("POST", "/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)")
    def commit(self, repo: str, revision: str) -> None:
        found = self.find(repo, write=True)
        files = dict(found.files)
        for line in self.body.splitlines():
            told = json.loads(line)
            key, value = told["key"], told["value"]
            if key == "header":
                self.hub.messages.append(value["summary"])
            elif key == "file":
                files[value["path"]] = self.hub.keep(base64.b64decode(value["content"]), lfs=False)
            elif key == "lfsFile":
                if not (self.hub.folder / value["oid"]).exists():
                    raise Refusal(400, f"{value['path']} points at an object that never arrived")
                files[value["path"]] = Blob(value["oid"], value["size"], lfs=True)
            elif key == "deletedFile":
                del files[value["path"]]
        found.head = hashlib.sha1(found.head.encode() + repr(sorted(files.items())).encode()).hexdigest()
        found.commits[found.head] = files
        self.reply(
            {
                "commitUrl": f"{self.hub.url}/{repo}/commit/{found.head}",
                "commitOid": found.head,
                "success": True,
            }
        )

    @route("GET", "/api/models/(?P<repo>[^/]+/[^/]+)")
    def info(self, repo: str) -> None:
        self.revision_info(repo, "main")

    @route("GET", "/api/models/(?P<repo>[^/]+/[^/]+)/revision/(?P<revision>[^/]+)")
    def revision_info(self, repo: str, revision: str) -> None:
        found, sha, files = self.tree(repo, revision)
        siblings = [{"rfilename": name} for name in sorted(files)]
        told = {
            "id": repo,
            "modelId": repo,
            "sha": sha,
            "private": found.private,
            "tags": [],
            "siblings": siblings,
        }
        self.reply(told)

    @route("GET", "/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)")
    def listing(self, repo: str, revision: str) -> None:
        _, _, files = self.tree(repo, revision)
        entries: list[dict[str, Any]] = []
        for name, blob in sorted(files.items()):
            lfs = {"lfs": {"oid": blob.etag, "size": blob.size, "pointerSize": 134}} if blob.lfs else {}
            entries.append({"type": "file", "path": name, "size": blob.size, "oid": blob.etag[:40]} | lfs)
        self.reply(entries)

    @route("GET HEAD", "/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")
    def resolve(self, repo: str, revision: str, name: str) -> None:
        _, sha, files = self.tree(repo, revision)
        if name not in files:
            raise Refusal(404, f"{name} does not exist on {revision}", "EntryNotFound")
        blob = files[name]
        told = {"X-Repo-Commit": sha, "ETag": f'"{blob.etag}"'}
        if blob.lfs:  # as the Hub does: the file itself lies with the storage
            place = f"{self.hub.storage}/storage/{blob.etag}?signature={self.hub.signature}"
            linked = {"X-Linked-ETag": f'"{blob.etag}"', "X-Linked-Size": str(blob.size)}
            return self.reply(b"", 302, told | linked | {"Location": place})
        self.reply((self.hub.folder / blob.etag).read_bytes(), headers=told)

    @route("GET HEAD", "/storage/(?P<oid>[0-9a-f]{64})")
    def download(self, oid: str) -> None:
        self.signed()
        self.reply((self.hub.folder / oid).read_bytes(), headers={"ETag": f'"{oid}"'})
