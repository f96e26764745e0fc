"""What a multimodal model is shown is whole, is the right picture, and is what it is trained on."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import vlalign
from tests.multimodal_models import FAMILIES, multimodal_model, picture, reranker
from vlalign.data.candidate_rows import CandidateRows
from vlalign.data.candidates import Candidates
from vlalign.data.chunks import Key
from vlalign.data.sampler import Order
from vlalign.data.samplers.random import Random
from vlalign.models.rerank_scorer import RerankScorer
from vlalign.models.weights import save
from vlalign.types import BadRow, Item, UserError

QUERY = Item(text="a red car", images=(picture(0, 64, 40),))
CANDIDATES = [
    Item(images=(picture(1),)),
    Item(text="a cat", images=(picture(2, 80, 40), picture(3))),
    Item(text="a dog in the house"),
    Item(images=(picture(4),)),  # of the same size as the first
]
WORDS = Item(text="a small cat")
LORA = {"rank": 2, "alpha": 4.0}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / request.param
    multimodal_model(folder, request.param)
    return request.param, folder


@pytest.fixture
def model(family):
    return reranker(family[1], family[0])


def as_transformers(folder: Path, query: Item, candidates: list[Item], model) -> list[float]:
    """Each pair on its own, through the processor and the whole network, as their makers do."""
    net = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    mark = {"smolvlm": "<image>", "llava": "<image>"}.get(
        folder.name, "<|vision_start|><|image_pad|><|vision_end|>"
    )
    head, middle, tail = (
        "".join(model.process.pieces[:3]).replace("instruction", model.process.template.instruction),
        model.process.pieces[4],
        model.process.pieces[6],
    )
    yes, no = (processor.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("yes", "no"))
    found = []
    for each in candidates:
        told = (mark * len(item.images) + item.text for item in (query, each))
        text = head + middle.join(told) + tail
        images = [*query.images, *each.images] or None
        inputs = processor(text=[text], images=[images] if images else None, return_tensors="pt")
        if not images:
            inputs = processor.tokenizer([text], return_tensors="pt", add_special_tokens=False)
        logits = net(**inputs).logits[0, -1]
        found.append(float(logits[yes] - logits[no]))
    return found


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 100_000])
@pytest.mark.parametrize("share", [True, False])
def test_scores_are_those_of_transformers(share, tokens, family, model):
    model.process.share = share
    scores = RerankScorer(model, tokens).score([QUERY, WORDS], [CANDIDATES, CANDIDATES])
    for query, found in zip((QUERY, WORDS), scores, strict=True):
        wanted = as_transformers(family[1], query, CANDIDATES, model)
        torch.testing.assert_close(found, torch.tensor(wanted), atol=1e-5, rtol=1e-5)
        assert len({round(score, 3) for score in wanted}) == len(CANDIDATES)


@torch.no_grad()
def test_a_batch_scores_as_its_pairs_do(model):
    """The forward that trains, over several queries with and without pictures."""
    groups = [(QUERY, CANDIDATES), (WORDS, CANDIDATES[:3]), (WORDS, CANDIDATES[2:3]), (QUERY, CANDIDATES[3:])]
    batch = {"pairs": model.process.join([model.process.read(*each) for each in groups])}
    alone = RerankScorer(model).score(*zip(*groups, strict=True))
    torch.testing.assert_close(model(batch).scores, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_05_a_picture_is_never_cut(family, model):
    process, token = model.process, model.process.pictures.token
    item = Item(text="a cat near a tree " * 20, images=(picture(2, 80, 40), picture(3)))
    whole = process.one(QUERY, item)
    wanted = sum(each.tokens for each in whole.pictures)
    for each in whole.pictures:
        if "image_grid_thw" in each.tensors:
            assert each.tokens == int(each.tensors["image_grid_thw"].prod()) // 4  # merged 2 by 2
    assert whole.ids.count(token) == wanted > 0
    process.length = len(whole) - len(whole.document) + 7
    cut = process.one(QUERY, item)
    assert (len(cut), len(cut.document), cut.ids.count(token)) == (process.length, 7, wanted)
    assert cut.ids == whole.ids[: cut.document.stop] + whole.ids[whole.document.stop :]
    process.length -= 8  # not even without a word of the document
    with pytest.raises(BadRow, match="the prompt without its document has .* set a larger length"):
        process.one(QUERY, item)


def test_05_a_large_picture_is_made_smaller_where_that_is_asked_for(tmp_path):
    folder = multimodal_model(tmp_path / "vl", "qwen3_vl")
    few, many = (reranker(folder, "qwen3_vl", pixels=pixels) for pixels in (1024, None))
    large = picture(0, 128, 32)
    shown = [model.process.pictures.read(large).tokens for model in (few, many)]
    assert shown == [4, 16]  # 64 x 16 and 128 x 32 pixels, 16 x 16 of them a token


def test_pictures_that_look_alike_in_tokens_are_not_read_as_one(model):
    """Those of a query are shared by its prompts; two documents' are not, though their tokens are equal."""
    read = model.process.read(QUERY, [CANDIDATES[0], CANDIDATES[3]])
    assert read[0].ids == read[1].ids and read[0].keys != read[1].keys
    inputs = model.process.join([read])
    assert inputs["prefix_pictures"].tolist() == [1] and inputs["pictures"].tolist() == [1, 1]
    same = model.process.read(QUERY, [CANDIDATES[0], CANDIDATES[0]])
    assert model.process.join([same])["prefix_pictures"].tolist() == [2]


