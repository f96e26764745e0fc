from collections import Counter

import pytest
import torch

from tests.unit.data.test_loader import Colours, flat, load
from vlalign.data.chunks import TextFeatures


class Told(Colours):
    """Row i has from one to five captions."""

    def captions(self, index):
        return tuple(f"{index} {place}" for place in range(1 + index % 5))


@pytest.mark.parametrize("cached", [False, True])
def test_several_texts_of_a_row_are_its_first_caption_and_some_of_the_others(cached):
    own = {"texts": 3}
    if cached:
        counts = [len(Told().captions(index)) for index in range(50)]
        flatly = [100 * index + place for index, count in enumerate(counts) for place in range(count)]
        own["text_features"] = TextFeatures(
            torch.tensor(flatly).float()[:, None], torch.tensor([0, *counts]).cumsum(0)
        )
    steps, seen = load(Told(), steps=40, workers=2, **own), Counter()
    for chunk in (chunk for step in steps for chunk in step):
        known, texts = chunk["key_fields"]["known_texts"], chunk["key"]
        if cached:
            said = [divmod(int(each), 100) for each in texts["features"][:, 0]]
        else:
            said = [bytes(ids).rstrip(b"\0").decode().split() for ids in texts["input_ids"].tolist()]
        assert len(said) == 3 * len(chunk["ids"]) and known.dtype == torch.bool
        for at, name in enumerate(chunk["ids"]):
            row, own_texts = int(name[3:]), [tuple(map(int, each)) for each in said[3 * at : 3 * at + 3]]
            there = min(2, row % 5)
            assert own_texts[0] == (row, 0) and known[at].tolist() == [place < there for place in range(2)]
            assert own_texts[1 + there :] == [(row, 0)] * (2 - there)
            others = [place for own_row, place in own_texts[1 : 1 + there] if own_row == row]
            assert len(set(others)) == there and 0 not in others
            seen.update((row, place) for place in others)
    assert {(row, place) for row in range(50) for place in range(1, 1 + row % 5)} == set(seen)
    again = load(Told(), steps=40, start_step=30, **own)
    assert flat(again) == flat(steps)[30:]
