import pickle

import numpy as np
import pytest
import torch

from tests.multimodal_models import multimodal_model
from tests.unit.data.test_loader import Colours, flat, ids, order
from vlalign.data.captions import Captions
from vlalign.data.loader import loader
from vlalign.registry import MODELS
from vlalign.types import BadRow, DataError, Item


class Reader:
    """Reads a picture as its first number, and a caption as its words; rows in `long` do not fit."""

    def __init__(self, long=()):
        self.long = long

    def read(self, query, candidates):
        ((image,), (caption,)) = query.images, candidates
        if caption.text.split()[0] in self.long:
            raise BadRow("too_long", f"{caption.text} is too long")
        return [(int(np.asarray(image)[0, 0, 0]), caption.text)]

    def join(self, read):
        told = [each for (each,) in read]
        labels = [place for _, text in told for place in range(len(text))]
        return {"pixel": torch.tensor([pixel for pixel, _ in told]), "labels": torch.tensor(labels)}


def made(source=None, long=(), **fields):
    source = source or Colours()
    return Captions(source=source, order=order(source), process=Reader(long), **fields)


def load(source=None, long=(), steps=4, chunk=6, on_error="skip", **how):
    return list(loader(made(source, long, on_error=on_error), steps=steps, chunk=chunk, **how))


def test_each_row_comes_with_one_of_its_captions():
    chunks = made()
    for index in range(50):
        row = chunks.draw(index, 0)
        [(pixel, caption)] = row["read"]
        assert row["id"] == f"row{index}" and caption in Colours().captions(index)
        assert pixel == int(np.asarray(Colours()[index]["image"])[0, 0, 0])
    drawn = {chunks.draw(7, epoch)["read"][0][1] for epoch in range(30)}
    assert drawn == set(Colours().captions(7))


def test_a_draw_depends_on_seed_epoch_and_row_alone():
    one, other = made(), made()
    forth = [one.draw(index, 3)["read"] for index in range(50)]
    assert [other.draw(index, 3)["read"] for index in reversed(range(50))] == forth[::-1]
    assert [one.draw(index, 4)["read"] for index in range(50)] != forth


def test_a_chunk_holds_inputs_labels_and_what_was_converted():
    steps = load()
    for batch in (chunk for step in steps for chunk in step):
        assert set(batch) == {"pairs", "ids", "bad", "converted"} and not batch["bad"]
        assert len(batch["pairs"]["pixel"]) == len(batch["ids"])
        rows = [int(name.removeprefix("row")) for name in batch["ids"]]
        assert batch["converted"] == [(f"row{row}", "cmyk") for row in rows if row % 10 == 0]
    assert sorted(sum((chunk["ids"] for step in steps for chunk in step), [])) == sorted(
        f"row{row}" for row in range(50)
    )


def test_two_workers_resuming_and_ranks_give_the_same():
    whole = load(steps=7)
    assert flat(load(steps=7, workers=2)) == flat(whole)
    assert flat(load(steps=7, start_step=5)) == flat(whole)[5:]
    ranks = [load(steps=7, rank=rank, world=2) for rank in range(2)]
    assert [sum(step, []) for step in zip(*map(ids, ranks), strict=True)] == ids(whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_that_cannot_be_read_are_told(workers):
    source = Colours(bad={5: "truncated"})
    steps = load(source, long=("3",), workers=workers)
    told = sorted(row for step in steps for chunk in step for row in chunk["bad"])
    assert told == [("row3", "too_long"), ("row5", "truncated")]
    with pytest.raises(DataError, match="row 'row[35]' is bad"):
        load(source, long=("3",), workers=workers, on_error="raise")


def test_a_captioner_reads_it_in_a_worker(tmp_path):
    told = {"name": "captioner", "id": str(multimodal_model(tmp_path / "vl", "llava")), "length": 100}
    process, source = MODELS.decode(told).build().process, Colours(12)
    chunks = Captions(source=source, order=order(source, batch=4), process=process)
    batches = list(loader(chunks, steps=3, chunk=4, workers=1))
    own = pickle.loads(pickle.dumps(process)).tokenizer
    for (batch,) in batches:
        said = own.decode(batch["pairs"]["labels"]).removesuffix("<|im_end|>").split("<|im_end|>")
        for name, caption in zip(batch["ids"], said, strict=True):
            assert caption in source.captions(int(name.removeprefix("row")))
        assert batch["pairs"]["pixel_values"].shape == (4, 3, 32, 32)


def test_nothing_is_decoded_for_who_is_blind():
    class Blind(Reader):
        blind = True

        def read(self, query, candidates):
            assert query == Item()
            return super().read(Item(images=(np.zeros((1, 1, 3)),)), candidates)

    class Gone(Colours):
        def __getitem__(self, index):
            raise AssertionError("decoded")

    chunks, source = Captions(source=Gone(), order=order(Gone()), process=Blind()), made()
    for index in range(50):
        row, seen = chunks.draw(index, 3), source.draw(index, 3)
        assert row["id"] == seen["id"] and row["read"][0][1] == seen["read"][0][1]
