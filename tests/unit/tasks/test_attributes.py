import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.unit.ops.worlds import assert_same, batch, embeddings
from vlalign.objectives.info_nce import InfoNCE
from vlalign.ops.attributes import information, shares
from vlalign.recipe.decode import load_recipe
from vlalign.registry import TASKS
from vlalign.supervision.targets.identity import Identity
from vlalign.tasks.align import Align
from vlalign.tasks.terms import Attributes, Term
from vlalign.train.model import check_fields
from vlalign.types import Embeddings, RecipeError

ROWS, MOST = 5, 3
KNOWN = torch.arange(MOST) < torch.tensor([3, 2, 0, 1, 3])[:, None]
TASK = Align(targets=Identity(), terms=(Term(objective=InfoNCE()),))


def world(most: int = MOST, dtype: torch.dtype = torch.float64) -> Embeddings:
    return embeddings(ROWS, ROWS * (1 + most), dtype=dtype)


def data(known: Tensor = KNOWN) -> dict:
    made = batch(range(ROWS), range(ROWS))
    made["key_fields"]["known_texts"] = known
    return made


def unit(vector: Tensor) -> Tensor:
    return vector / vector.square().sum().sqrt()


def naive(features: Embeddings, known: Tensor, temperature: float) -> tuple[Tensor, list[list[float]]]:
    """A text a row and the weights of what is known, one attribute and one picture at a time."""
    texts, every = [], []
    scale = float(features.scale.detach())
    parts, pictures = features.key.view(ROWS, -1, features.key.shape[1]), features.query.detach()
    for i in range(ROWS):
        there = [a for a in range(known.shape[1]) if known[i, a]]
        told = []
        for a in there:
            scores = [scale * float(picture @ parts[i, 1 + a].detach()) for picture in pictures]
            told.append(scores[i] - math.log(sum(math.exp(s) for s in scores) / ROWS))
        odds = [math.exp(each / temperature) for each in told]
        weights = [each / sum(odds) for each in odds]
        parted = [w * parts[i, 1 + a] for w, a in zip(weights, there, strict=True)]
        texts.append(unit(torch.stack([parts[i, 0], *parted]).sum(0)))
        every.append(weights)
    return torch.stack(texts), every


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_equals_a_loop(temperature):
    features = world()
    joined = Attributes(most=MOST, temperature=temperature).joined(features, data())
    wanted, _ = naive(features, KNOWN, temperature)
    assert_same(joined.key.square().cumsum(1).sum(), wanted.square().cumsum(1).sum(), features)
    torch.testing.assert_close(joined.key, wanted)
    assert joined.query is features.query


def test_blocks_of_scores_give_the_same(monkeypatch):
    features = world()
    whole = Attributes(most=MOST).joined(features, data()).key
    monkeypatch.setattr("vlalign.ops.attributes.SCORES", 7)
    torch.testing.assert_close(Attributes(most=MOST).joined(features, data()).key, whole)


def test_the_loss_is_that_of_joined_texts_and_gradients_reach_every_part():
    features = world()
    told = replace(TASK, attributes=Attributes(most=MOST))
    mine = told.loss(features, data(), 1, 2).total
    joined = Attributes(most=MOST).joined(features, data())
    assert_same(mine, TASK.loss(joined, data(), 1, 2).total, features)
    parts = torch.autograd.grad(mine, features.key)[0].view(ROWS, 1 + MOST, -1).norm(dim=-1)
    assert (parts[:, 0] > 0).all() and torch.equal(parts[:, 1:] > 0, KNOWN)


def test_gradcheck():
    features = world()

    def joined(key: Tensor) -> Tensor:
        """Weights are constants: at this temperature they do not depend on the key."""
        return Attributes(most=MOST, temperature=1e12).joined(replace(features, key=key), data()).key

    assert torch.autograd.gradcheck(joined, features.key)


def test_without_attributes_a_text_is_its_caption():
    features = world()
    captions = features.key.view(ROWS, 1 + MOST, -1)[:, 0]
    joined = Attributes(most=MOST).joined(features, data(torch.zeros(ROWS, MOST, dtype=torch.bool)))
    torch.testing.assert_close(joined.key, captions)


