import pytest
import torch
from torch import nn

from vlalign.models.attention import SplitAttention, fuse, split, unfuse


def masks(rows: int, heads: int, length: int) -> list[torch.Tensor | None]:
    causal = torch.full((length, length), float("-inf")).triu(1)
    forbidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    return [None, causal, forbidden, causal.expand(rows * heads, -1, -1)]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 12, "vdim": 20}])
def test_outputs_equal_those_of_the_fused_attention(batch_first, options):
    fused = nn.MultiheadAttention(16, 4, batch_first=batch_first, **options).double()
    apart = SplitAttention(fused)
    query, key, value = (
        torch.randn(3, 5, options.get(name, 16)).double() for name in ("qdim", "kdim", "vdim")
    )
    given = [x if batch_first else x.transpose(0, 1) for x in (query, key, value)]
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    for mask in masks(3, 4, 5):
        for hidden in (None, padding):
            told = {"attn_mask": mask, "key_padding_mask": hidden, "need_weights": False}
            torch.testing.assert_close(apart(*given, **told)[0], fused(*given, **told)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 12, "vdim": 20}])
def test_fusing_gives_the_state_back_and_unfusing_undoes_it(options):
    net = nn.ModuleDict({"block": nn.ModuleDict({"attn": nn.MultiheadAttention(16, 4, **options)})})
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    names = split(net)
    apart = net.state_dict()
    assert names == ["block.attn"] and "block.attn.q_proj.weight" in apart
    fused = fuse(apart, names)
    assert fused.keys() == before.keys() and all(torch.equal(fused[name], before[name]) for name in before)
    again = unfuse(fused, names)
    assert again.keys() == apart.keys() and all(torch.equal(again[name], apart[name]) for name in apart)


def test_splitting_draws_no_random_numbers():
    net = nn.ModuleDict({"attn": nn.MultiheadAttention(16, 4)})
    torch.manual_seed(3)
    split(net)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))


def test_what_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match="add_bias_kv"):
        SplitAttention(nn.MultiheadAttention(16, 4, add_bias_kv=True))
