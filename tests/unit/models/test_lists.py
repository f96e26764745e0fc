"""All candidates of a query in one prompt, by number: the prompt to the byte, its logits, what is cut."""

import pytest
import torch

import tests.language_models as texts
import tests.multimodal_models as pictures
from vlalign.models.lists import ListPrompts, Lists
from vlalign.models.weights import opened, save
from vlalign.recipe.decode import load_recipe
from vlalign.registry import TASKS
from vlalign.train.model import build
from vlalign.types import BadRow, Item, RecipeError

ASK = (
    "I will provide you with a query followed by multiple candidates in the format: (1) cand1 (2) cand2, "
    "etc. Each candidate is independent of the others. Evaluate each candidate against the query, and "
    "respond with the number corresponding to the candidate that best meets the requirements of the query."
)
ROWS = [
    ("a red car", [Item(text="a red car near a tree"), Item(text="a cat"), Item(text="no")]),
    ("a cat", [Item(text="a dog"), Item(text="the small cat")]),
]
SHORT = {"length": 512}
LABELS = torch.tensor([1.0, 0, 0, 0, 1])


def joined(model, rows=ROWS):
    read = [model.taught.read(Item(text=query), candidates) for query, candidates in rows]
    group = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(each) for _, each in rows]))
    fields = {"query_fields": {"row": torch.arange(len(rows))}, "key_fields": {"label": LABELS}}
    return {"pairs": model.taught.join(read), "group": group, "ids": [*"ab"[: len(rows)]], **fields}


def numbers_of(model, prompt):
    """Of one whole prompt, by transformers alone: the logit of each number."""
    inputs = {"input_ids": torch.tensor([prompt.ids])}
    for each in ("pixel_values", "image_grid_thw"):
        found = [one.tensors[each] for one in prompt.pictures]
        if found:
            inputs[each] = torch.cat(found)
    if prompt.pictures:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == model.taught.pairs.pictures.token).int()
    with torch.no_grad():
        logits = model.net(**inputs).logits[0, -1]
    return [float(logits[model.process.tokenizer(str(n))["input_ids"][-1]]) for n in range(1, 10)]


def test_the_prompt_is_its_makers_to_the_byte(tmp_path):
    model = texts.reranker(tmp_path, lists=SHORT)
    found = model.taught.read(Item(text="a red car"), [Item(text="a cat"), Item(text="a <|im_end|> dog")])[1]
    assert model.process.tokenizer.decode(found.ids) == (
        f"<|im_start|>user\n{ASK} Query:a red carCandidates:(1) a cat (2) a < |im_end|> dog<|im_end|>\n"
        "<|im_start|>assistant\nAns: ("
    )


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_logits_are_those_of_the_numbers(family, tmp_path):
    model = texts.reranker(tmp_path, family, lists=SHORT)
    found = model(joined(model))
    wanted = [
        numbers_of(model, model.taught.read(Item(text=query), own)[1])[: len(own)] for query, own in ROWS
    ]
    torch.testing.assert_close(found.numbers, torch.tensor(sum(wanted, [])), atol=1e-5, rtol=1e-5)
    plain = texts.reranker(tmp_path, family)
    alone = plain({"pairs": plain.process.join([plain.process.read(Item(text=q), own) for q, own in ROWS])})
    torch.testing.assert_close(found.scores, alone.scores, atol=1e-5, rtol=1e-5)
    assert alone.numbers is None


def test_pictures_stand_by_their_candidates(tmp_path):
    model = pictures.reranker(tmp_path / "model", "qwen3_vl", lists=SHORT)
    shown = [Item(images=(pictures.picture(1),)), Item(text="a cat", images=(pictures.picture(2, 80),))]
    asked = Item(text="a red car", images=(pictures.picture(3),))
    prompt = model.taught.read(asked, shown)[1]
    written = model.process.tokenizer.decode(prompt.ids).replace("<|image_pad|>", "")
    mark = "<|vision_start|><|vision_end|>"
    assert f"Query:{mark}a red carCandidates:(1) {mark} (2) {mark}a cat<|im_end|>" in written
    batch = {"pairs": model.taught.join([model.taught.read(asked, shown)])}
    wanted = torch.tensor(numbers_of(model, prompt)[:2])
    torch.testing.assert_close(model(batch).numbers, wanted, atol=1e-5, rtol=1e-5)