def weights(features: Embeddings, temperature: float, known: Tensor = KNOWN) -> Tensor:
    attributes = features.key.detach().view(ROWS, 1 + MOST, -1)[:, 1:]
    query = features.query.detach()
    return shares(information(query, query, attributes, features.scale.detach()), known, temperature)


def test_weights_sum_to_one_over_what_is_known_and_follow_what_is_told():
    features = world()
    found, (_, wanted) = weights(features, 1.0), naive(features, KNOWN, 1.0)
    assert [row[KNOWN[i]].tolist() for i, row in enumerate(found)] == [pytest.approx(x) for x in wanted]
    assert (found[~KNOWN] == 0).all()
    torch.testing.assert_close(found.sum(1), KNOWN.any(1).double())


def test_a_high_temperature_makes_them_even_and_a_low_one_takes_the_most_telling():
    features = world()
    even = KNOWN / KNOWN.sum(1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(weights(features, 1e9), even.double(), atol=1e-6, rtol=0)
    first = weights(features, 1.0).argmax(1)
    wanted = torch.nn.functional.one_hot(first, MOST) * KNOWN
    for low in (1e-4, 1e-300):
        torch.testing.assert_close(weights(features, low), wanted.double())


def test_equal_information_is_equal_weight():
    told = torch.tensor([[0.3, 0.3, -5.0], [2.0, 2.0, 2.0]])
    known = torch.tensor([[True, True, False], [True, True, True]])
    torch.testing.assert_close(
        shares(told, known, 0.7), torch.tensor([[0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    )


def test_what_is_as_near_to_every_picture_tells_nothing_and_nothing_more_than_log_of_their_number():
    pictures = torch.eye(4, dtype=torch.float64)
    flat, own = normalize(torch.ones(4, 1, 4, dtype=torch.float64), dim=-1), pictures[:, None]
    scale = torch.tensor([100.0], dtype=torch.float64)
    attributes = torch.cat([flat, own], 1)
    told = information(pictures, pictures, attributes, scale)
    torch.testing.assert_close(told[:, 0], torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(told[:, 1], torch.full((4,), math.log(4), dtype=torch.float64))
    assert (
        information(pictures, pictures, world().key[:8].view(4, 2, 4), scale) <= math.log(4) + 1e-12
    ).all()
    told = information(pictures.roll(1, 0), pictures, attributes, scale)  # another picture's attribute
    assert (told[:, 1] < -90).all()


def test_bf16_rows_give_the_text_of_their_fp32_cast():
    rounded = world(dtype=torch.bfloat16)
    joined = Attributes(most=MOST).joined(rounded, data())
    cast = Embeddings(*(getattr(rounded, name).float() for name in ("query", "key", "scale", "bias")))
    assert joined.key.dtype == torch.float32
    torch.testing.assert_close(joined.key, Attributes(most=MOST).joined(cast, data()).key)


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ("simcrop", "patch_encoder reads one text of a row"),
        ("enhancer", "enhancer reads one text of a row"),
        ("hard_negatives", "data.train holds candidates"),
    ],
)
def test_who_cannot_read_several_texts_is_refused(recipe, why):
    with pytest.raises(RecipeError, match=f"task.attributes.*{why}"):
        load_recipe(f"recipes/tiny/{recipe}.yaml", ["task.attributes={most: 2}"])


def test_an_annotation_of_the_same_name_is_refused():
    told = ["data.annotate.known_texts={name: kmeans, k: 2, side: image}"]
    source = SimpleNamespace(fields=lambda index: {"id": "0", "subcategory": "a", "category": "b"})
    with pytest.raises(RecipeError, match="rows have a field 'known_texts' already"):
        check_fields(load_recipe("recipes/tiny/dcar.yaml", told), source)


def test_what_cannot_mean_anything_is_refused():
    told = {"name": "align", "targets": "identity", "terms": [{"objective": "info_nce"}]}
    assert TASKS.decode(told).texts == 1
    assert TASKS.decode({**told, "attributes": {"most": 2}}).texts == 3
    for fields in ({"most": 0}, *({"temperature": each} for each in (0.0, math.nan, math.inf))):
        with pytest.raises(ValueError):
            TASKS.decode({**told, "attributes": fields})
    with pytest.raises(ValueError, match="averaged weights"):
        TASKS.decode({**told, "embedding_terms": [{"objective": "byol"}], "attributes": {}})
