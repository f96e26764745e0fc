"""What a causal language model must be to rerank, and how its tokenizer's own ways are met."""

import pytest
import torch
import transformers
from transformers import AutoTokenizer

import tests.multimodal_models as pictures
from tests.language_models import CHATML, language_model, reranker, tokenizer
from vlalign.models.pictures import Pictures
from vlalign.models.prompt import as_text, special_names
from vlalign.models.prompts import Prompts
from vlalign.models.text_pairs import TextPairs
from vlalign.models.weights import save
from vlalign.recipe.decode import load_recipe
from vlalign.registry import MODELS, TEMPLATES
from vlalign.train.loop import train
from vlalign.types import Item, RecipeError, UserError

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
