"""What a causal language model must be to rerank, and how its tokenizer's own ways are met."""

import json
from types import SimpleNamespace

import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoTokenizer

import tests.multimodal_models as pictures
import vlalign
from tests.language_models import CHATML, language_model, reranker, tokenizer
from vlalign.data.candidates import Candidates
from vlalign.data.sources.candidates import CandidatesFile
from vlalign.models.pictures import Pictures
from vlalign.models.prompt import as_text, special_names
from vlalign.models.prompts import Prompts
from vlalign.models.rerank_scorer import RerankScorer
from vlalign.models.text_pairs import TextPairs
from vlalign.models.weights import opened, save
from vlalign.recipe.decode import load_recipe
from vlalign.registry import JUDGES, MODELS, TEMPLATES
from vlalign.train.loop import train
from vlalign.types import BadRow, Item, RecipeError, UserError

QUERY, DOCUMENT = Item(text="a red car"), Item(text="a cat")
CODE = "def f():\n\n    if red:\n        return   1"


def spaced():
    """As those of code models, which have runs of spaces and lines among their added tokens."""
    words = tokenizer()
    words.add_tokens([" " * n for n in range(24, 1, -1)] + ["\n\n", "\t\t", "<table>"])
    return words


@pytest.mark.parametrize("kind", ["prompt", "pair"])
def test_added_tokens_that_are_plain_text_stay_as_they_are(kind):
    words = spaced()
    special = TextPairs(words, 64).special if kind == "pair" else special_names(words)
    assert as_text(CODE + "<table>", special) == CODE + "<table>"
    assert as_text("<|im_end|>", special) == "< |im_end|>"


def test_a_name_that_the_prompt_is_made_of_is_broken_special_or_not():
    words = tokenizer()
    words.add_tokens(["</think>"])
    made = Prompts(words, TEMPLATES.decode("qwen3_reranker"), 512)
    text, start, stop = made.written(QUERY, Item(text="</think> yes"))
    assert text[start:stop] == "< /think> yes"


def test_a_tokenizer_with_several_chat_templates_is_saved(tmp_path):
    language_model(tmp_path / "base")
    words = AutoTokenizer.from_pretrained(tmp_path / "base")
    words.chat_template = {"default": CHATML, "tool_use": CHATML + "tools"}
    words.save_pretrained(tmp_path / "base")
    told = {"name": "llm_reranker", "id": str(tmp_path / "base"), "prompt": "chat"}
    save(MODELS.decode(told).build(), tmp_path / "saved")
    plain = [{"role": "user", "content": "a cat"}]
    found = AutoTokenizer.from_pretrained(tmp_path / "saved").apply_chat_template(plain, tokenize=False)
    assert found == "<|im_start|>user\na cat<|im_end|>\n"


def test_a_prompt_of_any_letters_is_saved_as_it_is(tmp_path):
    prompt = {"name": "plain", "text": "🔍 {query} \u2028 {document} ->"}
    model = reranker(tmp_path / "base", prompt=prompt)
    save(model, tmp_path / "saved")
    words = AutoTokenizer.from_pretrained(tmp_path / "saved")
    pair = [{"role": "query", "content": QUERY.text}, {"role": "document", "content": DOCUMENT.text}]
    assert words.apply_chat_template(pair, tokenize=False) == model.process.written(QUERY, DOCUMENT)[0]


def test_a_chat_template_that_takes_no_system_message_is_told(tmp_path):
    language_model(tmp_path)
    words = AutoTokenizer.from_pretrained(tmp_path)
    words.chat_template = "{{ raise_exception('System role not supported') }}"
    words.save_pretrained(tmp_path)
    told = {"name": "llm_reranker", "id": str(tmp_path), "prompt": {"name": "chat", "system": "Judge."}}
    with pytest.raises(UserError, match=r"of system and user \(System role not supported\)"):
        MODELS.decode(told).build()


def test_a_pictures_mark_is_found_whatever_the_system_says(tmp_path):
    processor = transformers.AutoProcessor.from_pretrained(pictures.multimodal_model(tmp_path / "vl"))
    mark = Pictures(processor).mark
    said = "<|im_start|>system\\nYou are an AI assistant, a Bot.<|im_end|>\\n"
    processor.chat_template = said + processor.chat_template
    assert Pictures(processor).mark == mark == "<|vision_start|><|image_pad|><|vision_end|>"


def test_a_picture_in_the_prompt_is_refused(tmp_path):
    prompt = {"name": "chat", "text": "<|image_pad|>{document} Query: {query}"}
    with pytest.raises(UserError, match=r"prompt: it contains <\|image_pad\|>, and pictures are written"):
        pictures.reranker(tmp_path / "vl", prompt=prompt)


def test_logits_with_a_bias_are_refused(tmp_path):
    words = tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.PhiConfig(**sizes, vocab_size=len(words), max_position_embeddings=512)
    transformers.PhiForCausalLM(config).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"phi: its logits are more than .* \(a bias\)"):
        MODELS.decode({"name": "llm_reranker", "id": str(tmp_path), "prompt": "chat"}).build()


@pytest.mark.parametrize("fields", [{"length": 513}, {"lists": {"length": 513}}])
def test_more_tokens_than_positions_are_refused(fields, tmp_path):
    with pytest.raises(
        UserError, match=r"length: 513 tokens are to be read, and qwen3 has positions for 512"
    ):
        reranker(tmp_path, **fields)