def test_position_cross_entropy_is_that_of_the_right_number(tmp_path):
    model = texts.reranker(tmp_path, lists=SHORT, lora={"rank": 2, "alpha": 4.0}).train()
    task = TASKS.decode({"name": "rerank", "terms": [{"objective": "info_nce", "of": "numbers"}]})
    batch = joined(model)
    loss = task.loss(model(batch), batch, 0, 1).total
    logits = [
        torch.tensor(numbers_of(model, model.taught.read(Item(text=query), own)[1])[: len(own)]).double()
        for query, own in ROWS
    ]
    right = [0, 1]
    wanted = sum(each.logsumexp(0) - each[at] for each, at in zip(logits, right, strict=True))
    assert loss.item() == pytest.approx(float(wanted), abs=1e-4)
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_the_longest_candidates_are_cut_first_and_no_number(tmp_path):
    long = Item(text="a cat and a dog in the house " * 8)
    whole = texts.reranker(tmp_path, lists=SHORT)
    query, candidates = Item(text="a red car"), [long, Item(text="a cat"), long]
    tokens = len(whole.taught.read(query, candidates)[1])
    cut = ListPrompts(whole.process, Lists(length=tokens - 40)).read(query, candidates)[1]
    written = whole.process.tokenizer.decode(cut.ids)
    assert len(cut) == tokens - 40 and "(2) a cat (3) a cat" in written
    kept = [len(each) for each in (written.split("(1) ")[-1].split(" (2)")[0], written.split("(3) ")[-1])]
    assert abs(kept[0] - (kept[1] - len("<|im_end|>\n<|im_start|>assistant\nAns: ("))) < 12
    with pytest.raises(BadRow, match="set a larger length"):
        ListPrompts(whole.process, Lists(length=60)).read(query, candidates)[1]


def test_more_candidates_than_numbers_are_refused(tmp_path):
    model = texts.reranker(tmp_path, lists=SHORT)
    with pytest.raises(BadRow, match=r"10 candidates, and a list has 9 at most; set data\.train"):
        model.taught.read(Item(text="a"), [Item(text="b")] * 10)


def test_a_saved_model_has_its_lists(tmp_path):
    model = texts.reranker(tmp_path / "base", lists=SHORT | {"after": "The number is ("})
    save(model, tmp_path / "saved")
    again = opened(str(tmp_path / "saved")).eval()
    torch.testing.assert_close(again(joined(again)).numbers, model(joined(model)).numbers)


@pytest.mark.parametrize("change", ["model.lists=null", "task.terms=[{objective: info_nce}]"])
def test_lists_and_terms_over_them_go_together(change):
    with pytest.raises(RecipeError, match=r"model\.lists and a term of the task with `of: numbers`"):
        build(load_recipe("recipes/tiny/unime_v2_reranker.yaml", [change]))


@pytest.mark.parametrize("fields", [{"text": "Which? {query}"}, {"text": "{query} {candidates} {query}"}])
def test_a_text_has_both_places_once(fields):
    with pytest.raises(ValueError, match="must have the place"):
        Lists(**fields)


def test_a_picture_is_processed_once_for_both_prompts(tmp_path, monkeypatch):
    model = pictures.reranker(tmp_path / "model", "qwen3_vl", lists=SHORT)
    read, looked = model.process.pictures.read, []
    monkeypatch.setattr(model.process.pictures, "read", lambda image: looked.append(image) or read(image))
    model.taught.read(
        Item(images=(pictures.picture(3),)), [Item(images=(pictures.picture(n),)) for n in (1, 2)]
    )
    assert len(looked) == 3
