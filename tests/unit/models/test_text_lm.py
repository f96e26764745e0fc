"""A language model of captions: the numbers of transformers, no pictures, and the folder that it saves."""

import json

import pytest
import torch
from PIL import Image

import vlalign
from tests.language_models import language_model, tokenizer
from tests.multimodal_models import picture
from tests.unit.models.test_reranker_card import head
from tests.unit.models.test_reranker_push import blocks, ran
from vlalign.evals.evaluators.caption_loss import CaptionLoss
from vlalign.models.caption_prompts import CaptionPrompts
from vlalign.models.caption_writer import CaptionWriter
from vlalign.models.card import Facts, card
from vlalign.models.parcel import collect, read_texts
from vlalign.models.weights import save
from vlalign.registry import MODELS, SOURCES
from vlalign.types import BadRow, Item, Limits, UserError

CAPTIONS = ["a red car", "a small cat near a tree, with a dog in the house", "no"]
RECIPE = """\
verb: train
out: runs/tiny
model: {name: text_lm, id: me/base}
data: {batch: 4, train: {name: emoji}}
task: {name: generate, token_terms: [{objective: cross_entropy}]}
steps: 9
"""
LORA = {"rank": 2, "alpha": 8.0}
NOBODY = Image.new("RGB", (3, 3))


def built(folder, **fields):
    return MODELS.decode(
        {"name": "text_lm", "id": str(language_model(folder / "lm", "llama", seed=3)), **fields}
    ).build()


@pytest.fixture
def model(tmp_path):
    return built(tmp_path)


def batch(model, captions):
    read = [model.process.read(Item(), [Item(text=text)]) for text in captions]
    return {"pairs": model.process.join(read)}


@torch.no_grad()
def test_losses_are_those_of_transformers(model, tmp_path):
    import transformers

    net = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    found = CaptionWriter(model).losses([NOBODY] * 3, CAPTIONS)
    for text, own in zip(CAPTIONS, found, strict=True):
        ids = tokenizer()(f"{text}<|im_end|>")["input_ids"]
        logits = net(torch.tensor([[tokenizer().eos_token_id, *ids]])).logits[0, :-1]
        wanted = -logits.log_softmax(-1)[torch.arange(len(ids)), ids]
        torch.testing.assert_close(own, wanted, atol=1e-5, rtol=1e-5)
    logits = model(batch(model, CAPTIONS))  # the forward that trains
    own = torch.nn.functional.cross_entropy(logits.logits, logits.labels, reduction="none")
    torch.testing.assert_close(own, torch.cat(found), atol=1e-5, rtol=1e-5)
    [scores] = CaptionWriter(model).score([""], [CAPTIONS])
    torch.testing.assert_close(scores, torch.stack([-each.mean() for each in found]), atol=1e-5, rtol=1e-5)


def test_tokens_that_are_known_are_those_that_are_read(model):
    process = model.process
    for text in [*CAPTIONS, "<|im_end|> a cat "]:
        [read] = process.read(Item(images=(None,)), [Item(text=text)])
        assert process.of(process.written(text)) == read and read.ids[0] == tokenizer().eos_token_id
    assert isinstance(process, CaptionPrompts) and process.join([[read]])["labels"].tolist() == read.ids[1:]
    process.length = 3
    [cut] = process.read(Item(), [Item(text=CAPTIONS[1])])
    assert cut.ids == process.of(process.written(CAPTIONS[1])).ids[:3]
    for query, document in (("a cat", "a car"), ("", "")):
        with pytest.raises(BadRow, match="a pair is a picture and a text"):
            process.read(Item(text=query), [Item(text=document)])


def test_the_beginning_is_the_tokenizers_own_and_the_end_that_of_its_conversations(tmp_path):
    model, words = built(tmp_path), tokenizer()
    words.bos_token, words.eos_token = "<|im_start|>", "<|endoftext|>"
    words.save_pretrained(tmp_path / "lm")
    process = MODELS.decode({"name": "text_lm", "id": str(tmp_path / "lm")}).build().process
    ids = process.of(process.written("a cat")).ids
    assert words.decode(ids) == "<|im_start|>a cat<|im_end|>"
    model.process.tokenizer.bos_token = model.process.tokenizer.eos_token = None
    with pytest.raises(UserError, match="it has no token that begins or ends a text"):
        type(model.process)(model.process.tokenizer, 20)


def test_it_says_the_same_of_every_picture(model):
    said = CaptionWriter(model).caption([picture(0), picture(1)], tokens=4)
    assert said[0] == said[1] and said[0]


@pytest.mark.parametrize("fields", [{}, {"lora": LORA}], ids=["whole", "lora"])
def test_what_learns_and_what_is_saved(fields, tmp_path):
    import transformers

    model = built(tmp_path, **fields)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in learning) == bool(fields) and learning
    assert fields or len(learning) == len(list(model.parameters()))
    logits = model(batch(model, CAPTIONS))
    torch.nn.functional.cross_entropy(logits.logits, logits.labels).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.requires_grad or "lora_B" in name:
                weights.add_(0.05 * torch.randn_like(weights))
    wanted = CaptionWriter(model).losses([NOBODY] * 3, CAPTIONS)
    save(model, tmp_path / "model")
    loaded = vlalign.load(tmp_path / "model").losses([NOBODY] * 3, CAPTIONS)
    for mine, own in zip(loaded, wanted, strict=True):
        torch.testing.assert_close(mine, own, atol=1e-5, rtol=1e-5)
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").config.model_type == "llama"


def test_it_is_measured_by_caption_loss_and_sees_no_picture(model, tmp_path):
    rows = []
    for at, text in enumerate(CAPTIONS):
        picture(at).save(tmp_path / f"{at}.png")
        rows.append(json.dumps({"image": f"{at}.png", "caption": text}))
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    data = SOURCES.decode({"name": "jsonl", "path": str(tmp_path / "rows.jsonl")})
    [row] = CaptionLoss(data=data, dataset="own")(CaptionWriter(model), Limits())
    wanted = torch.cat(CaptionWriter(model).losses([NOBODY] * 3, CAPTIONS)).mean()
    assert row.metrics["loss"] == pytest.approx(float(wanted), rel=1e-5)
    assert row.metrics["permuted_loss"] == pytest.approx(row.metrics["loss"], rel=1e-5)


def test_its_card_calls_it_what_it_is(model, tmp_path):
    out = tmp_path / "out"
    save(model, out / "model")
    (out / "recipe.yaml").write_text(RECIPE)
    files = collect(out)
    text = card(Facts.read("me/lm", out, [*files, "README.md"], read_texts(files), "mit"))
    told = head(text)
    assert (told["pipeline_tag"], told["library_name"]) == ("text-generation", "transformers")
    assert told["tags"] == ["vlalign", "captions"]
    assert (
        "A language model of captions trained with vlalign; `text_lm` (me/base); 9 steps of 4 pairs" in text
    )
    assert "It was taught captions without their pictures." in text and "photo.jpg" not in text
    assert "`AutoModelForCausalLM` and `AutoTokenizer` of transformers load the same files." in text
    code = blocks(text)["import vlalign"].replace("me/lm", str(out / "model"))
    assert len(ran(code)["scores"]) == 2


def test_a_length_that_holds_no_caption_is_refused():
    with pytest.raises(ValueError, match="length must be >= 2"):
        MODELS.decode({"name": "text_lm", "id": "x", "length": 1})
