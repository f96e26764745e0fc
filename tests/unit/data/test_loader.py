import multiprocessing
import os
import pickle
import signal
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image

from vlalign.data.calibration import VirtualFeatures
from vlalign.data.chunks import Pairs, TextFeatures
from vlalign.data.hashing import hash63
from vlalign.data.loader import loader
from vlalign.data.sampler import Order
from vlalign.data.samplers.clustered import Clustered
from vlalign.data.samplers.random import Random
from vlalign.recipe.schemas import Augment, Calibrate
from vlalign.types import BadRow, DataError, Licence


@dataclass
class Colours:
    """Row i is a picture of grey level i, with three captions; rows in `bad` cannot be read."""

    rows: int = 50
    bad: dict = field(default_factory=dict)
    skipped: dict = field(default_factory=dict)
    licences: tuple = (Licence(name="x", licence="x", source="x"),)

    def __len__(self):
        return self.rows

    def captions(self, index):
        return tuple(f"{index} {word}" for word in ("one", "TWO", "three"))

    def fields(self, index):
        return {"id": f"row{index}", "concept": f"c{index % 5}"}

    def __getitem__(self, index):
        if index in self.bad:
            raise BadRow(self.bad[index])
        pixels = np.random.default_rng(index).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        marks = ("cmyk",) if index % 10 == 0 else ()
        return {
            **self.fields(index),
            "captions": self.captions(index),
            "image": Image.fromarray(pixels),
            "conversions": marks,
        }


def image_process(images):
    return {"pixels": torch.stack([torch.tensor(np.array(image.resize((4, 4)))) for image in images]).float()}


def text_process(texts):
    lists = [list(text.encode()) for text in texts]
    width = max(map(len, lists))
    return {"input_ids": torch.tensor([ids + [0] * (width - len(ids)) for ids in lists])}


def order(source, batch=16, seed=3, **fields):
    return Order(**{"sampler": Random(), "rows": len(source), "batch": batch, "seed": seed} | fields)


def load(source=None, batch=16, **options):
    source = source or Colours()
    defaults = {"order": order(source, batch), "steps": 9, "chunk": 6}
    defaults["augment"] = Augment(scale=(0.4, 1), flip=True)
    told = defaults | options
    own = {name: told.pop(name) for name in list(told) if name in Pairs.__dataclass_fields__}
    return list(loader(pairs(source, **own), **told))


def pairs(source, **options):
    return Pairs(source=source, image_process=image_process, text_process=text_process, **options)


def flat(value):
    if isinstance(value, torch.Tensor):
        return (value.dtype, value.shape, value.numpy().tobytes())
    if isinstance(value, dict):
        return {key: flat(item) for key, item in value.items()}
    return [flat(item) for item in value] if isinstance(value, list) else value


def ids(steps):
    return [[name for chunk in step for name in chunk["ids"]] for step in steps]


BAD = {3: "truncated", 4: "empty_file", 17: "truncated"}


@pytest.mark.parametrize("bad", [{}, BAD])
def test_two_workers_and_none_give_the_same_batches(bad):
    assert flat(load(Colours(bad=bad))) == flat(load(Colours(bad=bad), workers=2))


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_gives_the_rest(workers):
    whole = flat(load())
    for start in (0, 1, 5, 8, 9):
        assert flat(load(start_step=start, workers=workers)) == whole[start:]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_union_over_ranks_is_one_rank_in_order(world):
    parts = [ids(load(rank=rank, world=world)) for rank in range(world)]
    assert [sum(step, []) for step in zip(*parts, strict=True)] == ids(load())


def test_every_row_is_seen_once_an_epoch():
    steps = ids(load(steps=8))
    for epoch in (steps[:4], steps[4:]):
        assert sorted(sum(epoch, [])) == sorted(f"row{index}" for index in range(50))
    assert [len(step) for step in steps] == [16, 16, 9, 9] * 2
    assert steps[:4] != steps[4:]


def test_chunks_are_even_and_within_the_size_that_was_asked_for():
    assert [[len(chunk["ids"]) for chunk in step] for step in load(steps=3)] == [[5, 5, 6], [5, 5, 6], [4, 5]]
    assert [len(step) for step in load(steps=3, chunk=None)] == [1, 1, 1]


