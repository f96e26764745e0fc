"""A language model embeds as transformers' own states do, learns what it should, and is what is saved."""

import json
import pickle

import pytest
import torch
import transformers
from safetensors import safe_open
from torch.nn import functional as F

import vlalign
from tests.language_models import language_model
from tests.multimodal_models import FAMILIES, multimodal_model, picture
from tests.unit.train.test_step import OneProcess, close
from vlalign.infer.load import load_embedder
from vlalign.models.card import Facts, card
from vlalign.models.embedder import DualEncoderEmbedder
from vlalign.models.parcel import collect, read_texts
from vlalign.models.soup import gather, mix
from vlalign.models.weights import initialise, save
from vlalign.recipe.decode import load_recipe
from vlalign.registry import MODELS, TASKS
from vlalign.train.loop import train
from vlalign.train.plan.forecast import forecast
from vlalign.train.step import cached, merge
from vlalign.types import Embeddings, RecipeError, UserError

PICTURES = [picture(0, 64, 40), picture(1), picture(2, 80, 40), picture(3)]
TEXTS = ["a red car", "a small cat near a tree, with a dog in the house", "yes", "a blue <|im_end|> car"]
IMAGE, TEXT = "\nSummarize above image in one word: ", "\nSummarize above sentence in one word: "
LORA = {"rank": 2, "alpha": 4.0}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return multimodal_model(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return multimodal_model(tmp_path_factory.mktemp("models") / "qwen", "qwen2_5_vl")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return language_model(tmp_path_factory.mktemp("models") / "words", "llama", tied=False)


def built(folder, **fields):
    torch.manual_seed(0)
    return MODELS.decode({"name": "mllm_embedder", "id": str(folder), **fields}).build()


def moved(model, amount=0.05):
    """The same model after its learning weights went somewhere."""
    torch.manual_seed(1)
    with torch.no_grad():
        for each in model.parameters():
            if each.requires_grad:
                each.add_(torch.randn_like(each), alpha=amount)
    return model


def rows(model):
    embedder = DualEncoderEmbedder(model)
    return torch.cat([embedder.encode_image(PICTURES), embedder.encode_text(TEXTS)])


def batch(model, images, texts, start=0):
    image, text = model.processors()
    count = torch.arange(start, start + len(images))
    fields = {"row": count}
    sides = {"query": image(images), "key": text(texts), "query_fields": fields, "key_fields": fields}
    return {**sides, "ids": [str(each) for each in count.tolist()]}


@torch.no_grad()
def by_hand(folder, shown, pool, net=None):
    """One picture's or text's row by transformers alone, its conversation written by the processor."""
    sees = not isinstance(shown, str)
    net = net or transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    said = [{"type": "image"}] if sees else [{"type": "text", "text": shown}]
    said.append({"type": "text", "text": IMAGE if sees else TEXT})
    told = [{"role": "user", "content": said}]
    text = processor.apply_chat_template(told, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[text], **({"images": [[shown]]} if sees else {}), return_tensors="pt")
    states = net.base_model(**inputs).last_hidden_state[0]
    row = states[-1] if pool == "last" else sum(states[at] for at in range(len(states))) / len(states)
    return row / row.norm()


@pytest.mark.parametrize("pool", ["last", "mean"])
def test_rows_are_those_of_transformers(folder, pool):
    model = built(folder, pool=pool).eval()
    found = rows(model)
    shown = [*PICTURES, *(text.replace("<|im_end|>", "< |im_end|>") for text in TEXTS)]
    for row, each in zip(found, shown, strict=True):
        torch.testing.assert_close(row, by_hand(folder, each, pool), atol=1e-5, rtol=1e-5)
    assert found.shape == (8, 32) and (found @ found.T - torch.eye(8)).max() < 1 - 1e-4  # all differ


@torch.no_grad()
@pytest.mark.parametrize("pool", ["last", "mean"])
def test_neither_company_nor_padding_changes_a_row(folder, pool):
    model = built(folder, pool=pool).eval()
    process = model.image.process
    for shown in (PICTURES, TEXTS, [TEXTS[1], PICTURES[0], TEXTS[0], PICTURES[2]]):
        inputs = process(shown)
        together = model.encode_image(inputs)
        alone = torch.cat([model.encode_text(process([each])) for each in shown])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
        longer = {name: F.pad(inputs[name], (0, 7)) for name in ("input_ids", "mask")}
        torch.testing.assert_close(model.encode_image(inputs | longer), alone, atol=1e-5, rtol=1e-5)
    by_size = DualEncoderEmbedder(model, batch=1)
    torch.testing.assert_close(
        torch.cat([by_size.encode_image(PICTURES), by_size.encode_text(TEXTS)]), rows(model)
    )


def test_one_network_is_there_once(qwen):
    model = built(qwen)
    net = transformers.AutoModelForImageTextToText.from_pretrained(qwen)
    own = sum(each.numel() for each in net.parameters())
    assert sum(each.numel() for each in model.parameters()) == own + 2  # the scale and the bias
    assert {id(each) for each in model.text.parameters()} <= {id(each) for each in model.parameters()}
    assert all(name.startswith("image.net.") for name in {*model.state_dict()} - {"scale", "bias"})
    learned = [name for name, each in model.named_parameters() if each.requires_grad]
    assert len({*learned}) == len(learned)
    assert not any("visual" in name or "embed_tokens" in name or "lm_head" in name for name in learned)
    optimizer = load_recipe("recipes/tiny/mllm_embedder_soft_labels.yaml").optim.build(model)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(learned)


def test_the_saved_folder_is_transformers_own_and_gives_equal_rows(folder, tmp_path):
    model = moved(built(folder, pool="mean", scale={"init": 20.0}, bias={"init": -1.0}))
    model.scale.data.fill_(2.5)
    before = rows(model)
    save(model, tmp_path / "model")
    loaded = load_embedder(tmp_path / "model").model
    assert torch.equal(rows(loaded), before)
    assert torch.equal(loaded.scale, model.scale) and torch.equal(loaded.bias, model.bias)
    net, told = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not any(told[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert {*file.keys()} <= {*net.state_dict()}
    save(loaded, tmp_path / "again")
    assert torch.equal(rows(load_embedder(tmp_path / "again").model), before)
    fresh = built(folder, pool="mean")
    initialise(fresh, tmp_path / "model")
    assert torch.equal(rows(fresh), before) and torch.equal(fresh.scale, model.scale)


def test_a_multiplier_at_its_most_is_saved(words, tmp_path):
    model = built(words, scale={"init": 100.0})
    model.clamp_scale()
    save(model, tmp_path / "model")
    assert torch.equal(load_embedder(tmp_path / "model").model.scale, model.scale)


def test_adapters_alone_learn_and_are_saved_merged_and_apart(folder, tmp_path):
    from peft import PeftModel

    model = built(folder, lora=LORA)
    base = rows(model)
    torch.testing.assert_close(base, rows(built(folder)), atol=1e-6, rtol=1e-5)  # as yet they add nothing
    learned = {name for name, each in model.named_parameters() if each.requires_grad}
    decoder = {id(each) for each in model.net.get_decoder().parameters()}
    assert learned and all(".lora_" in name or name == "scale" for name in learned)
    assert all(id(model.get_parameter(name)) in decoder for name in learned - {"scale"})
    still = {name: each.clone() for name, each in model.state_dict().items() if name not in learned}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3):
        out = model(batch(model, PICTURES, TEXTS))
        (out.query * out.key).sum().neg().backward()
        optimizer.step()
        optimizer.zero_grad()
    after = rows(model)
    assert (after - base).abs().max() > 1e-3
    assert all(torch.equal(each, still[name]) for name, each in model.state_dict().items() if name in still)
    save(model, tmp_path / "model")
    assert {each.name for each in (tmp_path / "model" / "adapter").iterdir()} >= {"adapter_config.json"}
    torch.testing.assert_close(rows(load_embedder(tmp_path / "model").model), after, atol=1e-5, rtol=1e-4)
    net = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    PeftModel.from_pretrained(net, tmp_path / "model" / "adapter").eval()
    for row, each in zip(after, PICTURES, strict=False):
        torch.testing.assert_close(by_hand(folder, each, "last", net), row, atol=1e-5, rtol=1e-4)
    plain = model.plain_state(model.state_dict())
    merged = built(folder)
    merged.load_state_dict(plain)
    torch.testing.assert_close(rows(merged), after, atol=1e-5, rtol=1e-4)


def test_adapters_and_a_projector_learn_together(qwen):
    model = built(qwen, lora=LORA, learn=["language", "projector"])
    learned = [name for name, each in model.named_parameters() if each.requires_grad and name != "scale"]
    assert {".lora_" in name for name in learned} == {True, False}
    assert all("merger" in name for name in learned if ".lora_" not in name)


@pytest.mark.parametrize("fields", [{}, {"lora": LORA}, {"learn": ["language", "projector", "tower"]}])
def test_cached_gradients_are_the_direct_ones(qwen, fields):
    task = TASKS.decode({"name": "align", "targets": "identity", "terms": [{"objective": "info_nce"}]})
    model = moved(built(qwen, **fields))
    chunks = [batch(model, PICTURES[:1], TEXTS[:1]), batch(model, PICTURES[1:], TEXTS[1:], start=1)]

    def learned():
        found = {name: each.grad for name, each in model.named_parameters() if each.requires_grad}
        assert all(each is not None for each in found.values()), "DDP would wait"
        model.zero_grad()
        return found

    cached(OneProcess(), model, chunks, task, step=1, total=10, divisor=4.0)
    in_chunks = learned()
    loss = task.loss(Embeddings.cat([model(chunk) for chunk in chunks]), merge(chunks), 1, 10)
    (loss.total / 4.0).backward()
    direct = learned()
    close(in_chunks, direct, 1e-5)
    assert any("layers" in name and each.abs().max() > 1e-4 for name, each in direct.items())
    model.gradient_checkpointing()
    cached(OneProcess(), model, chunks, task, step=1, total=10, divisor=4.0)
    close(learned(), direct, 1e-5)


@torch.no_grad()
def test_a_causal_model_reads_texts_alone(words, tmp_path):
    model = moved(built(words, lora=LORA, prompt={"text": "{text} in one word:", "chat": False}))
    found = DualEncoderEmbedder(model).encode_text(TEXTS)
    save(model, tmp_path / "model")
    net = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    for row, text in zip(found, TEXTS[:3], strict=False):
        ids = torch.tensor([tokenizer(f"{text} in one word:")["input_ids"]])
        wanted = net.model(ids).last_hidden_state[0, -1]
        torch.testing.assert_close(row, wanted / wanted.norm(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        load_embedder(tmp_path / "model").encode_text(TEXTS), found, atol=1e-5, rtol=1e-4
    )
    with pytest.raises(UserError, match="reads texts alone, and got a picture"):
        load_embedder(tmp_path / "model").encode_image(PICTURES)
    with pytest.raises(UserError, match="no part that sees"):
        built(words, learn=["projector"])


def test_a_long_text_loses_its_end_and_a_picture_nothing(qwen):
    process = built(qwen, length=40).image.process
    long, longer = (process.read(" ".join(["cat"] * count)).ids for count in (200, 300))
    assert len(long) == 40 and long == longer
    said = process.tokenizer.decode(long)
    assert said.startswith("<|im_start|>user\ncat cat") and said.endswith(
        f"{TEXT}<|im_end|>\n<|im_start|>assistant\n"
    )
    many = process.read(picture(0, 200, 200))
    assert len(many) > 40 and sum(id == process.pictures.token for id in many.ids) == many.pictures[0].tokens
    assert len(built(qwen, pixels=256).image.process.read(picture(0, 200, 200))) < len(many)


def test_what_reads_is_pickled_and_told(qwen):
    process = built(qwen).image.process
    again = pickle.loads(pickle.dumps(process))
    for name, each in process([*PICTURES, *TEXTS]).items():
        assert torch.equal(each, again([*PICTURES, *TEXTS])[name])
    assert again.describe() == process.describe()
    others = [
        built(qwen, **each).image.process
        for each in ({"pixels": 512}, {"length": 40}, {"prompt": {"chat": False}})
    ]
    again.pictures.mark = "<|image_pad|>"
    assert len({process.describe(), again.describe(), *(each.describe() for each in others)}) == 5
    assert built(qwen, prompt=vars(process.written)).image.process.describe() == process.describe()


def test_mistakes_are_sentences(qwen):
    for prompt, told in (
        ({"image": "in one word"}, r"image must have the place \{image\} once"),
        ({"text": "{text} {query}"}, r"text has the place \{query\}, which is a reranker's"),
        ({"text": "{text} {image}"}, "one here has both places; take one out"),
    ):
        with pytest.raises(Exception, match=told):
            built(qwen, prompt=prompt)
    with pytest.raises(UserError, match="5 tokens are read, and prompt.text has more"):
        built(qwen, length=5)
    with pytest.raises(UserError, match="has positions for 1024"):
        built(qwen, length=2000)


def test_it_learns_from_pairs_is_measured_loads_and_has_a_mean(tmp_path):
    lines = [{"id": str(at), "image": f"{at}.png", "caption": TEXTS[at % 3] + f" {at}"} for at in range(12)]
    for at in range(12):
        picture(at, 40 + 8 * (at % 3)).save(tmp_path / f"{at}.png")
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in lines))
    data = f"{{name: jsonl, path: {tmp_path / 'rows.jsonl'}, id: id}}"
    term = "[{objective: info_nce}]"
    targets = "{name: identity, same: [row]}"
    sides = "[query_to_key, key_to_query]"
    task = f"{{name: align, targets: {targets}, terms: {term}, directions: {sides}}}"
    evals = f"[{{name: retrieval, dataset: own, data: {data}}}]"
    outs = []
    for seed in (0, 1):
        changes = [f"out={tmp_path / str(seed)}", f"data.train={data}", "log.trackers=[]", f"seed={seed}"]
        changes += [f"task={task}", f"evals={evals}", "optim.lr=0.003", "steps=6"]
        changes += ["model.scale={init: 10, learn: true}", "data.batch=12", "data.chunk=4"]
        changes += ["model.pretrained=true", f"model.id={multimodal_model(tmp_path / 'qwen', 'qwen3_vl')}"]
        outs.append(train(load_recipe("recipes/tiny/mllm_embedder_soft_labels.yaml", changes)))
    log = [json.loads(line) for line in (outs[0] / "log.jsonl").read_text().splitlines()][1:]
    assert len(log) == 6 and log[-1]["loss"] < log[0]["loss"] and log[-1]["scale"] != 10
    (row,) = json.loads((outs[0] / "metrics.json").read_text())
    model = vlalign.load(outs[0])
    images = model.encode_image([tmp_path / f"{at}.png" for at in range(12)])
    right = images @ model.encode_text([each["caption"] for each in lines]).T
    hits = sum(int(scores.argmax() == at) for at, scores in enumerate(right)) / 12
    assert row["metrics"]["image_to_text_R@1"] == pytest.approx(hits)
    folders = gather([str(each) for each in outs], tmp_path / "scratch")
    mix(folders, [0.5, 0.5], tmp_path / "mean")
    mean, *own = (load_embedder(each).model.state_dict() for each in (tmp_path / "mean", *outs))
    for name in set(mean) - {"scale"}:
        torch.testing.assert_close(mean[name], (own[0][name] + own[1][name]) / 2)


def test_it_learns_from_texts_with_candidates_and_its_tower_rests(tmp_path):
    changes = [f"out={tmp_path / 'out'}", "log.trackers=[]", "data.train.path=recipes/tiny/candidates.jsonl"]
    changes += ["model.learn=[language, projector, tower]", "gradient_checkpointing=false"]
    out = train(load_recipe("recipes/tiny/mllm_embedder_soft_labels.yaml", changes))
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()][1:]
    assert len(log) == 3 and all(line["norm"] > 0 for line in log)
    model = built("recipes/tiny/multimodal", pretrained=False, learn=["language", "projector", "tower"])
    model.rest("image")
    learned = [name for name, each in model.named_parameters() if each.requires_grad]
    assert learned and not any("visual" in name for name in learned)
    model.rest("text")
    assert learned == [name for name, each in model.named_parameters() if each.requires_grad]


def test_its_card_offers_no_pipeline_that_would_not_know_its_prompt(qwen, tmp_path):
    save(built(qwen, lora=LORA), tmp_path / "model")
    files = collect(tmp_path / "model")
    told = card(Facts.read("me/it", tmp_path / "model", files, read_texts(files), "mit"))
    assert "library_name: vlalign\n" in told and "pipeline_tag: feature-extraction\n" in told
    assert "AutoModel" not in told and "`adapter/` holds what was learned" in told


def test_no_forecast_is_made_of_it():
    model = "{name: mllm_embedder, id: recipes/tiny/multimodal, pretrained: false}"
    with pytest.raises(RecipeError, match="as many tokens of a picture as that is large"):
        forecast(load_recipe("recipes/tiny/clip.yaml", [f"model={model}"]), 1, "cpu", "ddp")
