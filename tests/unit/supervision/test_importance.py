"""How much tokens matter, each way against a loop."""

import math

import pytest
import torch

from vlalign.registry import IMPORTANCES
from vlalign.specs import LayerPass

T, D, HEADS = 7, 5, 3


@pytest.fixture
def seen():
    random = torch.Generator().manual_seed(0)
    before, after = (torch.randn(T, D, generator=random) for _ in range(2))
    logits = torch.randn(HEADS, T, T, generator=random)
    attention = logits.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1)
    ids = torch.tensor([3, 1, 3, 0, 1, 2, 3])
    return LayerPass(
        ids=ids, counts=torch.tensor([9, 2, 9, 4, 2, 1, 9]), before=before, after=after, attention=attention
    )


def scores(told, seen):
    found = IMPORTANCES.decode(told)(seen)
    assert found.shape == (T,) and found.isfinite().all()
    return found


def distance(a, b):
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a.tolist(), b.tolist(), strict=True)))


def test_attention_is_summed_over_heads_and_readers(seen):
    slow = [sum(seen.attention[h, q, j].item() for h in range(HEADS) for q in range(T)) for j in range(T)]
    found = scores("attention_concentration", seen)
    torch.testing.assert_close(found, torch.tensor(slow))
    assert found.sum().item() == pytest.approx(HEADS * T)
    corrected = scores({"name": "attention_concentration", "per_reader": True}, seen)
    torch.testing.assert_close(corrected, torch.tensor([x / (T - j) for j, x in enumerate(slow)]))


def test_even_causal_attention_is_level_only_when_it_is_corrected(seen):
    mean = torch.ones(HEADS, T, T) / T
    even = LayerPass(
        ids=seen.ids, counts=seen.counts, before=seen.before, after=seen.after, attention=mean.tril()
    )
    assert (scores("attention_concentration", even).diff() < 0).all()
    found = scores({"name": "attention_concentration", "per_reader": True}, even)
    torch.testing.assert_close(found, torch.full((T,), HEADS / T))


@pytest.mark.parametrize(("share", "count"), [(0.25, 2), (0.01, 1), (1.0, T), (3 / 7, 3)])
def test_the_first_tokens_are_counted_up(share, count, seen):
    found = scores({"name": "first_tokens", "share": share}, seen)
    assert found.tolist() == [1.0] * count + [0.0] * (T - count)


@pytest.mark.parametrize("share", [0, -1, 1.5])
def test_a_share_is_above_none_and_at_most_all(share):
    with pytest.raises(ValueError, match="share must be above 0 and at most 1"):
        IMPORTANCES.decode({"name": "first_tokens", "share": share})


def test_norms_and_differences_are_those_of_a_loop(seen):
    zero = torch.zeros(D)
    norms = [distance(each, zero) for each in seen.before]
    torch.testing.assert_close(scores("activation_norm", seen), torch.tensor(norms))
    changes = [-distance(a, b) for a, b in zip(seen.before, seen.after, strict=True)]
    torch.testing.assert_close(scores("activation_difference", seen), torch.tensor(changes))


def test_rare_tokens_matter(seen):
    found = scores("token_frequency", seen)
    assert found.tolist() == [-9, -2, -9, -4, -2, -1, -9] and found.argmax() == 5


def test_what_is_like_the_others_matters(seen):
    slow = [-sum(distance(a, b) ** 2 for b in seen.before) / T for a in seen.before]
    torch.testing.assert_close(scores("token_similarity", seen), torch.tensor(slow))
    lonely = seen.before.clone()
    lonely[4] += 100
    other = LayerPass(ids=seen.ids, counts=seen.counts, before=lonely, after=seen.after)
    assert scores("token_similarity", other).argmin() == 4


@pytest.mark.parametrize("name", IMPORTANCES.names())
def test_scores_go_with_their_tokens_and_bfloat16_is_read(name, seen):
    told = LayerPass(
        ids=seen.ids,
        counts=seen.counts,
        before=seen.before.bfloat16(),
        after=seen.after.bfloat16(),
        attention=seen.attention.bfloat16(),
    )
    torch.testing.assert_close(scores(name, told), scores(name, seen), atol=0.15, rtol=0.05)
    if name != "first_tokens":
        order = torch.tensor([4, 0, 6, 2, 5, 1, 3])
        turned = LayerPass(
            ids=seen.ids[order],
            counts=seen.counts[order],
            before=seen.before[order],
            after=seen.after[order],
            attention=seen.attention[:, order][:, :, order],
        )
        torch.testing.assert_close(scores(name, turned), scores(name, seen)[order])


def test_only_what_attends_says_so():
    attends = [name for name in IMPORTANCES.names() if getattr(IMPORTANCES.get(name), "attends", False)]
    assert attends == ["attention_concentration"]