def test_a_batch_holds_what_its_rows_say():
    (chunk,) = load(steps=1, chunk=None, augment=None)[0]
    rows = [int(name[3:]) for name in chunk["ids"]]
    for place, index in enumerate(rows):
        assert torch.equal(
            chunk["query"]["pixels"][place], image_process([Colours()[index]["image"]])["pixels"][0]
        )
        text = bytes(chunk["key"]["input_ids"][place].tolist()).rstrip(b"\0").decode()
        assert text in Colours().captions(index)
        assert chunk["query_fields"]["caption"][place] == hash63(text.casefold())
        assert chunk["query_fields"]["row"][place] == hash63(f"row{index}")
        assert chunk["key_fields"]["concept"][place] == hash63(f"c{index % 5}")
    assert set(chunk["query_fields"]) == set(chunk["key_fields"]) == {"row", "caption", "concept"}
    assert all(tensor.dtype == torch.int64 for tensor in chunk["query_fields"].values())
    assert chunk["converted"] == [(f"row{index}", "cmyk") for index in rows if index % 10 == 0]


def test_captions_are_drawn_anew_each_epoch():
    drawn = Counter()
    for step in load(steps=4 * 60):
        for chunk in step:
            drawn.update(bytes(row).rstrip(b"\0").decode() for row in chunk["key"]["input_ids"].tolist())
    assert all(8 <= drawn[caption] <= 35 for index in range(50) for caption in Colours().captions(index))


def test_bad_rows_are_told_and_no_good_one_is_lost():
    steps = load(Colours(bad=BAD), steps=4)
    told = {row for step in steps for chunk in step for row in chunk["bad"]}
    assert told == {(f"row{index}", reason) for index, reason in BAD.items()}
    assert sorted(sum(ids(steps), [])) == sorted(f"row{index}" for index in range(50) if index not in BAD)


def test_a_step_of_bad_rows_alone_is_stood_in_for():
    bad = {index: "truncated" for index in range(50) if index not in (7, 8)}
    steps = load(Colours(bad=bad), steps=4, workers=2)
    assert all(len(step) >= 1 and all(chunk["ids"] for chunk in step) for step in steps)
    assert {name for name in sum(ids(steps), [])} == {"row7", "row8"}
    told = [row for step in steps for chunk in step for row in chunk["bad"]]
    assert sorted(told) == sorted((f"row{index}", "truncated") for index in bad)
    with pytest.raises(DataError, match="none of the 50 rows can be used"):
        load(Colours(bad=dict.fromkeys(range(50), "truncated")))


@pytest.mark.parametrize(
    ("rows", "batch", "chunk", "world"), [(50, 16, 4, 2), (29, 12, 1, 3), (43, 20, 3, 4)]
)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_ranks_have_as_many_chunks_each_step_and_learn_every_good_row(rows, batch, chunk, world, share):
    bad = {index: "truncated" for index in range(rows) if index < share * rows}
    steps = order(Colours(rows=rows), batch).steps
    options = {"batch": batch, "chunk": chunk, "world": world, "steps": steps}
    ranks = [load(Colours(rows=rows, bad=bad), rank=rank, **options) for rank in range(world)]
    for parts in zip(*ranks, strict=True):
        assert len({len(step) for step in parts}) == 1
        assert all(chunk["ids"] for step in parts for chunk in step)
    chunks = [chunk for steps in ranks for step in steps for chunk in step]
    assert sorted(row for chunk in chunks for row in chunk["bad"]) == sorted(
        (f"row{index}", reason) for index, reason in bad.items()
    )
    seen = Counter(row for chunk in chunks for row in chunk["ids"])
    assert set(seen) == {f"row{index}" for index in range(rows) if index not in bad}
    if not bad:
        assert set(seen.values()) == {1}


def test_a_stand_in_is_another_row_each_time_and_is_not_counted_as_converted():
    places = order(Colours(rows=64)).epoch(0)
    bad = {int(index): "truncated" for index in places[:11]}  # two chunks and one row of the third
    (step,) = load(Colours(rows=64, bad=bad), steps=1, batch=32, world=2)
    assert [len(chunk["ids"]) for chunk in step] == [5, 1, 1]
    assert [chunk["ids"] for chunk in step[1:]] == [[f"row{index}"] for index in places[16:18]]
    assert [len(chunk["bad"]) for chunk in step] == [11, 0, 0]
    assert step[1]["converted"] == step[2]["converted"] == []
    (alone,) = load(
        Colours(rows=64, bad=bad), steps=1
    )  # no other rank waits, so that chunks change no number
    assert ids([alone]) == [[f"row{index}" for index in places[11:16]]]


@pytest.mark.parametrize("workers", [0, 2])
def test_on_error_raise_names_the_row(workers):
    with pytest.raises(DataError, match=r"^row 'row\d+' is bad: (truncated|empty_file)") as caught:
        load(Colours(bad=BAD), on_error="raise", workers=workers)
    assert "Traceback" not in str(caught.value)
    with pytest.raises(DataError, match="row 'x' is bad: not_json"):
        load(Colours(skipped={"not_json": ["x"]}), on_error="raise")
    assert len(load(Colours(skipped={"not_json": ["x"]}))) == 9


