"""The recipe's side of an endpoint: its key stays secret, and what is measured is known by its digest."""

import json
import sys
from dataclasses import replace

import pytest

from tests.judge_server import ITEMS, RATE, endpoint, measured, prompt, serving
from vlalign.infer.judges.endpoint import Endpoint
from vlalign.registry import JUDGES, TEMPLATES, encode
from vlalign.types import UserError

KEY = "sk-loopback/0123456789"


@pytest.fixture
def server(monkeypatch):
    with serving(monkeypatch) as own:
        yield own


def test_the_key_arrives_and_is_never_shown(server, monkeypatch, caplog):
    caplog.set_level(0)
    monkeypatch.setenv("JUDGE_KEY", f" {KEY}\n")
    spec = endpoint(server.url, key_env="JUDGE_KEY", retries=0)
    judge = spec.build()
    server.faults = {"d1": [500], "d3": [401], "d5": [400], "d7": [418]}
    shown = [
        repr(judge),
        repr(vars(judge)),
        judge.digest,
        repr(spec),
        json.dumps(encode(spec, component=True)),
    ]
    for item in ITEMS[:8]:
        _, error = measured(judge, [item])
        while error is not None:  # what a traceback would show
            shown.append(repr(error))
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert {headers["authorization"] for headers, _ in server.requests} == {f"Bearer {KEY}"}
    assert len(shown) >= 9 and "***" in "".join(shown) and KEY not in "".join(shown) + caplog.text


def test_another_services_key_is_not_sent(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ADMIN_KEY", KEY)
    measured(endpoint(server.url).build(), ITEMS[:1])
    assert KEY not in json.dumps(server.requests)


@pytest.mark.parametrize("value", [None, "", " \n", "sk-\u2026", "sk-\x00"])
def test_a_variable_without_a_key_is_told_by_name(monkeypatch, value):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None and "\x00" not in value:
        monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(UserError, match="JUDGE_KEY"):
        endpoint(key_env="JUDGE_KEY").build()


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"pip install 'vlalign\[judge\]'"):
        endpoint().build()


def test_the_digest_is_of_the_measurement_and_not_of_the_way_to_it(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setattr("openai.OpenAI", lambda **own: None)  # each would read the machine's certificates
    spec = endpoint(prompt=prompt(system=RATE))
    digest = spec.build().digest
    ways = [{"key_env": "JUDGE_KEY"}, {"concurrency": 2}, {"retries": 9}, {"timeout": 1.0}]
    for way in [*ways, {"url": "https://127.0.0.1:2"}]:
        assert replace(spec, **way).build().digest == digest
    others = [("{query} \n{document}", ""), ("{query}\n{document}", "1")]
    prompts = [prompt(*other, system=RATE) for other in others]
    prompts += [
        prompt(**{"system": RATE} | own) for own in ({"yes": "True"}, {"no": "False"}, {"system": RATE + "!"})
    ]
    changes = [
        {"model": "judge-2"},
        {"answers": "likert"},
        {"top_logprobs": 5},
        *({"prompt": p} for p in prompts),
    ]
    digests = {replace(spec, **change).build().digest for change in changes}
    assert len(digests) == len(changes) and digest not in digests


def test_a_recipe_names_it_with_a_prompt_of_the_rerankers():
    told = {
        "name": "endpoint",
        "url": "http://127.0.0.1:8000/v1",
        "model": "m",
        "prompt": "unime",
        "timeout": 9,
    }
    spec = JUDGES.decode(told)
    assert isinstance(spec, Endpoint) and spec.prompt.yes == "Yes"
    assert JUDGES.decode(encode(spec, component=True)) == spec


@pytest.mark.parametrize(
    ("own", "match"),
    [
        ({"url": "127.0.0.1:8000"}, "url"),
        ({"url": f"https://me:{KEY}@127.0.0.1/v1"}, "url"),
        ({"url": f"https://127.0.0.1/v1?key={KEY}"}, "url"),
        ({"model": ""}, "model"),
        ({"key_env": KEY}, "key_env"),
        ({"concurrency": 0}, "concurrency"),
        ({"retries": -1}, "retries"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"timeout": 0.0}, "timeout"),
        ({"prompt": TEMPLATES.decode("qwen3_reranker")}, "conversation"),
        ({"prompt": prompt(after="Sure: ")}, "conversation"),
        ({"prompt": prompt(no=None)}, "no"),
        ({"answers": "likert"}, "from 1 to 5"),
    ],
)
def test_a_field_that_cannot_be_is_refused_without_the_key(own, match):
    with pytest.raises(ValueError, match=match) as error:
        endpoint(**own)
    assert KEY not in str(error.value)
