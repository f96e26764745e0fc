"""Demonstrations before a local model's question: the conversation to the byte, and its answer read alone."""

import json
from math import exp

import pytest
import torch

import tests.multimodal_models as seeing
import vlalign
from tests.language_models import language_model
from tests.unit.infer.mined import lines, write
from tests.unit.infer.test_shown import truth, world
from vlalign.infer.judge import judge
from vlalign.infer.judges.yes_no import YesNoJudge
from vlalign.infer.questions import Demonstration
from vlalign.models.pictures import Pictures
from vlalign.models.prompts import Prompts
from vlalign.models.rerank_scorer import RerankScorer
from vlalign.models.turns import Turn, TurnPrompts
from vlalign.models.weights import save
from vlalign.recipe.decode import load_recipe
from vlalign.registry import JUDGES, TEMPLATES
from vlalign.types import BadRow, Item, RecipeError, UserError

PROMPT = {"name": "chat", "text": "{instruction}|{query}|{document}", "instruction": "Say yes or no."}
RATE = {"name": "chat", "text": "{query}|{document}", "instruction": "", "system": "Rate from 1 to 5."}
OVER = "<|im_end|>\n<|im_start|>assistant\n"
QUERY = Item(text="a red car")
ITEMS = [Item(text="a cat"), Item(text="a dog in the house"), Item(text="a small tree near a red car")]
SHOWN = [
    [Demonstration(Item(text="a tree"), Item(text="a small tree"), True)],
    [
        Demonstration(Item(text="a tree"), Item(text="a small tree"), True),
        Demonstration(Item(text="a dog"), Item(text="a cat"), False),
    ],
    [],
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return language_model(tmp_path_factory.mktemp("turning") / "base", "llama")


def spec(base, prompt=PROMPT, **fields):
    return {"name": "llm_reranker", "id": str(base), "prompt": prompt, **fields}


def conversation(*turns, system="", start="", after=""):
    """A conversation of pairs and answers, by hand; the last is not yet answered."""
    text = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    for query, document, answer in turns:
        text += f"<|im_start|>user\n{start}{query}|{document}{OVER}{after}{answer}"
        text += "<|im_end|>\n" if answer else ""
    return text


def conversations(right="yes", wrong="no", **fields):
    """Of each pair."""
    return [
        conversation(
            *((q.text, c.text, right if label else wrong) for q, c, label in own),
            (QUERY.text, item.text, ""),
            **fields,
        )
        for item, own in zip(ITEMS, SHOWN, strict=True)
    ]


def logits(judge, text):
    """Of the token that follows, by transformers alone, read by itself."""
    model = judge.scorer.model
    with torch.no_grad():
        found = model.net(torch.tensor([model.process.tokenizer(text)["input_ids"]])).logits[0, -1]
    return lambda word: float(found[model.process.answer(word)])


def measured(judge, *given):
    [found] = judge.measure(*given)
    return [found[at] for at in range(len(found))]


@pytest.mark.parametrize("share", [True, False])
def test_yes_no_after_turns_is_that_of_the_conversation_read_alone(base, share):
    judge = JUDGES.decode({"name": "yes_no", "model": spec(base, share=share)}).build()
    found = measured(judge, QUERY, ITEMS, SHOWN)
    alone = [logits(judge, text) for text in conversations(start="Say yes or no.|")]
    assert found == [pytest.approx([word("yes") - word("no")], abs=1e-5) for word in alone]
    assert measured(judge, QUERY, ITEMS) != found
    assert measured(judge, QUERY, ITEMS)[2] == pytest.approx(found[2], abs=1e-5)  # which is shown none


def test_likert_after_turns_is_that_of_the_conversation_read_alone(base):
    judge = JUDGES.decode({"name": "likert", "model": spec(base, RATE), "lowest": 1, "highest": 5}).build()
    found = measured(judge, QUERY, ITEMS, SHOWN)
    for own, text in zip(found, conversations("5", "1", system="Rate from 1 to 5."), strict=True):
        odds = [exp(logits(judge, text)(str(digit))) for digit in range(1, 6)]
        wanted = sum(digit * odd for digit, odd in enumerate(odds, 1)) / sum(odds)
        assert own == pytest.approx([wanted], abs=1e-5)


def test_what_an_answer_begins_with_begins_those_of_turns_too(base):
    judge = JUDGES.decode({"name": "yes_no", "model": spec(base, {**PROMPT, "after": "think:"})}).build()
    found = measured(judge, QUERY, ITEMS, SHOWN)
    alone = [logits(judge, text) for text in conversations(start="Say yes or no.|", after="think:")]
    assert found == [pytest.approx([word("yes") - word("no")], abs=1e-5) for word in alone]


def test_only_what_prompts_begin_with_alike_is_read_once(base):
    judge = JUDGES.decode({"name": "yes_no", "model": spec(base)}).build()
    process = judge.scorer.model.process
    before = [[Turn(q, c, "yes" if right else "no") for q, c, right in own] for own in SHOWN]
    same = TurnPrompts(process).read(QUERY, ITEMS[:2], before[:1] * 2)
    words = process.tokenizer.decode(same[0].ids[: process.shared(same)])
    assert words.startswith("<|im_start|>user\nSay yes or no.|a tree|a small tree<|im_end|>")
    assert words.endswith("Say yes or no.|a red car|a")  # cat, or dog
    read = TurnPrompts(process).read(QUERY, ITEMS, before)
    shared = process.shared(read[:2])
    assert 0 < process.shared(read) < shared
    words = process.tokenizer.decode(read[0].ids[:shared])
    assert words.rstrip().endswith("yes<|im_end|>\n<|im_start|>user\nSay yes or no.|a")  # red car, or dog
    assert all(one.ids == two.ids for one, two in zip(read[2:], process.read(QUERY, ITEMS[2:]), strict=True))


def test_names_of_tokens_and_places_are_text_in_a_turn(base):
    process = JUDGES.decode({"name": "yes_no", "model": spec(base)}).build().scorer.model.process
    turn = Turn(Item(text="{document}"), Item(text="a <|im_end|> {query}"), "no")
    [found] = TurnPrompts(process).read(QUERY, ITEMS[:1], [[turn]])
    assert process.tokenizer.decode(found.ids) == conversation(
        ("{document}", "a < |im_end|> {query}", "no"), ("a red car", "a cat", ""), start="Say yes or no.|"
    )


def test_the_longest_documents_lose_their_ends_be_they_shown_or_asked(base):
    long = Item(text="a tree " * 40)
    process = JUDGES.decode({"name": "yes_no", "model": spec(base, length=90)}).build().scorer.model.process
    own = TurnPrompts(process)
    for turn, item in ((Turn(QUERY, long, "yes"), ITEMS[0]), (Turn(QUERY, ITEMS[0], "yes"), long)):
        [found] = own.read(QUERY, [item], [[turn]])
        text = process.tokenizer.decode(found.ids)
        assert len(found) == 90 and "a cat<|im_end|>" in text and 1 < text.count("tree") < 40
        assert text.endswith("<|im_end|>\n<|im_start|>assistant\n") and "assistant\nyes<|im_end|>" in text
    with pytest.raises(BadRow, match="and 90 are read; set a larger length"):
        own.read(QUERY, ITEMS[:1], [[Turn(long, ITEMS[0], "no")]])


@pytest.mark.parametrize("family", ["qwen3_vl", "smolvlm"])
def test_pictures_of_turns_stand_where_they_are_told(tmp_path, family, monkeypatch):
    told = {"name": "mllm_reranker", "id": str(seeing.multimodal_model(tmp_path / "base", family))}
    told |= {"length": 1024, "prompt": PROMPT}
    judge = JUDGES.decode({"name": "yes_no", "model": told}).build()
    pictures = [Item(text="a cat", images=(seeing.picture(seed),)) for seed in range(4)]
    shown = [[Demonstration(pictures[0], pictures[at], at > 1)] for at in (1, 2)]
    found = measured(judge, pictures[3], [pictures[1], Item(text="a dog")], shown)
    process = judge.scorer.model.process
    assert isinstance(process, Prompts) and isinstance(process.pictures, Pictures)
    read, processed = process.pictures.read, []
    monkeypatch.setattr(process.pictures, "read", lambda image: processed.append(image) or read(image))
    assert measured(judge, pictures[3], [pictures[1], Item(text="a dog")], shown) == found
    assert len(processed) == 4  # the query's, what is shown of both, and a candidate's that is shown as well
    looks = [process.look(each)[0] for each in pictures]
    rows = [("no", [0, 1, 3, 1], "a cat"), ("yes", [0, 2, 3], "a dog")]
    for own, (answer, seen, last) in zip(found, rows, strict=True):
        texts = [f"{looks[at].text}a cat" for at in seen] + [last] * (len(seen) < 4)
        text = conversation((*texts[:2], answer), (*texts[2:], ""), start="Say yes or no.|")
        prompt = process.tokens(text, [(len(text), len(text))], [looks[at] for at in seen])
        with torch.no_grad():
            alone = judge.scorer.model({"pairs": process.join([[prompt]])}).scores.item()
        assert own == pytest.approx([alone], abs=1e-4)
    swapped = measured(judge, pictures[3], [pictures[1], Item(text="a dog")], shown[::-1])
    assert all(abs(a - b) > 1e-3 for [a], [b] in zip(found, swapped, strict=True))


def test_a_prompt_that_is_written_out_takes_no_turns(base, tmp_path):
    written = JUDGES.decode({"name": "yes_no", "model": spec(base, "qwen3_reranker")})
    assert not written.shows and not written.build().shows
    assert JUDGES.decode({"name": "yes_no", "model": spec(base)}).shows
    with pytest.raises(UserError, match="turns of a conversation, and this prompt is written out; use"):
        TurnPrompts(written.build().scorer.model.process)
    with pytest.raises(UserError, match="turns of a conversation"):
        TurnPrompts(object())  # such as a cross-encoder's, which has no prompt
    for name in ("yes_no", "likert", "listwise", "hidden"):
        embedder = JUDGES.decode({"name": name, "model": {"name": "mllm_embedder", "id": str(base)}})
        assert not getattr(embedder, "shows", False)
        with pytest.raises(UserError, match="MLLMEmbedder answers no prompt; name a reranker"):
            embedder.build()
    with pytest.raises(RecipeError, match="none of judges can be shown any; name an endpoint, or yes_no or"):
        recipe(tmp_path, tmp_path / "out", spec(base, "qwen3_reranker"))


def test_a_place_in_the_system_message_is_told(base):
    words = JUDGES.decode({"name": "yes_no", "model": spec(base)}).build().scorer.model.process.tokenizer
    prompt = TEMPLATES.decode({**PROMPT, "system": "They ask: {query}"})
    own = TurnPrompts(Prompts(words, prompt, 512))
    with pytest.raises(UserError, match=r"has the place \{query\}, and there are several"):
        own.read(QUERY, ITEMS[:1], [[Turn(QUERY, ITEMS[0], "no")]])


def recipe(folder, out, model, **fields):
    made = {"verb": "judge", "out": str(out), "store": str(folder / "store.sqlite")}
    made["data"] = {"name": "candidates", "path": str(folder / "rows.jsonl")}
    made["judges"] = [{"name": "yes_no", "model": model}]
    made["demonstrations"] = {"model": str(folder / "clip"), "k": 2}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(made | fields))
    return load_recipe(path)


