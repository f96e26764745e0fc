"""A captioner writes and scores as transformers does, learns what it should, and is what is saved."""

import pytest
import torch
import transformers

import vlalign
from tests.language_models import language_model
from tests.multimodal_models import multimodal_model, picture
from vlalign.models.caption_prompts import CaptionPrompts
from vlalign.models.caption_writer import CaptionWriter
from vlalign.models.weights import initialise, save
from vlalign.registry import MODELS
from vlalign.types import BadRow, Item, UserError

KINDS = ("llava", "qwen3_vl", "made")
PICTURES = [picture(0, 64, 40), picture(1), picture(2, 80, 40)]
CAPTIONS = ["a red car", "a small cat near a tree, with a dog", "yes"]
LORA = {"rank": 2, "alpha": 4.0}


@pytest.fixture(scope="module", params=KINDS)
def source(request, tmp_path_factory):
    """The fields of one that a model comes from."""
    folder = tmp_path_factory.mktemp("models") / request.param
    if request.param != "made":
        return {"id": str(multimodal_model(folder, request.param))}
    language = str(language_model(folder, "llama"))
    torch.manual_seed(0)
    save(
        built({"made": {"language": language, "tower": "test_efficientnet", "image_size": 64}}),
        folder / "model",
    )
    return {"id": str(folder / "model")}


def built(source, **fields):
    return MODELS.decode({"name": "captioner", "length": 200, **source, **fields}).build()


@pytest.fixture
def model(source):
    return built(source).eval()


def batch(model, pairs):
    return {"pairs": model.process.join([pair(model, *each) for each in pairs])}


def pair(model, image, caption):
    return model.process.read(Item(images=(image,)), [Item(text=caption)])


def whole(folder):
    """The network and its processor, as anybody has them from transformers."""
    net = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    return net, transformers.AutoProcessor.from_pretrained(folder)


def conversation(processor, ask, caption=None):
    told = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ask}]}]
    if caption is not None:
        told.append({"role": "assistant", "content": [{"type": "text", "text": caption}]})
    return processor.apply_chat_template(told, tokenize=False, add_generation_prompt=caption is None)


def as_transformers(folder, ask, image, caption):
    """The cross-entropy of each token of a caption and of what ends it, by the whole network."""
    net, processor = whole(folder)
    text = conversation(processor, ask, caption).removesuffix("\n")
    inputs = processor(text=[text], images=[[image]], return_tensors="pt")
    count = len(processor.tokenizer(caption + "<|im_end|>", add_special_tokens=False)["input_ids"])
    found = net(**inputs).logits[0, -count - 1 : -1].log_softmax(-1)
    return -found[torch.arange(count), inputs["input_ids"][0, -count:]]


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 100_000])
def test_losses_are_those_of_transformers(tokens, source, model):
    losses = CaptionWriter(model, tokens).losses(PICTURES, CAPTIONS)
    for image, caption, found in zip(PICTURES, CAPTIONS, losses, strict=True):
        wanted = as_transformers(source["id"], model.spec.ask, image, caption)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    logits = model(batch(model, zip(PICTURES, CAPTIONS, strict=True)))  # the forward that trains
    own = torch.nn.functional.cross_entropy(logits.logits, logits.labels, reduction="none")
    torch.testing.assert_close(own, torch.cat(losses), atol=1e-5, rtol=1e-5)
    assert logits.row.tolist() == [row for row, each in enumerate(losses) for _ in each]


def test_what_is_learned_is_the_caption_and_its_end(model):
    inputs = batch(model, zip(PICTURES, CAPTIONS, strict=True))["pairs"]
    said = model.process.tokenizer.decode(inputs["labels"])
    assert said == "".join(f"{caption}<|im_end|>" for caption in CAPTIONS)
    before = inputs["input_ids"][inputs["row"], inputs["place"] + 1]
    assert torch.equal(before, inputs["labels"])


