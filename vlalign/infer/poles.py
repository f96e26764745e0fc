"""Two poles that tell embeddings apart: Liang et al. 2023, https://arxiv.org/abs/2303.17569 (CLIP-LIT)."""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy, normalize

from vlalign.models.pair import DualEncoder
from vlalign.models.soft_prompts import STD
from vlalign.ops.direction import Direction, between
from vlalign.types import UserError

SCALE = 100.0  # of cosines, while two poles are learnt
TOKENS, WORD = 16, "picture"  # learnt ones of a pole, and what a tower reads besides: some read no empty text

Poles = tuple[Tensor, Tensor]


def learnt(positive: Tensor, negative: Tensor, steps: int, lr: float, seed: int) -> Poles:
    """Two unit vectors [D] by which cosines tell rows [P, D] from [N, D]; all rows in each step of Adam."""
    start = torch.randn(2, positive.shape[1], generator=torch.Generator().manual_seed(seed))
    return _learnt(normalize(start, dim=1), lambda x: normalize(x, dim=1), positive, negative, steps, lr)


def prompted(
    model: DualEncoder, positive: Tensor, negative: Tensor, steps: int, lr: float, seed: int
) -> Poles:
    """The same of two texts, whose first TOKENS tokens are what is learnt, through the frozen text tower.

    Raises UserError for a tower that takes no vectors among its tokens.
    """
    tower = deepcopy(model.text).eval().requires_grad_(False)
    if tower.prompts is not None:
        raise UserError("fit: prompt: this model's text tower has prompts of its own already; take fit: pair")
    try:
        tower.learn_prompts(TOKENS)
    except UserError as error:
        raise UserError(
            f"fit: prompt: this text tower has no place for them; take fit: pair; {error}"
        ) from error
    assert tower.prompts is not None
    inputs = {name: tower.take(x) for name, x in tower.process([WORD, WORD]).items()}
    start = torch.randn(2, *tower.prompts.vectors.shape, generator=torch.Generator().manual_seed(seed)) * STD

    def poles(vectors: Tensor) -> Tensor:  # [2, TOKENS, W]: of each row its own
        features = functional_call(tower, {"prompts.vectors": tower.take(vectors)}, (inputs,))
        return model.encode_text({"features": features}).cpu()

    return _learnt(start, poles, positive, negative, steps, lr)


def of_pair(positive: Tensor, negative: Tensor, unwanted: Tensor | None = None) -> Direction:
    """The direction between two learnt poles [D], as steep as their cosines are. Raises UserError."""
    found = between(positive, negative, unwanted)
    return found._replace(steepness=SCALE * float((positive - negative) @ found.vector))


def _learnt(
    start: Tensor,
    poles: Callable[[Tensor], Tensor],
    positive: Tensor,
    negative: Tensor,
    steps: int,
    lr: float,
) -> Poles:
    """What `poles` [2, D] makes of numbers that begin at `start`."""
    rows = normalize(torch.cat([positive, negative]).float(), dim=1)
    labels = torch.cat([torch.zeros(len(positive)), torch.ones(len(negative))]).long()
    numbers = start.requires_grad_()
    adam = torch.optim.Adam([numbers], lr=lr)
    for _ in range(steps):
        loss = cross_entropy(SCALE * rows @ poles(numbers).T, labels)
        (numbers.grad,) = torch.autograd.grad(loss, numbers)
        adam.step()
    first, second = poles(numbers).detach()
    return first, second