class Lost(Colours):
    """Some rows of which nothing can be read any more, the id included."""

    def fields(self, index):
        if index in self.bad:
            raise BadRow(self.bad[index])
        return super().fields(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_row_whose_id_is_lost_is_told_by_its_number(workers):
    steps = load(Lost(bad={3: "missing_shard"}), steps=4, workers=workers)
    assert [row for step in steps for chunk in step for row in chunk["bad"]] == [("row 3", "missing_shard")]
    with pytest.raises(DataError, match="row 'row 3' is bad: missing_shard"):
        load(Lost(bad={3: "missing_shard"}), steps=4, workers=workers, on_error="raise")


def test_the_death_of_a_worker_is_told_where_a_batch_is_waited_for_and_nowhere_else():
    others = set(multiprocessing.active_children())
    steps = loader(pairs(Colours(), order=order(Colours())), steps=200, workers=2)
    next(steps)
    victim = (set(multiprocessing.active_children()) - others).pop()
    os.kill(victim.pid, signal.SIGKILL)
    for _ in range(300):  # torch's own handler would raise in here
        time.sleep(0.001)
    with pytest.raises(DataError, match=rf"data.workers: .*pid {victim.pid}\) is killed by signal: Killed"):
        for _ in steps:
            pass


def test_too_few_rows_for_the_ranks_is_told():
    with pytest.raises(DataError, match=r"batches of 2 rows \(of 2\) cannot be shared by 3 ranks"):
        load(Colours(rows=2), world=3)


def test_cached_features_take_the_place_of_towers_and_nothing_is_decoded():
    source = Colours(bad=dict.fromkeys(range(50), "truncated"))  # decoding any row would show
    images = torch.arange(50).float()[:, None].repeat(1, 4)
    texts = TextFeatures(torch.arange(150).float()[:, None].repeat(1, 2).half(), torch.arange(0, 151, 3))
    steps = load(source, image_features=images, text_features=texts, known_bad={5: "truncated"}, workers=2)
    plain = load(Colours(bad={5: "truncated"}))
    for step, other in zip(steps, plain, strict=True):
        for chunk, usual in zip(step, other, strict=True):
            assert chunk["ids"] == usual["ids"] and chunk["bad"] == usual["bad"]
            assert torch.equal(chunk["query_fields"]["caption"], usual["query_fields"]["caption"])
            rows = torch.tensor([int(name[3:]) for name in chunk["ids"]])
            assert torch.equal(chunk["query"]["features"][:, 0], rows.float())
            caption = chunk["key"]["features"][:, 0].long()
            assert chunk["key"]["features"].dtype == torch.float32 and torch.equal(caption // 3, rows)
            numbers = [Colours().captions(int(one) // 3)[int(one) % 3] for one in caption]
            assert chunk["query_fields"]["caption"].tolist() == [hash63(text.casefold()) for text in numbers]


@pytest.fixture(scope="module")
def rare():
    """Features of the rows, one of them bad, and of what virtual ones are drawn; rows from 40 on are rare."""
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 4))).float()
    labels = torch.arange(50) // 20 * (torch.arange(50) < 40) + torch.arange(50) * (torch.arange(50) >= 40)
    virtual = VirtualFeatures.fit(features, labels, {5: "truncated"}, Calibrate(field="label", head=10))
    return {"image_features": features, "known_bad": {5: "truncated"}, "virtual": virtual}


def features(chunk):
    return chunk["query"]["features"].tolist()


def test_some_rare_rows_become_virtual_anew_each_epoch_and_nothing_else_changes(rare):
    steps, plain = load(**rare), load(**rare | {"virtual": None})
    seen = Counter()
    for step, other in zip(steps, plain, strict=True):
        for chunk, usual in zip(step, other, strict=True):
            same = (chunk["query"]["features"] == usual["query"]["features"]).all(1)
            seen.update(zip(chunk["ids"], same.tolist(), strict=True))
            for name in ("ids", "key", "query_fields", "bad"):
                assert flat(chunk[name]) == flat(usual[name])
    virtual = [int(name[3:]) for name, same in seen if not same]
    assert len(virtual) >= 4 and min(virtual) >= 40
    epochs = [
        {row: x for chunk in sum(part, []) for row, x in zip(chunk["ids"], features(chunk), strict=True)}
        for part in (steps[:4], steps[4:8])
    ]
    assert any(epochs[0][f"row{row}"] != epochs[1][f"row{row}"] for row in virtual)


def test_virtual_rows_are_the_same_on_all_ranks_with_any_workers_and_after_a_resume(rare):
    whole = load(**rare)
    assert flat(load(**rare, workers=2)) == flat(whole)
    assert flat(load(**rare, start_step=5)) == flat(whole)[5:]
    ranks = [load(**rare, rank=rank, world=2) for rank in range(2)]
    for step, *parts in zip(whole, *ranks, strict=True):
        assert sum(map(features, step), []) == sum(map(features, sum(parts, [])), [])


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load(steps=2, workers=2)
    load(steps=2)
    assert torch.equal(torch.rand(3), expected)


def test_a_batch_crosses_processes():
    assert flat(pickle.loads(pickle.dumps(load(steps=1)))) == flat(load(steps=1))


def test_annotations_are_fields_of_both_sides_beside_those_of_the_source():
    known = {"cluster": torch.arange(50) % 3, "vector": torch.arange(100.0).reshape(50, 2)}
    steps = load(annotations=known, workers=2)
    for chunk in (chunk for step in steps for chunk in step):
        rows = torch.tensor([int(name[3:]) for name in chunk["ids"]])
        for side in ("query_fields", "key_fields"):
            assert set(chunk[side]) == {"row", "caption", "concept", "cluster", "vector"}
            for name, values in known.items():
                torch.testing.assert_close(chunk[side][name], values[rows], rtol=0, atol=0)
    assert ids(steps) == ids(load())


@pytest.mark.parametrize(("mode", "batch", "clusters"), [("exclusive", 5, 5), ("inclusive", 10, 1)])
def test_clustered_batches_are_those_of_all_ranks_however_often_resumed(mode, batch, clusters):
    how = order(Colours(), batch, sampler=Clustered(by="concept", mode=mode), labels=np.arange(50) % 5)
    whole = load(order=how, chunk=3, steps=2 * how.steps)
    assert [len(step) for step in ids(whole)] == [batch] * 2 * how.steps
    for step in ids(whole):
        assert len({int(name[3:]) % 5 for name in step}) == clusters
    epochs = [sum(ids(whole)[: how.steps], []), sum(ids(whole)[how.steps :], [])]
    assert (
        set(epochs[0]) == set(epochs[1]) == {f"row{index}" for index in range(50)} and epochs[0] != epochs[1]
    )
    ranks = [
        load(order=how, chunk=3, steps=2 * how.steps, rank=rank, world=2, workers=2) for rank in range(2)
    ]
    assert [sum(step, []) for step in zip(*map(ids, ranks), strict=True)] == ids(whole)
    assert flat(load(order=how, chunk=3, steps=2 * how.steps, start_step=7)) == flat(whole)[7:]


def test_stand_ins_come_from_the_rows_of_the_epoch():
    labels = np.array([0] * 47 + [1, 2, 2])  # 0 has two whole batches, rows 47 to 49 are never learned from
    how = order(Colours(), 20, sampler=Clustered(by="x", mode="inclusive"), labels=labels)
    bad = {index: "truncated" for index in range(37)}  # of the other 10 at least 3 are in every epoch
    steps = load(Colours(bad=bad), order=how, steps=40, world=2, rank=1)
    assert {name for step in ids(steps) for name in step} == {f"row{index}" for index in range(37, 47)}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_a_tower_does_not_take_costs_its_own_row_alone(workers):
    def choosy(images):
        if any(image.getpixel((0, 0)) == lost for image in images):
            raise BadRow("picture", "it takes no such picture")
        return image_process(images)

    lost, source = Colours()[7]["image"].getpixel((0, 0)), Colours()
    told = {"order": order(source), "augment": None}
    chunks = replace(pairs(source, **told), image_process=choosy)
    steps = list(loader(chunks, steps=6, chunk=6, workers=workers))
    assert ids(steps) == [[name for name in step if name != "row7"] for step in ids(load(**told, steps=6))]
    assert {row for step in steps for chunk in step for row in chunk["bad"]} == {("row7", "picture")}
    with pytest.raises(DataError, match="row 'row7' is bad: picture: it takes no such picture"):
        list(loader(replace(chunks, on_error="raise"), steps=6, chunk=6, workers=workers))


def test_a_teacher_is_given_the_whole_picture_beside_the_changed_one():
    strong = {"scale": (0.4, 1), "flip": True}
    plain, beside = load(augment=Augment(**strong)), load(augment=Augment(**strong, teacher="whole"))
    wholes = load(augment=None)
    for own, both, whole in zip(*map(chain.from_iterable, (plain, beside, wholes)), strict=True):
        assert torch.equal(both["teacher"]["pixels"], whole["query"]["pixels"])
        assert not torch.equal(both["teacher"]["pixels"], both["query"]["pixels"])
        assert flat({name: x for name, x in both.items() if name != "teacher"}) == flat(own)
