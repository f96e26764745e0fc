import torch

from vlalign.ops.contrast import log_probabilities, mean_over

SCORES = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
WEIGHTS = torch.tensor([[1.0, 0.0, 2.0, 0.5], [0.0, 0.0, 0.0, 3.0], [1.0, 1.0, 1.0, 1.0]])


def test_equals_a_loop():
    found = log_probabilities(SCORES, WEIGHTS)
    for row in range(3):
        total = sum(WEIGHTS[row, at] * SCORES[row, at].exp() for at in range(4))
        for column in range(4):
            torch.testing.assert_close(found[row, column], SCORES[row, column] - total.log())
    torch.testing.assert_close(found[2], SCORES[2].log_softmax(0))
    others = log_probabilities(SCORES, WEIGHTS > 0)[0]
    torch.testing.assert_close(others, SCORES[0] - SCORES[0, [0, 2, 3]].logsumexp(0))


def test_differentiable_and_large_scores_stay_finite():
    assert torch.autograd.gradcheck(lambda x: log_probabilities(x, WEIGHTS), SCORES.clone().requires_grad_())
    assert log_probabilities(SCORES * 1e6, WEIGHTS).isfinite().all()


def test_the_mean_is_over_what_is_chosen():
    chosen = torch.tensor([[True, True, False, False], [False] * 4, [True] * 4])
    found = mean_over(SCORES, chosen)
    torch.testing.assert_close(found, torch.stack([SCORES[0, :2].mean(), SCORES[1, 0] * 0, SCORES[2].mean()]))