@torch.no_grad()
def test_it_writes_what_transformers_writes(source, model):
    net, processor = whole(source["id"])
    text, ends = conversation(processor, model.spec.ask), sorted(model.process.ends)
    wanted = []
    for image in PICTURES:
        inputs = processor(text=[text], images=[[image]], return_tensors="pt")
        said = net.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=6,
            eos_token_id=ends,
            pad_token_id=0,
            suppress_tokens=[model.process.pictures.token],
        )
        said = said[0, inputs["input_ids"].shape[1] :]
        wanted.append(processor.tokenizer.decode(said, skip_special_tokens=True).strip())
    writer = CaptionWriter(model)
    assert writer.caption(PICTURES, tokens=6, batch=2) == wanted
    assert len(set(wanted)) > 1 and all(wanted)
    with pytest.raises(UserError, match="tokens must be >= 1, got 0"):
        writer.caption(PICTURES, tokens=0)


@torch.no_grad()
def test_it_stops_at_the_end(model):
    """Where the end is the likeliest token from the start."""
    _, end = model.process.tokenizer.convert_tokens_to_ids(["a", "<|im_end|>"])
    head = model.net.get_output_embeddings()
    heads = [model.process.asked(image) for image in PICTURES]
    before = model.answers(heads, 4)
    assert all(len(each) == 4 for each in before)
    head.register_forward_hook(lambda _, __, logits: logits.index_fill(-1, torch.tensor(end), 1e4))
    assert model.answers(heads, 4) == [[], [], []]


def test_pairs_are_scored_whichever_side_asks(model):
    writer = CaptionWriter(model)
    items = [Item(images=(image,)) for image in PICTURES]
    by_picture = torch.stack(writer.score(items, [CAPTIONS] * 3))
    by_text = torch.stack(writer.score(CAPTIONS, [items] * 3))
    torch.testing.assert_close(by_picture, by_text.T, atol=1e-5, rtol=1e-5)
    alone = torch.stack([-each.mean() for each in writer.losses(PICTURES, CAPTIONS)])
    torch.testing.assert_close(by_picture.diagonal(), alone, atol=1e-5, rtol=1e-5)
    assert len({round(float(x), 4) for x in by_picture.flatten()}) == 9


@pytest.mark.parametrize(
    ("query", "candidate", "why"),
    [
        ("a car", "a cat", "a pair is a picture and a text"),
        (Item(images=(PICTURES[0],)), Item(images=(PICTURES[1],)), "a pair is a picture and a text"),
        (Item(text="a car", images=(PICTURES[0],)), "a cat", "one side has 1 pictures and a text"),
        (Item(images=(PICTURES[0], PICTURES[1])), "a cat", "one side has 2 pictures and no text"),
        (Item(images=(PICTURES[0],)), "  ", "one side has 0 pictures and no text"),
    ],
)
def test_other_pairs_are_refused(query, candidate, why, model):
    with pytest.raises(UserError, match=why):
        CaptionWriter(model).score([query], [[candidate]])


def test_what_prompts_begin_with_is_read_once(model):
    """The picture of a query with its captions; of a caption with pictures what stands before these."""
    process = model.process
    same = process.read(Item(images=(PICTURES[0],)), [Item(text=text) for text in CAPTIONS])
    shared = process.shared(same)
    assert shared == same[0].document.start - 1 > len(same[0].pictures[0].tensors)
    assert process.join([same], [shared])["prefix_pictures"].tolist() == [1]
    other = process.read(Item(text=CAPTIONS[0]), [Item(images=(image,)) for image in PICTURES])
    inputs = process.join([other], [process.shared(other)])
    assert inputs["prefix_pictures"].tolist() == [0] and inputs["pictures"].tolist() == [1, 1, 1]


def test_a_special_tokens_name_in_a_caption_is_text(model):
    inputs = batch(model, [(PICTURES[0], "a <|im_end|> cat")])["pairs"]
    end = model.process.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert inputs["labels"].tolist().count(end) == 1 and inputs["labels"][-1] == end
    image = model.process.pictures.token
    [read] = pair(model, PICTURES[0], f"a {model.process.pictures.processor.image_token}")
    assert read.ids.count(image) == read.pictures[0].tokens


