from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.unit.ops.worlds import assert_same, embeddings, gradients
from vlalign.objectives.embedding.core_tuning import CoreTuning
from vlalign.types import Context, Embeddings

LABEL, KEYS = [0, 0, 1, 1, 2, 0], [0, 0, 1, 1, 2, 0, 2, 7]


def context(label=LABEL, keys=KEYS, step: int = 2) -> Context:
    sides = {"query_fields": label, "key_fields": keys}
    return Context({side: {"concept": torch.tensor(x)} for side, x in sides.items()}, None, step, 10)


def unit(one: Tensor, other: Tensor, share: Tensor) -> Tensor:
    raw = share * one + (1 - share) * other
    return raw / raw.norm()


def draws(
    loss: CoreTuning, rows: int, columns: int, step: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Partners, their shares, a number a pair, and the shares of hard positives and semi-hard negatives."""
    generator, uniforms = torch.Generator().manual_seed(step), 2 * loss.alpha - 1

    def shares(*size: int) -> Tensor:
        drawn = torch.rand(*size, uniforms, generator=generator, dtype=torch.float64)
        return drawn.sort(-1).values[..., loss.alpha - 1]

    partners, first = torch.randperm(rows, generator=generator), shares(rows)
    return partners, first, torch.rand(rows, columns, generator=generator), *shares(2, rows)


def naive(loss: CoreTuning, features: Embeddings, label=LABEL, keys=KEYS, step: int = 2) -> Tensor:
    query, key = features.query, features.key
    partners, first, lot, second, third = draws(loss, len(query), len(key), step)
    losses = []
    for i in range(len(query)):
        same = [j for j in range(len(key)) if keys[j] == label[i]]
        differ = [j for j in range(len(key)) if keys[j] != label[i]]
        partner = int(partners[i])
        mixed = unit(query[i], query[partner], first[i])
        log_p = (features.scale * key @ mixed).log_softmax(0)
        theirs = [j for j in range(len(key)) if keys[j] == label[partner]]
        total = -first[i] * log_p[same].mean() - (1 - first[i]) * log_p[theirs].mean()
        positives = [key[j] for j in same]
        others = [key[j] for j in differ]
        if differ:
            least = min(same, key=lambda j: float(query[i].detach() @ key[j].detach()))
            most = max(differ, key=lambda j: float(query[i].detach() @ key[j].detach()))
            assert keys[least] == label[i] != keys[most]
            drawn = max(differ, key=lambda j: float(lot[i, j]))
            positives.append(unit(key[least], key[most], second[i]))
            others.append(unit(key[drawn], query[i], third[i].clamp(min=0.8)))
        exps = [(query[i] @ x / loss.temperature).exp() for x in positives + others]
        ps = [x / sum(exps) for x in exps[: len(positives)]]
        focal = sum(-((1 - p) ** loss.gamma) * p.log() for p in ps) / len(ps)
        losses.append(total + loss.eta * focal)
    return torch.stack(losses)


@pytest.mark.parametrize("loss", [CoreTuning(), CoreTuning(eta=2.0, temperature=0.5, gamma=2.0, alpha=2)])
@pytest.mark.parametrize("step", [2, 3])
def test_equals_a_loop(loss, step):
    features = embeddings(6, 8, 5)
    mine, reference = loss(features, context(step=step)), naive(loss, features, step=step)
    torch.testing.assert_close(mine, reference, atol=1e-10, rtol=1e-10)
    assert_same(mine.square().sum(), reference.square().sum(), features)


def contrast_of(features: Embeddings, told: Context, **fields) -> Tensor:
    """The contrast alone."""
    one, none = CoreTuning(eta=1.0, **fields), CoreTuning(eta=0.0, **fields)
    return one(features, told) - none(features, told)


def test_no_contrast_is_mixup():
    features, loss = embeddings(6, 8), CoreTuning(eta=0.0)
    partners, share, *_ = draws(loss, 6, 8, 2)
    mixed = torch.stack([unit(features.query[i], features.query[partners[i]], share[i]) for i in range(6)])
    same = torch.tensor(LABEL)[:, None] == torch.tensor(KEYS)
    even = same.double() / same.sum(1, keepdim=True)
    targets = share[:, None] * even + (1 - share[:, None]) * even[partners]
    expected = torch.nn.functional.cross_entropy(
        features.scale * mixed @ features.key.T, targets, reduction="sum"
    )
    assert_same(loss(features, context()).sum(), expected, features)


def test_without_negatives_and_focus_it_is_supervised_contrast():
    features, told = embeddings(4, 4), context([5] * 4, [5] * 4)
    log_p = (features.query @ features.key.T / 0.07).log_softmax(1)
    assert_same(contrast_of(features, told, gamma=0.0).sum(), -log_p.mean(1).sum(), features, atol=1e-9)


def test_singletons_without_focus_are_info_nce_with_two_more_rows():
    features, ids = embeddings(5, 5), list(range(5))
    mine = contrast_of(features, context(ids, ids), gamma=0.0)
    _, _, lot, second, third = draws(CoreTuning(), 5, 5, 2)
    for i in range(5):
        others = [j for j in ids if j != i]
        most = max(others, key=lambda j: float(features.query[i].detach() @ features.key[j].detach()))
        hard = unit(features.key[i], features.key[most], second[i])
        drawn = max(others, key=lambda j: float(lot[i, j]))
        semi = unit(features.key[drawn], features.query[i], third[i].clamp(min=0.8))
        scores = torch.cat([features.key, hard[None], semi[None]]) @ features.query[i] / 0.07
        torch.testing.assert_close(mine[i], -scores.log_softmax(0)[[i, 5]].mean())


def test_focus_takes_from_a_pair_the_share_of_its_probability():
    features, told = embeddings(2, 2), context([0, 0], [0, 0])
    log_p = (features.query @ features.key.T / 0.07).log_softmax(1)
    for gamma in (0.5, 1.0, 4.0):
        expected = ((1 - log_p.exp()) ** gamma * -log_p).mean(1)
        torch.testing.assert_close(contrast_of(features, told, gamma=gamma), expected)


def test_a_well_matched_pair_loses_its_slope_faster_than_without_focus():
    """Of two keys that are positives, one at a cosine of 1 and one opposite: p of the first is nearly 1."""
    row = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    features = replace(embeddings(1, 2), query=row.requires_grad_(), key=torch.cat([row, -row]).detach())
    first = (features.query @ features.key.T / 0.5).log_softmax(1)[0, 0]  # p = 0.98
    other = (1 - first.exp()).log()
    slopes = []
    for gamma in (0.0, 1.0):
        both = 2 * contrast_of(features, context([0], [0, 0]), gamma=gamma, temperature=0.5).sum()
        far = -(first.exp() ** gamma) * other  # what the opposite key adds
        slopes.append(float(torch.autograd.grad(both - far, features.query, retain_graph=True)[0].norm()))
    assert 0 < slopes[1] < slopes[0] / 10


def test_equal_keys_of_one_row_and_nothing_to_mix():
    assert CoreTuning()(embeddings(1, 1), context([0], [0])).tolist() == [0]
    loss = CoreTuning(gamma=0.5)(features := embeddings(3, 3), context([0] * 3, [0] * 3))
    assert loss.isfinite().all() and all(x.isfinite().all() for x in gradients(loss.sum(), features))


def test_a_row_without_positives_has_no_contrast():
    told = context([9, 0], [0, 0])
    features = embeddings(2, 2)
    loss = CoreTuning()(features, told)
    assert loss.isfinite().all() and all(x.isfinite().all() for x in gradients(loss.sum(), features))
    assert contrast_of(features, told)[0] == 0


def test_gradcheck_and_bf16():
    features, told = embeddings(4, 5, 3), context(LABEL[:4], KEYS[:5])
    loss = CoreTuning(eta=1.0, temperature=0.7)
    assert torch.autograd.gradcheck(
        lambda q, k, s: loss(replace(features, query=q, key=k, scale=s), told),
        (features.query, features.key, features.scale),
    )
    small = loss(embeddings(4, 5, 3, dtype=torch.bfloat16), told)
    torch.testing.assert_close(small.double(), loss(features, told), atol=0.1, rtol=0.03)


@pytest.mark.parametrize(
    ("field", "told"), [("eta", ">= 0"), ("gamma", ">= 0"), ("temperature", "> 0"), ("alpha", ">= 1")]
)
def test_ranges(field, told):
    with pytest.raises(ValueError, match=f"{field} must be {told}, got -1"):
        CoreTuning(**{field: -1})
