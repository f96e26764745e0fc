"""Counts of rows."""

from dataclasses import asdict
from types import SimpleNamespace

from vlalign.train.tally import Found, Tally
from vlalign.types import Licence


def test_a_row_counts_once_however_often_it_comes():
    tally = Tally()
    chunk = {"bad": [("a", "truncated")], "converted": [("b", "cmyk"), ("b", "animated")]}
    for _ in range(3):
        tally.add(4, [chunk, {"bad": [("c", "truncated")], "converted": []}])
    source = SimpleNamespace(
        skipped={"truncated": ["x"], "empty_caption": ["y", "z"]},
        licences=[Licence(name="set", licence="MIT", source="here")],
        __len__=None,
    )
    source = type("Source", (), {**vars(source), "__len__": lambda self: 10})()
    assert tally.seen == 12
    assert tally.account(source) == {
        "used": 8,
        "skipped": {"empty_caption": 2, "truncated": 3},
        "converted": {"animated": 1, "cmyk": 1},
        "licences": [{"name": "set", "licence": "MIT", "source": "here"}],
    }


def test_processes_share_what_is_new_and_nothing_twice():
    told = []

    def gather(news):
        told.append(news)
        return [news, Found({"b": "too_large"}, {"c": ["cmyk"]})]

    one = Tally()
    for _ in range(2):
        one.add(1, [{"bad": [("a", "truncated")], "converted": [("d", "cmyk")]}])
        one.share(gather)
    one.add(1, [{"bad": [("b", "too_large"), ("e", "empty_file")], "converted": [("c", "cmyk")]}])
    one.share(gather)
    assert told == [Found({"a": "truncated"}, {"d": ["cmyk"]}), Found(), Found({"e": "empty_file"})]
    assert one.bad == {"a": "truncated", "b": "too_large", "e": "empty_file"}
    assert one.converted == {"d": ["cmyk"], "c": ["cmyk"]}
    assert Tally(**asdict(one)) == one
