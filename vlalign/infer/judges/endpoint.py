"""A judge that is asked over HTTP, as vLLM and others answer chat completions with log-probabilities."""

import os
import re
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from json import dumps
from typing import Annotated, Any, Literal

from vlalign.infer import questions
from vlalign.infer.asking import EndpointJudge
from vlalign.models.prompts import TemplateSpec
from vlalign.registry import JUDGES, TEMPLATES, encode
from vlalign.types import UserError

ELSEWHERE = ("url", "key_env", "concurrency", "timeout", "retries")  # how it is reached, not what it measures
ADDRESS = r"https?://(\[[0-9a-fA-F:.]+\]|[^\s/?#@:\[\]]+)(:\d{1,5})?(/[^\s?#@]*)?"


@JUDGES.register("endpoint")
@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One question a pair, answered by one token. `url`: the base address, which often ends in /v1.

    `key_env`: the environment variable that holds the key, if one is needed. `prompt`: a conversation.
    `answers`: `yes_no` measures log p(yes) - log p(no), the prompt's words; `likert` the expected rating from
    1 to 5. `top_logprobs`: how many tokens are told. `concurrency`: pairs asked at once. `timeout`: seconds
    without a word. `retries`: tries after the first where the fault is the endpoint's. What was measured is
    known by the model's name, not by `url`: the same model is served here today and there tomorrow.
    """

    url: str
    model: str
    key_env: str | None = None
    prompt: Annotated[TemplateSpec, TEMPLATES] = field(default_factory=lambda: TEMPLATES.decode("chat"))
    answers: Literal["yes_no", "likert"] = "yes_no"
    top_logprobs: int = 20
    concurrency: int = 8
    timeout: float = 60.0
    retries: int = 5

    shows = EndpointJudge.shows

    def __post_init__(self) -> None:
        if not re.fullmatch(ADDRESS, self.url):
            raise ValueError("url must be an http or https address without a user, a password or a query")
        if not self.model:
            raise ValueError("model must be the name that the endpoint serves it by")
        if self.key_env is not None and not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", self.key_env):
            raise ValueError("key_env must be the name of an environment variable, not the key itself")
        for name, least in (("concurrency", 1), ("retries", 0), ("top_logprobs", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")
        if not 0 < self.timeout < float("inf"):
            raise ValueError(f"timeout must be finite and > 0, got {self.timeout}")
        told = " ".join(
            [self.prompt.instruction, *(each["content"] for each in questions.messages(self.prompt))]
        )
        if self.answers == "likert" and not ("1" in told and "5" in told):
            raise ValueError("prompt must ask for a number from 1 to 5 where answers are likert")
        if self.answers == "yes_no" and not self.prompt.no:
            raise ValueError("prompt must have a word for no where answers are yes_no")

    def answer(self, right: bool) -> str:
        """What a demonstration's answer is: a word of the prompt, or the highest or the lowest rating."""
        if self.answers == "likert":
            return questions.RATINGS[-1 if right else 0]
        return (self.prompt.yes if right else self.prompt.no) or ""

    def build(self) -> EndpointJudge:
        """Nothing is asked yet. Raises UserError."""
        try:
            import openai
        except ImportError as error:
            raise UserError("judge: openai is not installed; run: pip install 'vlalign[judge]'") from error
        key = (
            os.environ.get(self.key_env, "").strip() if self.key_env else "no-key"
        )  # the client wants a word
        if not (key and key.isascii() and key.isprintable()):
            raise UserError(f"key_env: {self.key_env} holds no key; export it in the shell that runs this")
        if os.environ.get("OPENAI_CUSTOM_HEADERS"):
            raise UserError("OPENAI_CUSTOM_HEADERS is set, and would be sent to url: unset it")
        # What the environment says of another service stays here.
        own: Any = {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}
        client = openai.OpenAI(
            base_url=self.url, api_key=key, timeout=self.timeout, max_retries=0, default_headers=own
        )
        kept = {name: value for name, value in encode(self, component=True).items() if name not in ELSEWHERE}
        digest = blake2b(dumps(kept, sort_keys=True).encode(), digest_size=16).hexdigest()
        yes, no = questions.word(self.prompt.yes), questions.word(self.prompt.no or "")
        yes_no = partial(questions.yes_no, yes=yes, no=no)
        return EndpointJudge(self, digest, client, questions.likert if self.answers == "likert" else yes_no)