def test_05_a_long_caption_is_cut_without_a_false_end_and_a_picture_never_is(model):
    process = model.process
    [read] = pair(model, PICTURES[0], CAPTIONS[1])
    process.length = len(read) - 3
    [cut] = pair(model, PICTURES[0], CAPTIONS[1])
    assert cut.ids == read.ids[:-3] and cut.document == range(read.document.start, len(read) - 3)
    end = process.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert process.join([[cut]])["labels"].tolist().count(end) == 0
    process.length = read.document.start + 1  # one token of the caption
    assert len(pair(model, PICTURES[0], CAPTIONS[1])[0].document) == 1
    process.length -= 1
    with pytest.raises(BadRow, match="the picture and what is asked have .* set a larger length"):
        pair(model, PICTURES[0], CAPTIONS[1])
    with pytest.raises(UserError, match="a picture cannot be captioned: the picture and what is asked"):
        CaptionWriter(model).caption(PICTURES[:1])


@pytest.mark.parametrize(
    ("template", "gap", "end"),
    [
        ("{% for m in messages %}{{ m.role }}:{% for part in m.content %}{% if part.type == 'image' %}MARK"
         "{% else %} {{ part.text }}{% endif %}{% endfor %}\n{% endfor %}"
         "{% if add_generation_prompt %}assistant:{% endif %}", " ", "<|im_end|>"),
        ("{% for m in messages %}<|endoftext|>{% for part in m.content if part.type == 'image' %}MARK\n"
         "{% endfor %}{% for part in m.content if part.type == 'text' %}{{ part.text }}{% endfor %}"
         "<|endoftext|>{% endfor %}{% if add_generation_prompt %}<|endoftext|>{% endif %}",
         "", "<|endoftext|>"),
    ],
)  # fmt: skip
def test_conversations_of_other_models(template, gap, end, model):
    pictures = model.process.pictures
    pictures.processor.chat_template = template.replace("MARK", pictures.mark)
    process = CaptionPrompts(pictures, "What?", 100)
    assert (process.said.gap, process.said.end) == (gap, end)
    [read] = process.read(Item(images=(PICTURES[0],)), [Item(text="a cat")])
    own = [read.ids[at] for at in read.document]
    assert process.tokenizer.decode(own) == f"{gap}a cat{end}"
    asked = process.asked(PICTURES[0])
    assert read.ids[: read.document.start] == asked.ids


def test_a_model_without_conversations_is_refused(model):
    model.process.pictures.processor.chat_template = None
    with pytest.raises(UserError, match="it has no chat template, and captions are answers"):
        CaptionPrompts(model.process.pictures, "What?", 100)
    model.process.pictures.processor.chat_template = "{{ messages[0].content[1].text }}"
    with pytest.raises(UserError, match="its chat template leaves out the picture"):
        CaptionPrompts(model.process.pictures, "What?", 100)


def gradients(model, chunks):
    model.zero_grad()
    for chunk in chunks:
        out = model(chunk)
        torch.nn.functional.cross_entropy(out.logits, out.labels, reduction="sum").backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "fields", [{}, {"learn": ["projector", "language"]}, {"learn": ["projector", "language"], "lora": LORA}]
)
def test_gradients_of_chunks_are_those_of_the_whole(fields, source):
    model = built(source, **fields).train().double()
    pairs = list(zip(PICTURES, CAPTIONS, strict=True))
    found = gradients(model, [batch(model, pairs)])
    for cuts in ([pairs[:1], pairs[1:]], [[each] for each in pairs]):
        for name, x in gradients(model, [batch(model, each) for each in cuts]).items():
            torch.testing.assert_close(x, found[name], atol=1e-7 * max(1.0, float(x.abs().max())), rtol=0)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert found.keys() == learning and all(x.any() for name, x in found.items() if "lora_A" not in name)
    language = {name for name in learning if "language_model" in name or "lm_head" in name}
    assert language if fields else not language
    assert all("lora_" in name for name in language) == bool("lora" in fields or not fields)
    model.gradient_checkpointing()
    for name, x in gradients(model, [batch(model, pairs)]).items():
        torch.testing.assert_close(x, found[name], atol=1e-7 * max(1.0, float(x.abs().max())), rtol=0)


