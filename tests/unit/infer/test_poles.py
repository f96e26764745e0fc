"""Poles that are learnt through a text tower, against a loop by hand that has a tower for each."""

from copy import deepcopy

import pytest
import torch
from torch.nn.functional import normalize

import vlalign
from vlalign.infer.direction import direction
from vlalign.infer.poles import SCALE, TOKENS, WORD, of_pair, prompted
from vlalign.models.soft_prompts import STD
from vlalign.models.weights import save
from vlalign.ops.direction import read
from vlalign.recipe.decode import load_recipe
from vlalign.types import UserError

STEPS, RATE = 5, 0.02
BRIGHT, NIGHT = ["a bright picture", "daylight"], ["a dark picture", "the night"]


@pytest.fixture(params=["open_clip", "hf_text"])
def model(request):
    """Tiny, random, but the same each time; words by either library."""
    torch.manual_seed(0)
    made = vlalign.load("recipes/tiny/open_clip").model.eval()
    if request.param == "hf_text":
        from vlalign.models.towers.hf_text import HFTextTower

        made.text = HFTextTower(id="recipes/tiny/hf_text", pretrained=False).build("text", made.dim).eval()
        made.text_head = torch.nn.Linear(made.text.width, made.dim)
    return made


@pytest.fixture
def rows(model):
    """Two clouds of unit rows, of unlike number."""
    noise = torch.randn(12, model.dim, generator=torch.Generator().manual_seed(1))
    noise[:7, 0] += 2
    return normalize(noise, dim=1).split([7, 5])


def by_hand(model, positive, negative):
    """Steps of Adam over log-sum-exps, a tower a side."""
    draw = torch.Generator().manual_seed(3)
    towers = []
    for _ in range(2):
        tower = deepcopy(model.text)
        tower.learn_prompts(TOKENS)
        towers.append(tower.requires_grad_(False).eval())
    start = torch.randn(2, *towers[0].prompts.vectors.shape, generator=draw) * STD
    own = [torch.nn.Parameter(each.clone()) for each in start]
    for tower, each in zip(towers, own, strict=True):
        tower.prompts.vectors = each
    adam = torch.optim.Adam(own, lr=RATE)

    def poles():
        return [normalize(model.text_head(tower(tower.process([WORD]))), dim=1)[0] for tower in towers]

    for _ in range(STEPS):
        total = torch.zeros(())
        for right, examples in enumerate((positive, negative)):
            for row in examples:
                logits = torch.stack([SCALE * row @ pole for pole in poles()])
                total = total + logits.logsumexp(0) - logits[right]
        adam.zero_grad()
        (total / (len(positive) + len(negative))).backward()
        adam.step()
    return torch.stack(poles()).detach()


def test_prompts_are_learnt_as_a_loop_by_hand_learns_them(model, rows):
    wanted = by_hand(model, *rows)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    found = torch.stack(prompted(model, *rows, STEPS, RATE, 3))
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    assert not found.requires_grad and model.text.prompts is None
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert torch.equal(found, torch.stack(prompted(model, *rows, STEPS, RATE, 3)))
    assert not torch.equal(found, torch.stack(prompted(model, *rows, STEPS, RATE, 4)))


def test_more_steps_tell_them_apart_and_the_direction_has_their_odds(model, rows):
    losses = []
    for steps in (0, 10, 60):
        poles = prompted(model, *rows, steps, RATE, 3)
        found = of_pair(*poles)
        odds = torch.cat([SCALE * (x @ poles[0] - x @ poles[1]) for x in rows])
        torch.testing.assert_close(
            found.steepness * (torch.cat(rows) @ found.vector), odds, atol=1e-2, rtol=1e-3
        )
        signs = torch.tensor([1.0] * 7 + [-1.0] * 5)
        losses.append(-torch.nn.functional.logsigmoid(signs * odds).mean().item())
    assert losses[2] < losses[1] < losses[0]


def test_the_verb_learns_them_too(tmp_path):
    torch.manual_seed(0)
    save(vlalign.load("recipes/tiny/open_clip").model, tmp_path / "model")
    (tmp_path / "r.yaml").write_text(
        f"verb: direction\nout: {tmp_path / 'out'}\nmodel: {tmp_path / 'model'}\nfit: prompt\nsteps: 3\n"
        "positive: [a bright picture, daylight]\nnegative: [a dark picture, the night]\nseed: 2\nlr: 0.01\n"
    )
    kept = read(direction(load_recipe(tmp_path / "r.yaml")) / "direction.safetensors")
    model = vlalign.load(tmp_path / "model")
    texts = [model.encode_text(each) for each in (BRIGHT, NIGHT)]
    wanted = of_pair(*prompted(model.model, *texts, 3, 0.01, 2))
    torch.testing.assert_close(kept.vector, wanted.vector)
    assert kept.steepness == pytest.approx(wanted.steepness, rel=1e-4)


def test_towers_without_a_place_for_prompts_are_refused(model, rows):
    model.text.learn_prompts(2)
    with pytest.raises(UserError, match="has prompts of its own already; take fit: pair"):
        prompted(model, *rows, 1, RATE, 0)


def test_a_tower_of_few_tokens_is_refused(rows, monkeypatch):
    torch.manual_seed(0)
    made = vlalign.load("recipes/tiny/open_clip").model
    monkeypatch.setattr("vlalign.infer.poles.TOKENS", 10_000)
    with pytest.raises(
        UserError, match="fit: prompt: this text tower has no place for them; take fit: pair; pr"
    ):
        prompted(made, *rows, 1, RATE, 0)
