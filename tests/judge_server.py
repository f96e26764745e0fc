"""A judge on 127.0.0.1 for tests: chat completions of one token with log-probabilities, over real HTTP.

A prompt is a query, a line's end, and a candidate, by which answers and faults are named.
"""

import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from vlalign.infer import asking
from vlalign.infer.judges.endpoint import Endpoint
from vlalign.registry import TEMPLATES
from vlalign.types import Item, UserError

Top = list[tuple[str, float]]
HELD = 10  # seconds that nothing is held longer than
QUERY = Item(text="a red square")
WORDS = [f"d{n}" for n in range(12)]
ITEMS = [Item(text=each) for each in WORDS]
RATE = "Answer with a number from 1 to 5."


def top(candidate: str) -> Top:
    """Of d0, d1, ...: yes becomes likelier, in two spellings, among other tokens."""
    n = float(candidate.removeprefix("d"))
    return [("Yes", -3 + n / 4), (" yes", -4 + n / 8), ("No", -1 - n / 4), ("The", -5.0), ("\n", -9.0)]


def naive(told: Top) -> float:
    """log p(yes) - log p(no) by hand."""
    yes, no = (
        sum(math.exp(each) for token, each in told if token.strip().lower() == word) for word in ("yes", "no")
    )
    return math.log(yes / no)


EXPECTED = {at: naive(top(word)) for at, word in enumerate(WORDS)}


def prompt(text: str = "{query}\n{document}", instruction: str = "", **own: Any) -> Any:
    """A conversation, by which this server knows a candidate."""
    return TEMPLATES.decode({"name": "chat", "text": text, "instruction": instruction, **own})


def endpoint(url: str = "http://127.0.0.1:1/v1", **own: Any) -> Endpoint:
    """One that gives up soon."""
    return Endpoint(**{"url": url, "model": "judge", "prompt": prompt(), "timeout": 5.0, "retries": 2} | own)


def measured(
    judge: Any, items: Sequence[Item] = ITEMS, query: Item = QUERY
) -> tuple[dict[int, float], UserError | None]:
    """What came, by place, and the error at the end."""
    found: dict[int, float] = {}
    try:
        for new in judge.measure(query, items):
            for at, numbers in new.items():
                assert at not in found and len(numbers) == judge.width == 1
                found[at] = numbers[0]
    except UserError as error:
        return found, error
    return found, None


@contextmanager
def serving(patch: pytest.MonkeyPatch) -> Iterator["JudgeServer"]:
    """One that answers by `top`, and second tries that come at once."""
    patch.setenv("NO_PROXY", "127.0.0.1")
    patch.setattr(asking, "DELAY", 0.02)
    with JudgeServer(top) as server:
        yield server


class JudgeServer:
    """`with JudgeServer(answer) as server`: `server.url` is the base address.

    `answer`: a candidate's words -> tokens and their log-probabilities. `faults`: what a candidate meets
    before it is answered, in turn: a status or (status, headers), `stall`, `truncate`, `garble`, `page`
    or `filter`.
    `held`: candidates that are answered only once `release` is set. `asked`, `answered`: how often.
    """

    def __init__(self, answer: Callable[[str], Top], latency: float = 0.0) -> None:
        self.answer, self.latency = answer, latency
        self.faults: dict[str, list[Any]] = {}
        self.held: set[str] = set()
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.now = self.most = 0
        self.release, self.lock = threading.Event(), threading.Lock()
        handler = type("BoundHandler", (Handler,), {"judge": self})
        self.server = Queueing(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def __enter__(self) -> "JudgeServer":
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()


class Queueing(ThreadingHTTPServer):
    """Five callers at once, the default, are fewer than a judge is: the others would wait a second."""

    request_queue_size = 64


class Handler(BaseHTTPRequestHandler):
    """One request; how many there are at once is counted while one is held."""

    judge: JudgeServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: tests read `requests`."""

    def do_POST(self) -> None:
        judge, body = self.judge, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][-1]["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        candidate = "".join(part.get("text", "") for part in parts).partition("\n")[2]
        with judge.lock:
            judge.requests.append(({name.lower(): value for name, value in self.headers.items()}, body))
            judge.asked[candidate] += 1
            judge.now += 1
            judge.most = max(judge.most, judge.now)
            waiting = judge.faults.get(candidate)
            fault = waiting.pop(0) if waiting else None
        time.sleep(judge.latency)
        if candidate in judge.held or fault == "stall":
            judge.release.wait(HELD)
        with judge.lock:  # before the client, hearing the answer, goes on
            judge.now -= 1
            judge.answered[candidate] += fault is None
        self.reply(candidate, fault)

    def reply(self, candidate: str, fault: Any) -> None:
        whole = self.completion(candidate)
        if fault is None:
            self.send(whole)
        elif fault in ("stall", "truncate"):
            if fault == "truncate":
                self.send(whole[: len(whole) // 2], length=len(whole))
            self.close_connection = True
        elif fault == "filter":
            self.send(whole.replace(b'"length"', b'"content_filter"'))
        elif fault == "garble":
            self.send(b'{"choices": [')
        elif fault == "page":
            self.send(b"<html>Bad gateway</html>", kind="text/html")
        else:
            status, headers = fault if isinstance(fault, tuple) else (fault, {})
            told = f"told to fail, you came with {self.headers.get('Authorization')}"
            self.send(json.dumps({"error": {"message": told}}).encode(), status, headers)

    def completion(self, candidate: str) -> bytes:
        """Tokens in a JSON that may say NaN, as servers that are written in Python do."""
        top = [
            {"token": token, "logprob": each, "bytes": None} for token, each in self.judge.answer(candidate)
        ]
        first = {**(top or [{"token": "", "logprob": 0.0}])[0], "top_logprobs": top}
        choice = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": ""}}
        told = {"id": "1", "object": "chat.completion", "created": 0, "model": "judge"}
        return json.dumps({**told, "choices": [{**choice, "logprobs": {"content": [first]}}]}).encode()

    def send(
        self,
        content: bytes,
        status: int = 200,
        headers: dict[str, str] | None = None,
        kind: str = "application/json",
        length: int | None = None,
    ) -> None:
        self.send_response(status)
        told = {"Content-Type": kind, "Content-Length": str(length or len(content))}
        for name, value in (told | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
