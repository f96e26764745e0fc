"""Every registered method on an accelerator, and under autocast, which its loss leaves."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from tests.methods import fields, tasks
from vlalign.types import Embeddings

ROWS, WIDTH = 12, 16
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def passed(name: str, device: torch.device, autocast: bool = False) -> dict[str, Tensor]:
    """The loss of a step and its gradients, on the CPU again."""
    task, generator = tasks()[name], torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    heads: dict[str, nn.Module] = {key: head.to(device) for key, head in task.heads(WIDTH).items()}
    leaves = {
        key: normalize(torch.randn(ROWS, WIDTH, generator=generator), dim=-1) for key in ("query", "key")
    }
    leaves |= {"scale": torch.tensor([5.0]), "bias": torch.tensor([0.0])}
    leaves = {key: x.to(device).requires_grad_() for key, x in leaves.items()}
    extras = {f"{head}.{key}": p for head, module in heads.items() for key, p in module.named_parameters()}
    own = {key: x.to(device) for key, x in fields(ROWS, WIDTH).items()}
    batch = {"query_fields": own, "key_fields": own, "ids": [str(row) for row in range(ROWS)]}
    batch["momentum"] = {side: leaves[side].detach().flip(0) for side in ("query", "key")}
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        loss = task.loss(Embeddings(**leaves, extras=extras), batch, 1, 2).total / ROWS
    loss.backward()
    learnt = {key: x.grad for key, x in (leaves | extras).items() if x.grad is not None}
    return {key: x.float().cpu() for key, x in ({"loss": loss.detach()} | learnt).items()}


@pytest.mark.parametrize("name", tasks())
def test_autocast_of_the_towers_ends_before_the_loss(name):
    found, wanted = passed(name, CPU, autocast=True), passed(name, CPU)
    assert found.keys() == wanted.keys()
    for key, x in wanted.items():
        assert torch.equal(found[key], x), key


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
@pytest.mark.parametrize("name", tasks())
def test_a_method_learns_on_an_accelerator_what_it_learns_on_a_processor(name):
    found, wanted = passed(name, CUDA, autocast=True), passed(name, CPU)
    assert found.keys() == wanted.keys()
    for key, x in wanted.items():
        assert (found[key] - x).norm() <= 1e-5 * max(1.0, float(x.norm())), (key, found[key], x)
