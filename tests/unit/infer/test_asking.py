"""Every answer is kept, none is made up, none is asked for twice; and asking stops when it should."""

import threading
import time

import pytest

from tests.judge_server import EXPECTED, ITEMS, QUERY, WORDS, JudgeServer, endpoint, measured, serving, top
from vlalign.infer import asking
from vlalign.types import BadRow, UserError


@pytest.fixture(scope="module", autouse=True)
def warm():
    """The first answer of a process takes its time, which must not look like a server that stalls."""
    with pytest.MonkeyPatch.context() as patch, serving(patch) as own:
        measured(endpoint(own.url, timeout=60.0).build())


@pytest.fixture
def server(monkeypatch):
    with serving(monkeypatch) as own:
        yield own


def until(true, seconds=5.0):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    assert true()


def threads():
    return [each for each in threading.enumerate() if each.name.startswith("judge")]


@pytest.mark.parametrize(
    "fault",
    [
        500,
        503,
        "stall",
        "truncate",
        "garble",
        "page",
        (429, {"Retry-After": "0.05"}),
        (429, {"Retry-After": "x"}),
    ],
    ids=str,
)
def test_a_fault_that_passes_loses_no_score_and_asks_nothing_twice(server, fault):
    server.faults = {"d1": [fault], "d5": [fault, fault], "d9": [fault]}
    found, error = measured(endpoint(server.url, timeout=0.7 if fault == "stall" else 5.0).build())
    assert error is None and found == pytest.approx(EXPECTED, abs=1e-12)
    assert set(server.answered.values()) == {1} and len(server.answered) == 12
    assert server.asked == {word: {"d1": 2, "d5": 3, "d9": 2}.get(word, 1) for word in WORDS}


@pytest.mark.parametrize("fault", [500, "stall", "truncate", "garble", "page", 429], ids=str)
def test_a_fault_that_stays_leaves_the_others_their_scores_and_makes_none_up(server, fault):
    server.faults = {"d0": [fault] * 99, "d7": [fault] * 99}
    spec = endpoint(server.url, timeout=0.7 if fault == "stall" else 5.0, retries=1)
    found, error = measured(spec.build())
    assert found == pytest.approx({at: EXPECTED[at] for at in EXPECTED if at not in (0, 7)}, abs=1e-12)
    assert type(error) is not BadRow and "2 of 12" in str(error) and "run it again" in str(error)
    assert server.asked["d0"] == server.asked["d7"] == 2 and max(server.answered.values()) == 1
    server.faults = {}
    again, error = measured(spec.build(), [ITEMS[0], ITEMS[7]])
    assert error is None and again == pytest.approx({0: EXPECTED[0], 1: EXPECTED[7]}, abs=1e-12)
    assert set(server.answered.values()) == {1} and len(server.answered) == 12


def test_retry_after_is_waited_for_and_one_of_an_hour_is_not(server):
    server.faults = {"d0": [(429, {"Retry-After": "0.4"})]}
    begun = time.monotonic()
    assert measured(endpoint(server.url).build(), ITEMS[:1])[1] is None
    assert time.monotonic() - begun > 0.4
    server.faults = {"d0": [(429, {"Retry-After": "3600"})]}
    begun = time.monotonic()
    found, error = measured(endpoint(server.url).build(), ITEMS[:1])
    assert not found and "429" in str(error) and time.monotonic() - begun < 3


def test_backoff_doubles(monkeypatch):
    waits = []
    monkeypatch.setattr(threading.Event, "wait", lambda self, s=None: waits.append(s))
    judge = endpoint(retries=6).build()
    monkeypatch.setattr(judge, "_top", lambda messages: (_ for _ in ()).throw(asking.Again("no")))
    monkeypatch.setattr(asking, "DELAY", 0.5)
    with pytest.raises(asking.Again):
        judge._score([], ITEMS[0], threading.Event())
    most = [0.5, 1, 2, 4, 8, 8]
    assert len(waits) == 6 and all(0.75 * m <= wait <= m for wait, m in zip(waits, most, strict=True))


@pytest.mark.parametrize("concurrency", [1, 3])
def test_concurrency_is_bounded_and_used(concurrency):
    with JudgeServer(top, latency=0.02) as server:
        found, error = measured(endpoint(server.url, concurrency=concurrency).build())
    assert error is None and len(found) == 12 and min(2, concurrency) <= server.most <= concurrency


def test_answers_come_as_they_come(server):
    server.held = {"d0", "d3"}
    judge = endpoint(server.url, concurrency=3).build()
    stream = judge.measure(QUERY, ITEMS[:6])
    assert sorted(min(next(stream)) for _ in range(4)) == [1, 2, 4, 5]
    server.release.set()
    assert sorted(at for new in stream for at in new) == [0, 3]


@pytest.mark.parametrize("end", ["close", "interrupt"])
def test_a_generator_that_is_closed_stops_asking(server, end):
    server.held = set(WORDS[2:])
    stream = endpoint(server.url, concurrency=2).build().measure(QUERY, ITEMS)
    next(stream)
    begun = time.monotonic()
    if end == "close":
        stream.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            stream.throw(KeyboardInterrupt)
    assert time.monotonic() - begun < 1
    server.release.set()
    until(lambda: not threads())
    assert sum(server.asked.values()) <= 1 + 1 + 2 and max(server.asked.values()) == 1


def test_a_generator_that_is_closed_waits_for_no_second_try(server):
    server.faults = {"d0": [(503, {"Retry-After": "100"})]}
    stream = endpoint(server.url, concurrency=2).build().measure(QUERY, ITEMS[:2])
    assert 1 in next(stream)
    until(lambda: server.asked["d0"] == 1 and server.now == 0)
    stream.close()
    until(lambda: not threads())
    assert server.asked["d0"] == 1


def test_nobody_there_is_told_after_the_tries_of_a_few(server):
    judge = endpoint(concurrency=2, retries=1).build()
    asked, real = [], judge.client.chat.completions.create
    judge.client.chat.completions.create = lambda **own: asked.append(1) or real(**own)
    found, error = measured(judge)
    assert not found and "127.0.0.1:1" in str(error) and "down" in str(error) and "12 of 12" in str(error)
    assert 2 <= len(asked) <= 8


@pytest.mark.parametrize(
    ("status", "told"), [(401, "key_env"), (403, "key_env"), (404, "/v1"), (402, "402")], ids=str
)
def test_a_refusal_that_holds_for_all_is_asked_once_or_so(server, status, told, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    server.faults = {word: [status] * 9 for word in WORDS}
    judge = endpoint(server.url, key_env="JUDGE_KEY", concurrency=1).build()
    found, error = measured(judge)
    assert not found and type(error) is UserError and told in str(error) and str(status) in str(error)
    assert sum(server.asked.values()) <= 3 and "of judge:" in str(error)


@pytest.mark.parametrize("fault", [400, 413, 422, "filter"])
def test_a_pair_that_is_refused_is_a_bad_row_of_which_the_others_keep_their_scores(server, fault):
    server.faults = {"d4": [fault] * 9}
    found, error = measured(endpoint(server.url).build())
    assert len(found) == 11 and isinstance(error, BadRow) and error.reason == "refused"
    assert server.asked["d4"] == 1
