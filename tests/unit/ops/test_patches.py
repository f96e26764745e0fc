import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from vlalign.ops.patches import chosen


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(vector: Tensor) -> Tensor:
    return vector / vector.square().sum().sqrt()


def naive(patches: Tensor, texts: Tensor, share: float, temperature: float | None, mask: Tensor):
    """One picture, one text at a time; places as lists."""
    rows, places = torch.zeros_like(texts), []
    for b in range(len(patches)):
        real = [j for j in range(patches.shape[1]) if mask[b, j]]
        k = max(1, math.ceil(round(share * len(real), 9)))
        for m, text in enumerate(texts[b]):
            cosine = {j: float(unit(patches[b, j]) @ unit(text)) for j in real}
            best = sorted(real, key=lambda j, cosine=cosine: -cosine[j])[:k]
            weights = [1.0 if temperature is None else math.exp(cosine[j] / temperature) for j in best]
            parts = [w / sum(weights) * patches[b, j] for w, j in zip(weights, best, strict=True)]
            rows[b, m] = unit(torch.stack(parts).sum(0))
            places.append(best)
    return rows, places


PATCHES, TEXTS = drawn(3, 10, 4), drawn(3, 2, 4, seed=1)
MASK = torch.arange(10) < torch.tensor([10, 7, 1])[:, None]


@pytest.mark.parametrize("mask", [MASK, torch.ones(3, 10, dtype=torch.bool)])
@pytest.mark.parametrize("temperature", [0.1, None])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 1.0])
def test_equals_a_loop(share, temperature, mask):
    rows, places = chosen(PATCHES, TEXTS, share, temperature, mask)
    wanted, best = naive(PATCHES, TEXTS, share, temperature, mask)
    torch.testing.assert_close(rows, wanted)
    assert [[p for p in found if p >= 0] for found in places.flatten(0, 1).tolist()] == best
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(3, 2, dtype=torch.float64))


def test_all_patches_alike_are_the_mean_which_a_high_temperature_nears():
    mean = normalize(PATCHES.mean(1, keepdim=True), dim=-1).expand_as(TEXTS)
    torch.testing.assert_close(chosen(PATCHES, TEXTS, 1.0, None)[0], mean)
    torch.testing.assert_close(chosen(PATCHES, TEXTS, 1.0, 1e9)[0], mean)


def test_one_patch_is_the_most_similar_one():
    rows, places = chosen(PATCHES, TEXTS, 0.1, 0.1)
    cosines = normalize(TEXTS, dim=-1) @ normalize(PATCHES, dim=-1).mT
    assert places.shape == (3, 2, 1) and torch.equal(places[..., 0], cosines.argmax(-1))
    torch.testing.assert_close((rows * normalize(TEXTS, dim=-1)).sum(-1), cosines.amax(-1))


def test_the_order_of_patches_does_not_matter():
    order = torch.randperm(10, generator=torch.Generator().manual_seed(2))
    (rows, places), (others, moved) = (chosen(p, TEXTS, 0.3, 0.1) for p in (PATCHES, PATCHES[:, order]))
    torch.testing.assert_close(rows, others)
    assert torch.equal(places, order[moved])


def test_gradients_reach_the_chosen_patches_alone():
    patches = PATCHES.clone().requires_grad_()
    rows, places = chosen(patches, TEXTS[:, :1], 0.3, 0.1, MASK)
    (grad,) = torch.autograd.grad(rows[..., 0].sum(), patches)
    for touched, found in zip(grad.abs().sum(-1), places[:, 0].tolist(), strict=True):
        assert set(touched.nonzero().flatten().tolist()) == {p for p in found if p >= 0}


def test_padding_is_never_chosen_and_does_not_matter():
    loud = torch.where(MASK[..., None], PATCHES, 1e3 * TEXTS[:, :1])  # most similar, were it real
    (rows, places), (others, same) = (chosen(p, TEXTS, 0.5, 0.1, MASK) for p in (PATCHES, loud))
    assert torch.equal(rows, others) and torch.equal(places, same)
    assert places.shape == (3, 2, 5) and places[2].tolist() == [[0, -1, -1, -1, -1]] * 2


def test_texts_do_not_see_each_other_and_equal_ones_choose_alike():
    rows, places = chosen(PATCHES, torch.cat([TEXTS, 7 * TEXTS[:, :1]], 1), 0.3, 0.1)
    torch.testing.assert_close(rows[:, 2], rows[:, 0])
    assert torch.equal(places[:, 2], places[:, 0])
    torch.testing.assert_close(rows[:, :2], chosen(PATCHES, TEXTS, 0.3, 0.1)[0])


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_one_patch_and_one_text_a_picture_are_info_nce(share):
    rows, _ = chosen(PATCHES[:, :1], TEXTS[:, :1], share, 0.1)
    image, text = normalize(PATCHES[:, 0], dim=-1), normalize(TEXTS[:, 0], dim=-1)
    loss = cross_entropy(10 * rows[:, 0] @ text.T, torch.arange(3))
    torch.testing.assert_close(loss, cross_entropy(10 * image @ text.T, torch.arange(3)))


def test_gradients():
    leaves = PATCHES.clone().requires_grad_(), TEXTS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p, t: chosen(p, t, 0.3, 0.5, MASK)[0], leaves)


def test_bfloat16_is_computed_wide():
    rows, places = chosen(PATCHES.bfloat16(), TEXTS.bfloat16(), 0.3, 0.1, MASK)
    wanted, same = chosen(PATCHES.bfloat16().double(), TEXTS.bfloat16().double(), 0.3, 0.1, MASK)
    assert rows.dtype == torch.float32 and torch.equal(places, same)
    torch.testing.assert_close(rows.double(), wanted, rtol=1e-5, atol=1e-5)
    exact, _ = chosen(PATCHES, TEXTS, 0.3, 0.1, MASK)
    torch.testing.assert_close(rows.double(), exact, rtol=0.05, atol=0.05)
