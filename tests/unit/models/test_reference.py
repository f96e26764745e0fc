"""Pairs read beside a right answer and alone: what is read, its digits, what learns, what is saved."""

import pickle
from types import SimpleNamespace

import pytest
import torch

import tests.language_models as texts
import tests.multimodal_models as pictures
from vlalign.data.candidates import Candidates, right_answer
from vlalign.data.sampler import Order
from vlalign.data.samplers.random import Random
from vlalign.infer.judges.likert import Likert
from vlalign.models.reference import Reference, ReferredPrompts
from vlalign.models.weights import opened, save
from vlalign.recipe.decode import load_recipe
from vlalign.registry import MODELS, TASKS
from vlalign.train.model import build
from vlalign.types import BadRow, Item, RecipeError

BESIDE = {"text": "{query} (such as {reference})"}
PROMPT = {"name": "chat", "system": "From 0 to 9?", "text": "{query}\n{document}", "yes": "9", "no": "0"}
ROWS = [
    ("a red car", [Item(text="a red car near a tree"), Item(text="a cat"), Item(text="no")]),
    ("a cat", [Item(text="the small cat"), Item(text="a dog")]),
]


def joined(model, rows=ROWS):
    read = [model.taught.read(Item(text=query), candidates, candidates[0]) for query, candidates in rows]
    group = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(each) for _, each in rows]))
    fields = {
        "query_fields": {"row": torch.arange(2)},
        "key_fields": {"rating": torch.tensor([9.0, 1, 0, 9, 3])},
    }
    return {"pairs": model.taught.join(read), "group": group, "ids": ["a", "b"], **fields}


def made(folder, **fields):
    return texts.reranker(folder, prompt=PROMPT, **{"reference": BESIDE, **fields})


def logits_of(model, text):
    """Of the digits after one whole text, by transformers alone."""
    tokenizer = model.process.tokenizer
    with torch.no_grad():
        logits = model.net(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1]
    return [float(logits[tokenizer(text + str(digit))["input_ids"][-1]]) for digit in range(10)]


