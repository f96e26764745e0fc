"""The mean over all tokens of a step, however they lie in rows, chunks and processes."""

from contextlib import nullcontext

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from vlalign.registry import TASKS, TOKEN_OBJECTIVES
from vlalign.train.step import separable
from vlalign.types import TokenLogits

WORDS, WIDTH = 9, 4
LENGTHS = [1, 5, 2, 3, 1, 4]  # tokens of each caption


class OneProcess:
    device = torch.device("cpu")

    def micro(self, model, last):
        return nullcontext()

    def backward(self, loss):
        loss.backward()


class Toy(nn.Module):
    """Each token's logits from numbers of its own."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(WIDTH, WORDS, dtype=dtype)

    def forward(self, batch):
        inputs = batch["pairs"]
        return TokenLogits(self.head(inputs["states"]), inputs["labels"], inputs["row"])


def batch(rows, dtype=torch.float64):
    """Of captions, each the same in whatever company it comes."""
    tokens = []
    for row in rows:
        own = torch.Generator().manual_seed(row)
        states = torch.randn(LENGTHS[row], WIDTH, generator=own, dtype=torch.float64)
        tokens.append((states.to(dtype), torch.randint(WORDS, (LENGTHS[row],), generator=own)))
    states, labels = (torch.cat(each) for each in zip(*tokens, strict=True))
    counts = torch.tensor([LENGTHS[row] for row in rows])
    inputs = {"states": states, "labels": labels, "row": torch.arange(len(rows)).repeat_interleave(counts)}
    return {"pairs": inputs, "ids": [str(row) for row in rows]}


def task(*terms):
    return TASKS.decode({"name": "generate", "token_terms": terms or [{"objective": "cross_entropy"}]})


def stepped(chunks, world=1):
    """Loss and gradients after one step of so many processes, each with some of the chunks, all in turn.

    As the loop has it: each process divides by a share of all tokens, and gradients are averaged.
    """
    made, model = task(), Toy()
    own = [chunks[rank::world] for rank in range(world)]
    rows = sum(made.rows(chunk) for chunk in chunks)
    losses = [
        separable(OneProcess(), model, each, made, step=1, total=1, divisor=rows / world) for each in own
    ]
    total = sum(loss.total for loss in losses) / rows
    return total, {name: p.grad / world for name, p in model.named_parameters()}


def test_the_loss_is_the_mean_over_tokens():
    whole, chunk = task(), batch(range(6))
    assert whole.rows(chunk) == sum(LENGTHS)
    loss = whole.loss(Toy()(chunk), chunk, 1, 2)
    wanted = nn.functional.cross_entropy(Toy()(chunk).logits, chunk["pairs"]["labels"], reduction="sum")
    torch.testing.assert_close(loss.total, wanted)
    torch.testing.assert_close(loss.parts["cross_entropy"], wanted.detach())
    assert not whole.coupled


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("cuts", [[[0], [1], [2], [3], [4], [5]], [[0, 4], [1, 2, 3, 5]]], ids=str)
def test_chunks_and_processes_of_unlike_token_counts_add_up_to_the_whole(cuts, world):
    whole = stepped([batch(range(6))])
    apart = stepped([batch(rows) for rows in cuts], world)
    torch.testing.assert_close(apart[0], whole[0])
    for name, wanted in whole[1].items():
        torch.testing.assert_close(apart[1][name], wanted)


def test_terms_are_scaled_and_told_apart():
    made = task(
        {"objective": "cross_entropy"},
        {"objective": {"name": "cross_entropy", "smoothing": 0.5}, "scale": 0.25},
    )
    chunk = batch(range(6))
    loss = made.loss(Toy()(chunk), chunk, 1, 2)
    first, second = loss.parts["cross_entropy"], loss.parts["cross_entropy_2"]
    torch.testing.assert_close(loss.total.detach(), first + 0.25 * second)


@pytest.mark.parametrize("objective", TOKEN_OBJECTIVES.names())
def test_any_token_objective_learns(objective):
    made, chunk = task({"objective": objective}), batch(range(6))
    model, losses = Toy(), []
    for step in (1, 2, 3):
        loss = made.loss(model(chunk), chunk, step, 3).total / made.rows(chunk)
        slopes = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, slope in zip(model.parameters(), slopes, strict=True):
                p -= 0.5 * slope
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]


def test_bf16_logits_are_near_fp64():
    wide, short = (
        task().loss(Toy(dtype)(batch(range(6), dtype)), batch(range(6)), 1, 2).total
        for dtype in (torch.float64, torch.bfloat16)
    )
    assert short.dtype is torch.float32 and short.item() == pytest.approx(wide.item(), rel=0.02)


def test_a_task_without_terms_is_refused():
    with pytest.raises(ValidationError, match="token_terms is empty"):
        TASKS.decode({"name": "generate", "token_terms": []})
    with pytest.raises(ValidationError, match="scale must be > 0"):
        task({"objective": "cross_entropy", "scale": 0.0})
