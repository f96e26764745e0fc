"""Gradients on two processes, over chunks, with whatever makes them differ elsewhere."""

import pytest
from torch import Tensor

from tests.traps.cases import CASES, OBJECTIVES, Results
from tests.traps.two_processes import epoch
from vlalign.evals.report.log import read_lines
from vlalign.train.loop import train

pytestmark = pytest.mark.slow
NUMBERS = {"loss", "norm", "own", "rows"}


def close(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    """Every gradient of one, and of nothing else; they must not all be nothing."""
    assert found.keys() == wanted.keys()
    for name in wanted.keys() - NUMBERS:
        worst = float((found[name] - wanted[name]).abs().max())
        assert worst <= tolerance * max(1.0, float(wanted[name].abs().max())), (name, worst)
    assert max(float(wanted[name].abs().max()) for name in wanted.keys() - NUMBERS) > 0.01


@pytest.mark.parametrize("mode", ["direct", "cached"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_01_gathered_gradients(one: Results, two: list[Results], objective, mode):
    """Features gathered without their gradient teach wrongly under an unchanged loss: here every parameter
    gets the gradient of one process, whatever the objective and the way of the step."""
    case = f"{mode}_{objective}"
    assert len(one[case].keys() - NUMBERS) > 30
    for rank in (0, 1):
        close(two[rank][case], one[case])
        assert two[rank][case]["loss"] == pytest.approx(float(one[case]["loss"]), rel=1e-6)


def test_02_gradient_norm_of_many_processes(one: Results, two: list[Results], ran):
    """Averaging over processes what is already a part of the mean makes gradients W times too small: here
    each tensor's norm, and every norm that a whole run logs, are those of one process."""
    for case in (f"{mode}_{objective}" for mode in ("direct", "cached") for objective in OBJECTIVES):
        found, wanted = two[0][case], one[case]
        assert float(found["norm"] / wanted["norm"]) == pytest.approx(1, abs=1e-5)
        large = [name for name in wanted.keys() - NUMBERS if float(wanted[name].norm()) > 1e-3]
        assert len(large) > 30
        for name in large:
            assert float(found[name].norm() / wanted[name].norm()) == pytest.approx(1, abs=1e-3), name
    train(epoch(ran, "epoch_of_one"))
    norms = [
        [line["norm"] for line in read_lines(ran / out / "log.jsonl") if "loss" in line]
        for out in ("epoch", "epoch_of_one")
    ]
    assert len(norms[0]) == 4 and norms[0] == pytest.approx(norms[1], rel=1e-5)


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_03_any_number_of_chunks(one: Results, two: list[Results], k):
    """What all rows share is counted once for each chunk elsewhere: here k chunks give one gradient, that of
    the scale and of the bias included."""
    found, wanted = two[0][f"chunks_{k}"], one["chunks_1"]
    close(found, wanted)
    for name in ("scale", "bias"):
        assert wanted[name].abs() > 0.01 and float(found[name] / wanted[name]) == pytest.approx(1, rel=1e-5)


def test_04_chunks_widen_negatives(one: Results, two: list[Results]):
    """Accumulation over chunks that never meet has the negatives of one chunk: here the loss of 8 chunks of
    4 rows, on two processes, is that of 32 rows at once."""
    assert CASES["chunks_4"].chunks == ([4] * 4, [4] * 4)
    assert two[0]["chunks_4"]["loss"] == pytest.approx(float(one["chunks_1"]["loss"]), rel=1e-6)


def test_05_dropout_is_replayed(two: list[Results]):
    """A second forward under other random numbers gives the gradient of another network: here the dropout of
    adapters and of patches falls alike in both passes, on every process."""
    for results in two:
        close(results["dropout_cached"], results["dropout_direct"])
    first, other = (two[0][f"dropout_{name}"]["image.net.proj"] for name in ("direct", "otherwise"))
    assert (first - other).abs().max() > 1e-3


def test_06_one_synchronisation_a_step(two: list[Results]):
    """Gradients sent around after every chunk cost k times the communication: here they go once a step."""
    for results in two:
        assert results["syncs_8"]["last"] == results["syncs_1"]["last"] == 1
        assert results["syncs_8"]["buckets"] == results["syncs_1"]["buckets"]


@pytest.mark.parametrize(("mode", "shares"), [("direct", (7, 5)), ("cached", (5, 7))])
def test_12_uneven_last_batch(one: Results, two: list[Results], mode, shares):
    """Ranks of 7 and 5 rows hang in a gather, or label their rows by another rank's: here the step ends with
    the gradients of 12 rows on one process."""
    case = f"uneven_{mode}"
    assert [results[case]["rows"].tolist() for results in two] == [[own, 12] for own in shares]
    for results in two:
        close(results[case], one[case])
        assert results[case]["loss"] == pytest.approx(float(one[case]["loss"]), rel=1e-6)


@pytest.mark.parametrize("mode", ["direct", "cached"])
def test_20_checkpointing_ddp_lock_and_lora(one: Results, two: list[Results], mode):
    """Recomputed activations lose gradients below frozen layers, or reach DDP twice: here a partly locked
    tower and adapters learn on two processes, checkpointed, as on one without."""
    case = f"adapted_{mode}"
    close(two[0][case], one[case])
    assert any("lora_A" in name for name in one[case]) and "image.net.proj" in one[case]
    assert "image.net.conv1.weight" not in one[case] and "text.net.token_embedding.weight" not in one[case]
    assert all(float(one[case][name].abs().max()) > 0 for name in one[case] if "lora_" in name)


@pytest.mark.parametrize("mode", ["direct", "cached"])
def test_21_unused_bias(one: Results, two: list[Results], mode):
    """A parameter that no loss reads ends DDP's second step with an error: here its gradient is zero, and
    the second step is as good as the first."""
    case = f"unread_{mode}"
    for results in two:
        assert results[case]["bias"] == 0 and results[case]["scale"] == 0
        close(results[case], one[case])
        close(results[f"{case}_again"], one[f"{case}_again"], tolerance=1e-5)


def test_27_logged_loss_is_everyones(one: Results, two: list[Results]):
    """A log that shows the first process's loss hides the others': here each rank logs the mean over the
    rows of all, which is neither's own."""
    case = "uneven_cached"
    own = [float(results[case]["own"]) for results in two]
    for results, mine, rows in zip(two, own, (5, 7), strict=True):
        assert results[case]["loss"] == pytest.approx(sum(own) / 12, rel=1e-6)
        assert abs(float(results[case]["loss"]) - mine / rows) > 1e-3