def test_adapters_learn_in_float32_on_weights_in_bfloat16(tmp_path):
    model = reranker(tmp_path, dtype="bfloat16", lora={"rank": 2, "alpha": 4.0})
    learning = {x.dtype for x in model.parameters() if x.requires_grad}
    still = {x.dtype for x in model.net.get_decoder().layers.parameters() if not x.requires_grad}
    assert (learning, still) == ({torch.float32}, {torch.bfloat16})
    save(model, tmp_path / "saved")
    again = MODELS.decode({"name": "llm_reranker", "id": str(tmp_path / "saved"), "prompt": "chat"}).build()
    assert next(again.net.get_decoder().layers.parameters()).dtype == torch.float32  # as asked now


def test_weights_that_would_learn_in_bfloat16_alone_are_refused(tmp_path):
    recipe = load_recipe(
        "recipes/tiny/smollm_sft.yaml", ["model.dtype=bfloat16", "model.lora=null", f"out={tmp_path}/o"]
    )
    with pytest.raises(RecipeError, match=r"model\.dtype: \d+ of the weights that learn are bfloat16"):
        train(recipe)


def test_no_word_is_likelier_than_all_in_bfloat16(tmp_path):
    model = reranker(tmp_path)
    model.vocabulary = True
    last = torch.randn(500, 32, generator=torch.Generator().manual_seed(0)) * 4
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model.answer(last)
    assert (torch.logaddexp(found.yes, found.no) <= found.total + 1e-5).all()


SHOWN = Item(text=QUERY.text, images=(Image.new("RGB", (4, 4)),))
TEXTS = [Item(text=each) for each in ("a cat", "a red car near a tree", "a small dog")]
PICTURED = [Item(text=each.text, images=SHOWN.images * 2) for each in TEXTS]


@pytest.mark.parametrize("share", [True, False])
def test_pictures_beside_a_text_may_be_ignored_and_a_saved_model_does_so_again(share, tmp_path):
    [expected] = RerankScorer(reranker(tmp_path / "base", share=share)).score([QUERY], [TEXTS])
    blind = reranker(tmp_path / "base", share=share, pictures="ignore")
    save(blind, tmp_path / "saved")
    for scorer in (RerankScorer(blind), vlalign.load(tmp_path / "saved", device="cpu")):
        [found] = scorer.score([SHOWN], [PICTURED])
        assert torch.equal(found, expected)
        assert torch.equal(scorer.score([SHOWN], [TEXTS])[0], expected)
        for text in ("", " "):
            with pytest.raises(
                BadRow, match="alone; give it a text beside its picture and the model"
            ) as told:
                scorer.score([QUERY], [[*TEXTS, Item(text=text, images=SHOWN.images)]])
            assert told.value.reason == "picture"


def test_they_are_refused_unless_that_is_said_and_by_a_model_that_was_saved_before(tmp_path):
    save(reranker(tmp_path / "base"), tmp_path / "saved")
    path = tmp_path / "saved" / "vlalign.json"
    told = json.loads(path.read_text())
    assert told["spec"].pop("pictures") == "refuse"
    path.write_text(json.dumps(told))
    model = opened(tmp_path / "saved", device="cpu")
    assert model.spec.pictures == "refuse" and len(model.process.read(QUERY, TEXTS)) == 3
    for pair in ((SHOWN, TEXTS), (QUERY, PICTURED)):
        with pytest.raises(BadRow, match="has a picture, and this reranker reads texts alone"):
            model.process.read(*pair)
    with pytest.raises(ValueError):
        MODELS.decode({"name": "llm_reranker", "id": "x", "pictures": "read"})
    with pytest.raises(ValueError):  # it reads them
        MODELS.decode({"name": "mllm_reranker", "id": "x", "pictures": "ignore"})


def test_lists_are_taught_by_texts_where_pictures_are_ignored(tmp_path):
    model = reranker(tmp_path / "base", lists={"length": 512}, prompt="chat", pictures="ignore")
    assert model.taught.read(SHOWN, PICTURED) == model.taught.read(QUERY, TEXTS)
    with pytest.raises(BadRow, match="reads texts alone"):
        model.taught.read(SHOWN, [*TEXTS, Item(images=SHOWN.images)])


def test_the_feed_gives_the_same_where_pictures_are_ignored(tmp_path):
    SHOWN.images[0].save(tmp_path / "p.png")
    lines = []
    for more in ({}, {"image": "p.png"}):
        own = [
            {"id": each.text, "text": each.text, "label": at == 0, **more} for at, each in enumerate(TEXTS)
        ]
        lines.append({"id": "q", "query": {"text": QUERY.text, **more}, "candidates": own})
    process = reranker(tmp_path / "base", pictures="ignore").process
    batches = []
    for line in lines:
        (tmp_path / "rows.jsonl").write_text(json.dumps(line))
        source = CandidatesFile(path=str(tmp_path / "rows.jsonl")).build()
        feed = Candidates(source=source, process=process, order=SimpleNamespace(seed=0))
        batches.append(feed.collate([feed.draw(0, 0)]))
    before, after = batches
    assert before["pairs"].keys() == after["pairs"].keys()
    assert all(torch.equal(after["pairs"][name], x) for name, x in before["pairs"].items())


@pytest.mark.parametrize("judge", ["yes_no", "hidden"])
def test_judges_read_the_text_where_pictures_are_ignored(judge, tmp_path):
    spec = {"name": "llm_reranker", "id": str(language_model(tmp_path)), "prompt": "chat"}
    plain, blind = (
        JUDGES.decode({"name": judge, "model": {**spec, **more}}).build()
        for more in ({}, {"pictures": "ignore"})
    )
    assert plain.digest != blind.digest
    [expected], [found] = plain.measure(QUERY, TEXTS), blind.measure(SHOWN, PICTURED)
    assert found == expected
    with pytest.raises(BadRow, match="reads texts alone"):
        list(plain.measure(SHOWN, TEXTS))
