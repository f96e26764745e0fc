"""The schedule against a naive loop."""

import math

import pytest

from vlalign.train.schedules.cosine import Cosine


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("floor", [0.0, 0.1])
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_multiples(steps, warmup, floor):
    multiple = Cosine(warmup=warmup, floor=floor).build(steps)
    rising = round(warmup * steps)
    for step in range(1, steps + 1):
        if step <= rising:
            wanted = step / rising
        else:
            angle = math.pi * (step - rising - 1) / (steps - rising)
            wanted = floor + (1 - floor) * (1 + math.cos(angle)) / 2
        assert multiple(step) == pytest.approx(wanted) and 0 < multiple(step) <= 1
    assert max(multiple(step) for step in range(1, steps + 1)) == 1


def test_values_out_of_range_are_refused():
    with pytest.raises(ValueError, match="warmup is a fraction"):
        Cosine(warmup=1.0)
    with pytest.raises(ValueError, match="floor must be"):
        Cosine(floor=1.5)
