import pickle
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

from tests.unit.data.json_lines import lines
from tests.unit.data.test_loader import flat, ids
from vlalign.data.candidate_rows import CandidateRows
from vlalign.data.candidates import Candidates, drawn
from vlalign.data.hashing import hash63
from vlalign.data.loader import loader
from vlalign.data.sampler import Order
from vlalign.data.samplers.random import Random
from vlalign.types import BadRow, DataError

ROWS, BATCH = 26, 8


class Words:
    """Reads a pair as its place in the file, which its text is. Texts in `bad` cannot be read."""

    def __init__(self, bad=()):
        self.bad = bad

    def read(self, query, candidates):
        if query.text in self.bad:
            raise BadRow("too_long", f"{query.text} is too long")
        return [(int(query.text), int(each.text)) for each in candidates]

    def join(self, read):
        return {"seen": torch.tensor([pair for row in read for pair in row])}


def counts(row):
    """How many candidates of a row are right and wrong; every fifth has none that is right."""
    return (0 if row % 5 == 0 else 1 + row % 3, 1 + row % 4)


def told(row):
    right, wrong = counts(row)
    labels = [1 + place for place in range(right)] + [0] * wrong
    labels = labels[row % len(labels) :] + labels[: row % len(labels)]  # right ones stand anywhere
    return {
        "id": f"q{row}",
        "query": str(row),
        "candidates": [
            {"text": str(100 * row + place), "label": label, "score": row + place / 16}
            for place, label in enumerate(labels)
        ],
    }


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return lines(tmp_path_factory.mktemp("rows") / "a.jsonl", *map(told, range(ROWS)))


def chunks(path, positives=1, negatives=2, seed=3, bad=(), **more):
    source = CandidateRows(path, "not stated", positives, negatives)
    order = Order(sampler=Random(), rows=len(source), batch=BATCH, seed=seed)
    return Candidates(source=source, order=order, process=Words(bad), **more)


def load(path, steps=4, chunk=3, workers=0, rank=0, world=1, start_step=0, **fields):
    how = {"steps": steps, "chunk": chunk, "workers": workers, "rank": rank, "world": world}
    return list(loader(chunks(path, **fields), start_step=start_step, **how))


def pairs(steps):
    """Query, candidate, label and score of every pair, by query, in order."""
    found = defaultdict(list)
    for batch in (chunk for step in steps for chunk in step):
        fields = batch["key_fields"]
        each = zip(
            batch["group"].tolist(),
            batch["pairs"]["seen"].tolist(),
            fields["label"].tolist(),
            fields["score"].tolist(),
            strict=True,
        )
        for group, (query, candidate), label, score in each:
            assert batch["ids"][group] == f"q{query}"
            found[query].append((candidate, label, score))
    return found


def test_pairs_groups_and_fields_line_up(path):
    steps = load(path)
    found = pairs(steps)
    assert sorted(found) == list(range(ROWS)) and len(steps) == 4
    for query, own in found.items():
        for candidate, label, score in own:
            place = candidate - 100 * query
            assert told(query)["candidates"][place]["label"] == label and score == query + place / 16
        assert len({candidate for candidate, _, _ in own}) == len(own)
    for batch in (chunk for step in steps for chunk in step):
        rows = len(batch["ids"])
        assert set(batch["key_fields"]) == {"label", "score"} and set(batch["query_fields"]) == {"row"}
        assert all(field.dtype == torch.float32 for field in batch["key_fields"].values())
        assert batch["query_fields"]["row"].tolist() == [hash63(name) for name in batch["ids"]]
        assert batch["group"].unique(return_counts=True)[0].tolist() == list(range(rows))
        assert batch["group"].tolist() == sorted(batch["group"].tolist())


def test_no_place_among_the_drawn_tells_who_is_right(path):
    draws = [chunks(path, positives=1, negatives=1).draw(1, epoch)["numbers"]["label"] for epoch in range(64)]
    assert 16 < sum(own[0] > 0 for own in draws) < 48