def whole(query, document):
    return (
        f"<|im_start|>system\nFrom 0 to 9?<|im_end|>\n<|im_start|>user\n{query}\n{document}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("share", [True, False])
def test_each_pair_is_rated_beside_a_right_answer_and_alone(share, tmp_path):
    model = made(tmp_path, share=share)
    found = model(joined(model)).ratings
    wanted = []
    for query, candidates in ROWS:
        for each in candidates:
            beside = f"{query} (such as {candidates[0].text})"
            wanted.append([logits_of(model, whole(asked, each.text)) for asked in (beside, query)])
    torch.testing.assert_close(found, torch.tensor(wanted), atol=1e-5, rtol=1e-5)
    alone = made(tmp_path, reference=None)
    pairs = [alone.process.read(Item(text=query), own) for query, own in ROWS]
    plain = alone({"pairs": alone.process.join(pairs)})
    assert plain.ratings is None
    torch.testing.assert_close(model(joined(model)).scores, plain.scores)
    torch.testing.assert_close(plain.scores, found[:, 1, 9] - found[:, 1, 0], atol=1e-5, rtol=0)


def test_what_stands_in_braces_in_a_text_is_no_place_and_special_tokens_are_text(tmp_path):
    found = Reference(**BESIDE).beside(Item(text="{reference}"), Item(text="{query} <|im_end|>"))
    assert found.text == "{reference} (such as {query} <|im_end|>)"
    model = made(tmp_path)
    [prompt] = model.taught.read(Item(text="a cat"), [Item(text="a dog")], Item(text="a <|im_end|> cat"))[0]
    assert "(such as a < |im_end|> cat)\na dog<|im_end|>" in model.process.tokenizer.decode(prompt.ids)


def test_the_answers_pictures_come_after_the_querys_and_each_is_processed_once(tmp_path, monkeypatch):
    model = pictures.reranker(tmp_path / "model", "qwen3_vl", prompt=PROMPT, reference=BESIDE)
    read, looked = model.process.pictures.read, []
    monkeypatch.setattr(model.process.pictures, "read", lambda image: looked.append(image) or read(image))
    query, right, other = (
        Item(text=text, images=(pictures.picture(at),))
        for at, text in enumerate(["a car", "a red car", "a cat"])
    )
    beside, alone = model.taught.read(query, [right, other], right)
    assert len(looked) == 4  # the right one as a candidate too
    digests = [[each.digest for each in own.pictures] for own in (*beside, *alone)]
    car, red, cat = (read(each.images[0]).digest for each in (query, right, other))
    assert digests == [[car, red, red], [car, red, cat], [car, red], [car, cat]]
    batch = {"pairs": model.taught.join([(beside, alone)])}
    found = model(batch).ratings
    apart = [
        model({"pairs": model.taught.join([([one], [two])])}).ratings
        for one, two in zip(beside, alone, strict=True)
    ]
    torch.testing.assert_close(found, torch.cat(apart), atol=1e-5, rtol=1e-5)


def test_only_adapters_learn_and_chunks_add_up(tmp_path):
    model = made(tmp_path, lora={"rank": 2, "alpha": 4.0}).train()
    targets = {"name": "given", "field": "rating"}
    task = TASKS.decode({"name": "rerank", "targets": targets, "answer_terms": [{"objective": "self_judge"}]})
    assert task.reads_ratings and task.reads_numbers == ("rating",)
    loss = task.loss(model(joined(model)), joined(model), 1, 2)
    assert set(loss.parts) == {f"self_judge{end}" for end in ("", ".beside", ".alone", ".kl")}
    own = {name: loss.parts[f"self_judge.{name}"] for name in ("beside", "alone", "kl")}
    torch.testing.assert_close(loss.total.detach(), own["beside"] + 0.3 * own["alone"] + 2 * own["kl"])
    loss.total.backward()
    changed = {name for name, x in model.named_parameters() if x.grad is not None and x.grad.abs().sum() > 0}
    assert changed and all("lora" in name for name in changed)
    assert not model.digits.requires_grad
    head = model.net.get_output_embeddings().weight
    assert torch.equal(model.digits, head[model.taught.digits].detach())


def test_a_saved_model_reads_as_it_did_and_likert_decodes_what_it_learnt(tmp_path):
    model = made(tmp_path / "base")
    save(model, tmp_path / "saved")
    again = opened(str(tmp_path / "saved")).eval()
    torch.testing.assert_close(again(joined(again)).ratings, model(joined(model)).ratings)
    spec = MODELS.decode({"name": "llm_reranker", "id": str(tmp_path / "saved"), "prompt": PROMPT})
    judge = Likert(model=spec, lowest=0, highest=9).build()
    shares = model(joined(model)).ratings[:, 1].softmax(-1)
    expected = (shares * torch.arange(10)).sum(1) / shares.sum(1)
    [told] = judge.measure(Item(text=ROWS[0][0]), ROWS[0][1])
    assert [told[at][0] for at in range(3)] == pytest.approx(expected[:3].tolist(), abs=1e-4)
    judge.rows = torch.zeros(10, judge.rows.shape[1])  # uniform
    assert [*judge.measure(Item(text="k"), [Item(text="c")])] == [{0: [4.5]}]


def test_an_expected_rating_is_within_the_scale_and_the_digit_itself_where_that_is_certain(tmp_path):
    texts.language_model(tmp_path / "base")
    spec = MODELS.decode({"name": "llm_reranker", "id": str(tmp_path / "base"), "prompt": PROMPT})
    judge = Likert(model=spec, lowest=0, highest=9).build()
    random = torch.randn(100, 10, generator=torch.Generator().manual_seed(0)) * 5
    logits = torch.cat([1e4 * torch.eye(10), random])
    judge.rows, judge.scorer = torch.eye(10), SimpleNamespace(hidden=lambda *asked: logits)
    [told] = judge.measure(Item(text="k"), [Item(text="c")])
    expected = [rating for [rating] in told.values()]
    assert expected[:10] == [*range(10)] and all(0 <= rating <= 9 for rating in expected)
    assert len({round(rating, 3) for rating in expected[10:]}) > 90


def test_a_draw_gives_the_first_right_answer_and_refuses_a_query_without_one(tmp_path):
    row = {"candidates": [Item(text=x) for x in "abc"], "numbers": {"label": [0.0, 1, 2]}}
    assert right_answer(row, "label").text == "b"
    with pytest.raises(BadRow, match="no candidate has a number 'label' above 0") as told:
        right_answer({**row, "numbers": {"label": [0.0, 0, 0]}}, "label")
    assert told.value.reason == "no_right_answer"
    recipe = load_recipe("recipes/tiny/self_judge.yaml")
    source = recipe.data.train.build(recipe.data.limits)
    model = made(tmp_path)
    order = Order(sampler=Random(), rows=len(source), batch=8, seed=0)
    chunks = Candidates(source=source, order=order, process=model.taught)
    drawn = chunks.draw(0, 0)
    beside, alone = drawn["read"]
    first = source[0]["candidates"][0]  # two of this query are right, and the first is shown
    assert len(beside) == len(alone) == drawn["count"]
    assert all(f"(such as {first.text})" in model.process.tokenizer.decode(each.ids) for each in beside)
    assert not any("such as" in model.process.tokenizer.decode(each.ids) for each in alone)
    assert pickle.loads(pickle.dumps(model.taught)).digits == model.taught.digits


def test_what_is_asked_of_a_recipe(tmp_path):
    with pytest.raises(ValueError, match=r"text must have the place \{reference\} once"):
        Reference(text="{query}")
    with pytest.raises(RecipeError, match="lists: a reference is another way to be taught"):
        load_recipe("recipes/tiny/self_judge.yaml", ["model.lists={}"])
    for change in ("model.reference=null", "task.answer_terms=[{objective: yes_no}]"):
        with pytest.raises(RecipeError, match=r"model\.reference and an objective of ratings"):
            build(load_recipe("recipes/tiny/self_judge.yaml", [change]))
    with pytest.raises(RecipeError, match="offset: in ratings there is no place for it"):
        load_recipe("recipes/tiny/self_judge.yaml", ["task.offset={field: rating}"])
    assert isinstance(build(load_recipe("recipes/tiny/self_judge.yaml")).taught, ReferredPrompts)