def test_a_recipe_shows_what_is_like_a_pair_and_keeps_answers_by_what_was_shown(base, tmp_path, monkeypatch):
    torch.manual_seed(0)
    save(vlalign.load("recipes/tiny/open_clip").model, tmp_path / "clip")
    rows = world()[:6]
    write(tmp_path / "rows.jsonl", rows)
    plain, asked, found = YesNoJudge.measure, {}, {}

    def measure(self, query, candidates, shown=()):
        for new in plain(self, query, candidates, shown):
            for at, numbers in new.items():
                pair = query.text, candidates[at].text
                asked[pair], found[pair] = [] if not shown else shown[at], numbers
            yield new

    monkeypatch.setattr(YesNoJudge, "measure", measure)
    out = judge(recipe(tmp_path, tmp_path / "out", spec(base)))
    labels = truth(rows)
    assert asked.keys() == labels.keys()
    for (query, _), own in asked.items():
        assert len(own) == 2 and all(each.query.text != query for each in own)
        assert all(labels[each.query.text, each.candidate.text] == ("no", "yes")[each.right] for each in own)
    made = YesNoJudge(load_recipe(out / "recipe.yaml").judges[0].model)
    for row in lines(out / "candidates.jsonl"):
        for each in row["candidates"]:
            pair = row["query"]["text"], each["text"]
            turns = [(q.text, c.text, "yes" if right else "no") for q, c, right in asked[pair]]
            word = logits(made, conversation(*turns, (*pair, ""), start="Say yes or no.|"))
            assert [each["judge_score"]] == found[pair]
            assert each["judge_score"] == pytest.approx(word("yes") - word("no"), abs=1e-5)
    before = dict(asked)
    asked.clear()
    judge(recipe(tmp_path, tmp_path / "again", spec(base)))
    assert not asked
    judge(recipe(tmp_path, tmp_path / "plain", spec(base), demonstrations=None))
    assert asked.keys() == before.keys()  # none is known from where some were shown
    rows[2]["candidates"][1]["label"] = 1
    write(tmp_path / "rows.jsonl", rows)
    asked.clear()
    judge(recipe(tmp_path, tmp_path / "other", spec(base)))
    assert 0 < len(asked) < 18 and all(before[pair] != own for pair, own in asked.items())
    assert "vote" in json.loads((out / "judged.json").read_text())["alone"]


def test_a_scorer_takes_turns_for_several_queries(base):
    judge = JUDGES.decode({"name": "yes_no", "model": spec(base)}).build()
    scorer = RerankScorer(judge.scorer.model)
    before = [[Turn(q, c, "yes" if right else "no") for q, c, right in own] for own in SHOWN]
    one, two = scorer.score([QUERY, ITEMS[0]], [ITEMS, ITEMS[:1]], [before, [[]]])
    assert one.tolist() == pytest.approx([x for [x] in measured(judge, QUERY, ITEMS, SHOWN)], abs=1e-6)
    assert two.tolist() == pytest.approx(scorer.score([ITEMS[0]], [ITEMS[:1]])[0].tolist(), abs=1e-6)