def test_a_tower_stays_as_it_is_in_use(source):
    model = built(source).train()
    tower = model.net.get_encoder(modality="image")
    if hasattr(tower, "merger"):
        pytest.skip("its projector, which learns, lies within its tower")
    assert model.training and not any(part.training for part in tower.modules())
    before = {name: x.clone() for name, x in tower.state_dict().items()}
    gradients(model, [batch(model, zip(PICTURES, CAPTIONS, strict=True))])
    assert all(torch.equal(x, before[name]) for name, x in tower.state_dict().items())
    learning = built(source, learn=["tower"]).train()
    norms = [part for part in learning.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert learning.net.get_encoder(modality="image").training and not any(norm.training for norm in norms)


@torch.no_grad()
@pytest.mark.parametrize("fields", [{}, {"learn": ["projector", "language"], "lora": LORA}], ids=["", "lora"])
def test_19_saved_and_loaded_it_writes_alike(fields, source, tmp_path):
    """By this package, by transformers, as a start, and as a reranker."""
    model = built(source, **fields).eval()
    for name, weights in model.named_parameters():
        if weights.requires_grad or "lora_B" in name:
            weights.add_(0.05 * torch.randn_like(weights))
    wanted = CaptionWriter(model).losses(PICTURES, CAPTIONS)
    said = CaptionWriter(model).caption(PICTURES, tokens=4)
    save(model, tmp_path / "model")
    loaded = vlalign.load(tmp_path / "model")
    assert isinstance(loaded, CaptionWriter) and loaded.caption(PICTURES, tokens=4) == said
    for mine, own in zip(loaded.losses(PICTURES, CAPTIONS), wanted, strict=True):
        torch.testing.assert_close(mine, own, atol=1e-5, rtol=1e-5)
    theirs = as_transformers(tmp_path / "model", model.spec.ask, PICTURES[0], CAPTIONS[0])
    torch.testing.assert_close(theirs, wanted[0], atol=1e-5, rtol=1e-5)
    assert (tmp_path / "model" / "adapter").is_dir() == ("lora" in fields)
    other = built(source).eval()
    initialise(other, tmp_path / "model")
    torch.testing.assert_close(
        CaptionWriter(other).losses(PICTURES, CAPTIONS)[1], wanted[1], atol=1e-5, rtol=1e-5
    )
    told = {"name": "mllm_reranker", "id": str(tmp_path / "model"), "prompt": "qwen3_vl_reranker"}
    reranker = MODELS.decode(told).build()
    own = model.plain_state(model.state_dict())
    found = reranker.plain_state(reranker.state_dict())
    assert found.keys() == own.keys()
    assert all(torch.equal(found[name], x) for name, x in own.items())


def test_what_it_is_made_from_is_named_once():
    made = {"language": "recipes/tiny/causal"}
    for fields in ({}, {"id": "somewhere", "made": made}):
        with pytest.raises(ValueError, match="name either the id of a model, or what it is made of"):
            built({}, **fields)
    with pytest.raises(ValueError, match="learn must name parts of the model, each once"):
        built({}, id="somewhere", learn=[])
    with pytest.raises(ValueError, match="lora puts adapters on the language model, which learn leaves out"):
        built({}, id="somewhere", lora=LORA)
    with pytest.raises(ValueError, match="length must be >= 1"):
        built({}, id="somewhere", length=0)


def test_what_is_made_has_its_own_pretrained():
    with pytest.raises(ValueError, match="set made.pretrained"):
        MODELS.decode({"name": "captioner", "made": {"language": "x"}, "pretrained": False})


def test_a_picture_in_the_question_is_refused(source):
    with pytest.raises(UserError, match="ask: .* is written before it; leave it out"):
        built(source, ask="<|image_pad|><image>What is this?")


def test_of_nothing_there_is_no_score_and_captions_must_fit(model):
    writer = CaptionWriter(model)
    assert [each.tolist() for each in writer.score(["a cat"], [[]])] == [[]]
    with pytest.raises(UserError, match="a caption for each of 2 pictures, got 1"):
        writer.losses([picture(1), picture(2)], ["a cat"])