@pytest.mark.parametrize("positives", [0, 1, 2, None])
@pytest.mark.parametrize("negatives", [0, 1, 3, None])
def test_so_many_of_each_are_drawn(path, positives, negatives):
    if (positives, negatives) == (0, 0):
        return
    found = pairs(load(path, positives=positives, negatives=negatives))
    for query in range(ROWS):
        labels = [label for _, label, _ in found[query]]
        asked = ((positives, sum(label > 0 for label in labels)), (negatives, labels.count(0)))
        for (most, count), there in zip(asked, counts(query), strict=True):
            assert count == (there if most is None else min(most, there))


def test_rows_without_a_positive_are_kept(path):
    found = pairs(load(path))
    for query in range(0, ROWS, 5):
        assert found[query] and all(label == 0 for _, label, _ in found[query])


def test_a_draw_depends_on_seed_epoch_and_row_alone(path):
    def draws(epoch, **fields):
        made = chunks(path, **fields)
        return {row: made.draw(row, epoch)["read"] for row in range(ROWS)}

    backwards = chunks(path)
    again = {row: backwards.draw(row, 1)["read"] for row in reversed(range(ROWS))}
    assert again == draws(1) != draws(0) and draws(0) != draws(0, seed=4)
    epochs = [pairs(load(path, steps=4 * (epoch + 1), start_step=4 * epoch)) for epoch in range(2)]
    for epoch in range(2):
        expected = {row: [candidate for _, candidate in read] for row, read in draws(epoch).items()}
        assert {row: [each[0] for each in own] for row, own in epochs[epoch].items()} == expected


def test_every_candidate_is_drawn_about_as_often(path):
    made = chunks(path, positives=1, negatives=1)
    seen = Counter(pair for epoch in range(400) for pair in made.draw(11, epoch)["read"])
    right, wrong = counts(11)
    assert len(seen) == right + wrong
    for place, each in enumerate(told(11)["candidates"]):
        share = 1 / (right if each["label"] else wrong)
        assert abs(seen[11, 1100 + place] / 400 - share) < 0.1


def test_none_is_drawn_twice():
    random = np.random.default_rng(0)
    labels = [0, 2, 0, 0, 1, 0, -1]
    assert sorted(drawn(labels, None, None, random)) == list(range(7)) and drawn([], 1, 1, random) == []
    for _ in range(50):
        found = drawn(labels, 1, 3, random)
        assert len({*found}) == len(found) and sum(labels[at] > 0 for at in found) == 1 and len(found) == 4


@pytest.mark.parametrize("bad", [(), ("3", "4", "17")])
def test_two_workers_and_none_give_the_same_batches(path, bad):
    assert flat(load(path, bad=bad, steps=7)) == flat(load(path, bad=bad, steps=7, workers=2))


def test_resuming_gives_the_rest_and_ranks_share_a_step(path):
    whole = load(path, steps=7)
    assert flat(load(path, steps=7, start_step=5)) == flat(whole)[5:]
    ranks = [load(path, steps=7, rank=rank, world=2) for rank in range(2)]
    assert [sum(step, []) for step in zip(*map(ids, ranks), strict=True)] == ids(whole)
    assert {**pairs(ranks[0][:4]), **pairs(ranks[1][:4])} == pairs(whole[:4])


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_that_a_model_cannot_read_are_told(path, workers):
    steps = load(path, bad=("3", "4"), workers=workers)
    assert sorted(row for step in steps for chunk in step for row in chunk["bad"]) == [
        ("q3", "too_long"), ("q4", "too_long"),
    ]  # fmt: skip
    assert not {3, 4} & set(pairs(steps))
    with pytest.raises(DataError, match=r"row 'q[34]' is bad: too_long: [34] is too long; on_error: skip"):
        load(path, bad=("3", "4"), workers=workers, on_error="raise")


def test_a_number_that_some_rows_lack_is_no_field(tmp_path):
    rows = [told(row) for row in range(8)]
    for each in rows[5]["candidates"]:
        each.pop("score")
    (step,) = load(lines(tmp_path / "a.jsonl", *rows), steps=1, chunk=None)
    assert set(step[0]["key_fields"]) == {"label"}


def test_what_a_worker_is_given_crosses_processes(path):
    made = chunks(path)
    copy = pickle.loads(pickle.dumps(made))
    assert [copy.draw(row, 0) for row in range(ROWS)] == [made.draw(row, 0) for row in range(ROWS)]
