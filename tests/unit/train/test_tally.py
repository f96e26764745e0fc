"""Counts of rows."""

from types import SimpleNamespace

from vlalign.train.tally import Tally
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


def test_processes_share_what_they_found():
    one, two = Tally(bad={"a": "truncated"}), Tally(bad={"b": "too_large"}, converted={"c": ["cmyk"]})
    both = [(one.bad, one.converted), (two.bad, two.converted)]
    for tally in (one, two):
        tally.share(lambda value: both)
    assert (
        dict(sorted(one.bad.items())) == dict(sorted(two.bad.items())) == {"a": "truncated", "b": "too_large"}
    )
    assert one.converted == two.converted == {"c": ["cmyk"]}
