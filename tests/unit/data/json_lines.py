"""Files of JSON objects, and what else might stand where a value of them is expected."""

import json

from hypothesis import strategies as st

from vlalign.types import Item

ODD = [
    None,
    True,
    0,
    -1,
    10**400,
    0.5,
    float("nan"),
    float("inf"),
    "",
    " ",
    "1",
    "\ud800",
    "é🦙\0",
    "<image>",
]
ODD += [[], {}, [None], [[]], ["", "a"], ["a", 1], [{}], [{"role": "user", "content": 1}], {"text": 5}]
odd = st.recursive(st.sampled_from(ODD) | st.text() | st.floats(), lambda inner: st.lists(inner, max_size=3))
# Lines that are no object of any format.
DAMAGED = [b"", b"no", b"[1, 2]", b"null", b'{"query": "caf\xe9"}', b'{"query": "a"', b"[" * 100_000, b"{}"]
DAMAGED += [b'{"a": ' + b"9" * 5000 + b"}", b"\xff\xfe", b'"', b"{" * 5000]


def lines(path, *rows):
    """The file, a row a line; bytes are written as they are."""
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows))
    return path


@st.composite
def spoiled(draw, good):
    """A good object of which some values are replaced or taken away."""
    row = dict(good)
    for key in draw(st.lists(st.sampled_from(sorted(good)), min_size=1, max_size=3)):
        if draw(st.booleans()):
            row.pop(key, None)
        else:
            row[key] = draw(odd)
    return row


def check_row(row):
    """A row is as every source of candidates promises it."""
    assert set(row) - {"lost"} == {"id", "query", "candidates", "candidate_ids", "numbers"}
    count = len(row["candidates"])
    assert count > 0 and len(set(row["candidate_ids"])) == len(row["candidate_ids"]) == count
    assert "label" in row["numbers"]
    for values in row["numbers"].values():
        assert len(values) == count and all(isinstance(x, float) and abs(x) < float("inf") for x in values)
    for item in (row["query"], *row["candidates"]):
        assert isinstance(item, Item) and (item.text.strip() or item.images)
        item.text.encode()
    assert all(isinstance(name, str) and name for name in (row["id"], *row["candidate_ids"]))


def survives(rows, told):
    """Every line is a good row or is counted; nothing else is raised."""
    skipped = sum(map(len, rows.skipped.values()))
    assert len(rows) + skipped == told, rows.skipped
    for index in range(len(rows)):
        check_row(rows[index])
        assert rows.fields(index)["id"] == rows[index]["id"]
        assert rows.captions(index) == (rows[index]["query"].text,)
