"""A picture and a text as one row: the formula by hand, its corners, and what is saved and loaded."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import normalize

import vlalign
from tests.multimodal_models import picture
from tests.unit.infer.mined import lines, write
from vlalign.data.keyed import kinds
from vlalign.models.combined import Head, Sum
from vlalign.models.weights import save
from vlalign.recipe.decode import load_recipe
from vlalign.registry import MODELS, SOURCES
from vlalign.train.loop import train
from vlalign.types import Item, RecipeError, UserError

ENCODER = "local-dir:recipes/tiny/open_clip"
SMALL = {"projection": 6, "hidden": 5}


def unit(*shape):
    return normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def head(mode="combined", dim=4, dropout=0.5):
    torch.manual_seed(0)
    return Head(dim, mode, 6, 5, dropout).double().eval()


def looped(model, text, image):
    """The formula, a row and a unit at a time."""

    def linear(layer, row):
        return [
            float(bias) + sum(float(w) * x for w, x in zip(weights, row, strict=True))
            for weights, bias in zip(layer.weight.detach(), layer.bias.detach(), strict=True)
        ]

    def relu(row):
        return [max(0.0, x) for x in row]

    out = []
    for t, v in zip(text.tolist(), image.tolist(), strict=True):
        both = relu(linear(model.text[0], t)) + relu(linear(model.image[0], v))
        mixed = linear(model.mixed[3], relu(linear(model.mixed[0], both)))
        [share] = linear(model.share[3], relu(linear(model.share[0], both)))
        alpha = 1 / (1 + math.exp(-share))
        out.append([m + alpha * a + (1 - alpha) * b for m, a, b in zip(mixed, t, v, strict=True)])
    return torch.tensor(out, dtype=torch.float64)


def test_the_head_is_its_formula():
    model, text, image = head(), unit(3, 4), unit(3, 4)
    torch.testing.assert_close(model(text, image), looped(model, text, image), rtol=0, atol=1e-12)
    nothing = torch.zeros(3, 4, dtype=torch.float64)
    of_image, of_text = head("image"), head("text")
    torch.testing.assert_close(of_image(text, image), looped(model, nothing, image), rtol=0, atol=1e-12)
    torch.testing.assert_close(of_text(text, image), looped(model, text, nothing), rtol=0, atol=1e-12)
    rounded = head().bfloat16()
    near = rounded(text.bfloat16(), image.bfloat16()).double()
    torch.testing.assert_close(near, looped(model, text, image), rtol=0, atol=0.02)


def test_its_gradients_are_right():
    model, text, image = head(), unit(2, 4).requires_grad_(), unit(2, 4).requires_grad_()
    assert torch.autograd.gradcheck(model, (text, image))


def test_without_its_mlp_a_share_of_one_is_the_text_and_of_none_the_picture():
    model, text, image = head(), unit(3, 4), unit(3, 4)
    for part in (*model.mixed[3].parameters(), model.share[3].weight):
        part.data.zero_()
    for share, expected in ((100.0, text), (-100.0, image), (0.0, (text + image) / 2)):
        model.share[3].bias.data.fill_(share)
        torch.testing.assert_close(model(text, image), expected, rtol=0, atol=1e-12)


def test_a_sum_begins_as_the_sum_of_both_rows():
    text, image = unit(3, 4), unit(3, 4)
    torch.testing.assert_close(Sum(4).double()(text, image), text + image)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MODELS.decode({"name": "combiner", "encoder": ENCODER, **SMALL}).build()


def test_only_the_head_learns_and_only_it_is_in_training_mode(model):
    learning = {name for name, each in model.named_parameters() if each.requires_grad}
    assert learning and all(name.startswith("head.") for name in learning)
    assert model.head.training and not model.encoder.training and not model.image.training
    assert not model.eval().head.training and model.locked == {"image", "text"}
    assert model.scale.exp().item() == pytest.approx(100) and not model.scale.requires_grad


def test_both_are_a_unit_row_and_parts_are_the_encoders(model):
    image, text = model.processors()
    inputs = {"image": image([picture(0), picture(1)]), "text": text(["red", "blue"])}
    batch = {"query": inputs, "key": inputs["image"], "towers": ("both", "image")}
    out = model.eval()(batch)
    torch.testing.assert_close(out.query.norm(dim=1), torch.ones(2))
    rows = [model.encoder.encode_text(inputs["text"]), model.encoder.encode_image(inputs["image"])]
    torch.testing.assert_close(out.query, normalize(model.head(*rows), dim=1))
    torch.testing.assert_close(out.key, rows[1])
    assert out.query.requires_grad and not out.key.requires_grad


def test_what_is_saved_is_what_is_loaded_and_its_encoder_is_one_for_itself(model, tmp_path):
    save(model.eval(), tmp_path / "model")
    found = vlalign.load(tmp_path / "model")
    ours = vlalign.models.embedder.DualEncoderEmbedder(model)
    items = [Item(text="red", images=(picture(0),)), Item(text="red"), Item(images=(picture(0),))]
    torch.testing.assert_close(found.embed(items), ours.embed(items), rtol=0, atol=0)
    assert torch.equal(found.embed(items, fusion=0.1), found.embed(items))  # it has learned how much of each
    alone = vlalign.load(tmp_path / "model" / "encoder")
    torch.testing.assert_close(alone.embed(items[1:]), ours.embed(items[1:]), rtol=0, atol=0)
    assert not torch.allclose(alone.embed(items[:1]), ours.embed(items[:1]))
    [scores] = found.score(items[:1], [[picture(0), picture(1)]])
    torch.testing.assert_close(
        scores, found.embed(items[:1])[0] @ found.encode_image([picture(0), picture(1)]).T
    )
    moved = (tmp_path / "model").rename(tmp_path / "moved")
    torch.testing.assert_close(vlalign.load(moved).embed(items), ours.embed(items), rtol=0, atol=0)


def test_what_cannot_be_is_refused_with_a_sentence(model, tmp_path):
    for fields, told in (
        ({"encoder": " "}, "encoder must name"),
        ({"projection": 0}, "projection must be >= 1"),
        ({"dropout": 1.0}, "dropout must be >= 0 and < 1"),
        ({"mode": "both"}, "combined"),
    ):
        with pytest.raises(ValidationError, match=told):
            MODELS.decode({"name": "combiner", "encoder": ENCODER, **fields})
    save(model, tmp_path / "model")
    with pytest.raises(UserError, match="is no dual encoder"):
        MODELS.decode({"name": "combiner", "encoder": str(tmp_path / "model")}).build()


def recipe(tmp_path, name, *overrides):
    told = [f"out={tmp_path / name}", "log.trackers=[]", *overrides]
    return load_recipe("recipes/tiny/combiner.yaml", told)


def losses(out):
    return [line["loss"] for line in lines(out / "log.jsonl")[1:]]


def test_features_that_are_kept_teach_the_same_and_so_do_chunks(tmp_path, monkeypatch):
    monkeypatch.setenv("VLALIGN_CACHE", str(tmp_path / "cache"))
    save(vlalign.load("recipes/tiny/open_clip").model, tmp_path / "encoder")
    same = [f"model.encoder={tmp_path / 'encoder'}", "model.dropout=0"]
    kept = losses(train(recipe(tmp_path, "kept", *same)))
    assert losses(train(recipe(tmp_path, "live", "feature_cache=false", *same))) == pytest.approx(
        kept, rel=1e-4
    )
    assert losses(train(recipe(tmp_path, "one", "data.chunk=8", *same))) == pytest.approx(kept, rel=1e-4)
    assert kept[0] != kept[2]


@pytest.mark.parametrize("mode", ["image", "text", "sum"])
def test_controls_are_trained_alike(tmp_path, mode):
    out = train(recipe(tmp_path, mode, f"model.mode={mode}"))
    assert len(losses(out)) == 3
    model, items = vlalign.load(out), [Item(text=text, images=(picture(0),)) for text in ("red", "blue")]
    one, other = model.embed(items)
    assert torch.allclose(one, other) == (mode == "image")


def test_rows_without_a_picture_or_a_text_teach_no_combiner(tmp_path):
    data = "data.train.path=recipes/tiny/candidates.jsonl"
    with pytest.raises(
        RecipeError, match="queries that have a picture and a text, and the first is one text"
    ):
        train(recipe(tmp_path, "texts", data))
    for at in range(2):
        picture(at).save(tmp_path / f"{at}.png")
    shown = [{"image": f"{at}.png", "label": at} for at in range(2)]
    asked = [{"text": "red", "image": "0.png"}, {"image": "0.png"}, {"text": "red"}]
    rows = [{"id": f"q{at}", "query": each, "candidates": shown} for at, each in enumerate(asked)]
    path = write(tmp_path / "rows.jsonl", rows)
    source = SOURCES.decode({"name": "candidates", "path": str(path)}).build()
    assert kinds(source, joint=True) == ("both", "image") and kinds(source) == ("image", "image")
    with pytest.raises(UserError, match="no text"):
        train(recipe(tmp_path, "torn", f"data.train.path={path}", "data.on_error=raise"))