@torch.no_grad()
def test_a_picture_that_comes_again_is_not_looked_at_again(model):
    looked = []
    model.reading.sight.body.get_encoder(modality="image").register_forward_hook(lambda *_: looked.append(1))
    scorer = RerankScorer(model)
    first = scorer.score([WORDS], [CANDIDATES])
    assert looked
    looked.clear()
    torch.testing.assert_close(scorer.score([WORDS], [CANDIDATES[::-1]])[0].flip(0), first[0])
    assert not looked
    model.train()  # other weights may come
    scorer.score([WORDS], [CANDIDATES])
    assert looked


def broken(folder: Path) -> Path:
    """Four rows: a good one, and ones whose pictures are cut short, missing, and no picture."""
    picture(0).save(folder / "good.png")
    data = (folder / "good.png").read_bytes()
    (folder / "cut.png").write_bytes(data[: len(data) // 2])
    (folder / "text.png").write_text("no picture")
    rows = [
        {"id": name, "query": {"text": "a car", "image": f"{name}.png"}, "candidates": ["right", "wrong"]}
        for name in ("good", "cut", "missing", "text")
    ]
    for row in rows:
        row["candidates"] = [{"text": text, "label": int(text == "right")} for text in row["candidates"]]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_06_a_broken_picture_is_counted_and_never_scored(tmp_path):
    folder = multimodal_model(tmp_path / "vl", "qwen3_vl")
    source = CandidateRows(broken(tmp_path), "not stated")
    model = reranker(folder)
    order = Order(sampler=Random(), rows=len(source), batch=4, seed=0)
    chunks = Candidates(source=source, order=order, process=model.process)
    batch = chunks[Key(0, 0, 4)]
    assert batch["ids"] == ["good"]
    assert sorted(batch["bad"]) == [
        ("cut", "truncated"),
        ("missing", "missing_file"),
        ("text", "not_an_image"),
    ]
    save(model, tmp_path / "model")
    scorer = vlalign.load(tmp_path / "model")
    for name, reason in (("cut", "truncated"), ("missing", "missing_file"), ("text", "not_an_image")):
        with pytest.raises(UserError, match=f"{name}.png: {reason}"):
            scorer.score([Item(text="a car")], [[tmp_path / f"{name}.png"]])
    assert scorer.score([tmp_path / "good.png"], [["right", "wrong"]])[0].isfinite().all()


def gradients(model, groups, chunk: int) -> dict[str, torch.Tensor]:
    """Of a sum over queries, `chunk` of them in a forward."""
    model.zero_grad()
    read = [model.process.read(*each) for each in groups]
    for start in range(0, len(read), chunk):
        answer = model({"pairs": model.process.join(read[start : start + chunk])})
        (answer.scores.tanh().sum() + answer.yes.sin().sum()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_alike(found, wanted):
    assert found.keys() == wanted.keys() and found
    for name, x in wanted.items():
        torch.testing.assert_close(found[name], x, atol=2e-5 * max(1.0, float(x.abs().max())), rtol=0)


@pytest.mark.parametrize("fields", [{"learn": ["language", "projector", "tower"]}, {"lora": LORA}])
def test_17_gradients_of_chunks_are_those_of_the_whole(fields, family):
    """Pictures, rows of text alone and several pictures in a row, in chunks of any size."""
    model = reranker(family[1], family[0], **fields).train()
    groups = [(QUERY, CANDIDATES), (WORDS, CANDIDATES[2:3]), (WORDS, CANDIDATES[:3]), (QUERY, CANDIDATES[1:])]
    whole = gradients(model, groups, 4)
    assert all(("lora_" in name) == ("lora" in fields) for name in whole)
    for chunk in (1, 3):
        assert_alike(gradients(model, groups, chunk), whole)
    model.process.share = False
    assert_alike(gradients(model, groups, 2), whole)


def test_17_what_sees_learns_nothing_from_texts_and_is_not_forgotten(family):
    """Or processes whose rows have no picture would wait for those that have one."""
    model = reranker(family[1], family[0], learn=["projector"]).train()
    found = gradients(model, [(WORDS, [WORDS, CANDIDATES[2]])], 1)
    assert found and all("language_model" not in name and not x.any() for name, x in found.items())
    assert any(x.any() for x in gradients(model, [(QUERY, CANDIDATES)], 1).values())


def test_a_tower_that_does_not_learn_stays_as_it_is(family):
    model = reranker(family[1], family[0]).train()
    tower = model.reading.sight.body.get_encoder(modality="image")
    assert model.training and not tower.training and not any(p.requires_grad for p in tower.parameters())
    assert all(
        "visual" not in name and "vision" not in name for name in gradients(model, [(QUERY, CANDIDATES)], 1)
    )


@torch.no_grad()
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_19_saved_merged_and_reloaded_scores_are_equal(lora, family, tmp_path):
    model = reranker(family[1], family[0], lora=lora, layer=2)
    for name, weights in model.named_parameters():
        if weights.requires_grad or "lora_B" in name:
            weights.add_(0.05 * torch.randn_like(weights))
    before = RerankScorer(model).score([QUERY], [CANDIDATES])[0]
    save(model, tmp_path / "model")
    loaded = vlalign.load(tmp_path / "model").score([QUERY], [CANDIDATES])[0]
    torch.testing.assert_close(loaded, before, atol=1e-5, rtol=1e-5)
    assert (tmp_path / "model" / "adapter").is_dir() == (lora is not None)
    again = (
        as_transformers(tmp_path / "model", QUERY, CANDIDATES, model) if family[0] == "qwen3_vl" else before
    )
    torch.testing.assert_close(torch.as_tensor(again), before, atol=1e-5, rtol=1e-5)
    assert len(load_file(tmp_path / "model" / "model.safetensors")) > 10


def test_a_model_of_texts_is_refused(tmp_path):
    from tests.language_models import language_model

    folder = language_model(tmp_path / "lm")
    with pytest.raises(UserError, match="transformers|llm_reranker"):
        reranker(folder, "qwen3_vl")


def test_what_learns_is_named_well(tmp_path):
    folder = multimodal_model(tmp_path / "vl", "llava")
    with pytest.raises(ValueError, match="learn must name parts of the model, each once"):
        reranker(folder, "llava", learn=[])
    with pytest.raises(ValueError, match="lora puts adapters on the language model, which learn leaves out"):
        reranker(folder, "llava", learn=["projector"], lora=LORA)


@pytest.mark.parametrize("kind", ["qwen3_vl", "qwen2_5_vl", "llava"])
def test_19_sentence_transformers_gives_the_same_scores_of_pictures(kind, tmp_path):
    models = pytest.importorskip("sentence_transformers", reason="needs vlalign[bench]")
    model = reranker(multimodal_model(tmp_path / kind, kind), kind)
    save(model, tmp_path / "model")
    queries = [QUERY, WORDS]
    candidates = [CANDIDATES[0], CANDIDATES[2], Item(text="a cat", images=(picture(2, 80, 40),))]
    ours = torch.stack(RerankScorer(model).score(queries, [candidates] * 2)).flatten()

    def told(item: Item) -> object:
        both = {"text": item.text, "image": item.images[0] if item.images else None}
        some = {name: value for name, value in both.items() if value}
        return some if len(some) > 1 else next(iter(some.values()))

    pairs = [(told(query), told(each)) for query in queries for each in candidates]
    theirs = models.CrossEncoder(str(tmp_path / "model"), device="cpu").predict(pairs, batch_size=2)
    torch.testing.assert_close(torch.tensor(theirs), ours, atol=1e-5, rtol=1e-5)
