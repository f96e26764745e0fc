"""The comparison of weights of tokens: its words and items, one tiny cell of each arm, and what is told."""

import json
from dataclasses import asdict

import compare_tokens as compare
import numpy as np
import pytest
import torch
from compare_tokens import ARMS, Cell, Setting, table, token_kinds
from token_words import WORD, Words, swaps

from tests.language_models import tokenizer
from tests.multimodal_models import picture

WORDS = Words(
    {
        "car": ["06", "06", "06"],
        "cars": ["06"],
        "house": ["06", "14", "06", "40"],  # half is not more than half
        "cat": ["05", "05", "18", "06"],
        "dog": ["05", "05"],
        "ant": ["05"],
        "the": ["06"],
        "ox": ["05"],
        "run": ["38", "38", "06"],
        "berry": ["20"],
    }
)


def test_a_noun_is_what_most_of_its_meanings_are_if_most_are_things():
    assert WORDS.nouns == {"car": "artifact", "cars": "artifact", "cat": "animal", "dog": "animal",
                           "ant": "animal", "berry": "plant"}  # fmt: skip
    kinds = {word: WORDS.kind(word) for word in ("Red", "cat", "cats", "berries", "houses", "the", "ss")}
    assert kinds == {"Red": "colour", "cat": "animal", "cats": "animals", "berries": "plants",
                     "houses": None, "the": None, "ss": None}  # fmt: skip


def test_a_token_is_of_the_word_that_it_lies_in():
    caption = "a red Car and the houses"
    spans = [(caption[first:last], kind) for first, last, kind in WORDS.spans(caption)]
    assert spans == [("a", "function"), ("red", "visual"), ("Car", "visual"), ("and", "function"),
                     ("the", "function")]  # fmt: skip
    words = tokenizer()
    kinds = token_kinds(WORDS, words, caption)
    ids = words(caption, add_special_tokens=False)["input_ids"]
    assert len(kinds) == len(ids) + 1 and kinds[-1] == "end"
    told = {"visual": "", "function": "", "other": ""}
    for id, kind in zip(ids, kinds, strict=False):
        told[kind] += words.decode([id]).strip()
    assert told == {"visual": "redCar", "function": "aandthe", "other": "houses"}


def test_an_item_is_a_caption_with_one_attribute_of_its_class_and_first_letter_swapped():
    known = ["a cat and a dog", "a dog, a red ant and a blue car", "a white cars"]
    captions = ["A Cat in a red car", "no thing", "an ant", "black dog"]
    found = swaps(WORDS, known, captions, 8, seed=0)
    assert found == swaps(WORDS, known, captions, 8, seed=0) and len(set(found)) == len(found) == 8
    assert found != swaps(WORDS, known, captions, 8, seed=1)
    for each in found:
        own, other = WORD.findall(each.true), WORD.findall(each.false)
        assert each.true == captions[each.row]
        [(was, new)] = [pair for pair in zip(own, other, strict=True) if pair[0] != pair[1]]
        assert WORDS.kind(was) == WORDS.kind(new) and was[0].isupper() == new[0].isupper()
        assert any(new.lower() in WORD.findall(text) for text in known)
    assert {each.row for each in found} <= {0, 3}  # an ant has no other that begins with a vowel
    few = swaps(WORDS, known, ["a cat"], 8, seed=0)
    assert [each.false for each in few] == ["a dog"]


@pytest.fixture
def setting(tmp_path, monkeypatch):
    """Tiny models over a few pictures."""
    monkeypatch.setenv("VLALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Words, "of_wordnet", classmethod(lambda cls: WORDS))
    monkeypatch.setattr(compare, "FAST", False)
    captions = ["a red car", "the cat", "a blue car and a dog", "a white cat", "dogs", "a cat and a red car"]
    for side in (compare.LEARNED, compare.UNSEEN):
        lines = []
        for at, caption in enumerate(captions):
            picture(at).save(tmp_path / f"{side}{at}.png")
            lines.append(json.dumps({"id": str(at), "image": f"{side}{at}.png", "caption": caption}))
        (tmp_path / f"{side}.jsonl").write_text("\n".join(lines) + "\n")
    items = swaps(WORDS, captions, captions, 10, 0)
    (tmp_path / "items.json").write_text(json.dumps(items))
    small = {"steps": 2, "data.batch": 4, "data.chunk": 2, "log.every": 1}
    made = {"language": "recipes/tiny/causal", "pretrained": False, "tower": "mobilenetv3_small_050"}
    made |= {"weights": None, "image_size": 64}
    lm = {
        **small,
        "steps": 10,
        "optim.lr": 0.05,
        "model": {"name": "text_lm", "id": "recipes/tiny/causal", "pretrained": False},
    }
    learn = {"model.learn": ["projector", "language"], "optim.lr": 0.05}
    return Setting(tmp_path, {**small, **learn, "model.made": made}, lm)


@pytest.mark.slow
def test_a_cell_of_each_arm_is_trained_and_asked(setting, monkeypatch):
    compare.reference(setting)
    rows = {arm: compare.run(Cell(arm, 0), setting)[1] for arm in ARMS}
    for row in rows.values():
        assert 0 <= row["right"] <= 1 and all(row[name] > 0 for name in ("loss", "visual", "function", "end"))
        json.dumps(row)
    told = [rows[arm]["loss"] for arm in ARMS if arm != "random"]  # whose weights are about equal
    assert len(set(told)) == len(told)
    assert not [path for path in setting.folder.iterdir() if path.name.startswith("tmp")]
    _, again = compare.run(Cell("prior", 0), setting)
    assert again["loss"] == rows["prior"]["loss"] and again["right"] == rows["prior"]["right"]


def test_items_are_chosen_by_the_mean_log_probability(tmp_path, setting):
    class Knows:
        """Finds what has a red word likelier, by the mean and not by the sum."""

        class model:
            class process:
                tokenizer = tokenizer()

        def losses(self, pictures, captions):
            return [torch.full((len(each),), 1.0 if "red" in each else 2.0) for each in captions]

    items = [[0, "a red car", "a long blue car"], [1, "the cat", "red"], [1, "the cat", "the dog"]]
    (tmp_path / "items.json").write_text(json.dumps(items))
    found = compare.measured(Knows(), tmp_path)
    assert found["right"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert found["described"] == pytest.approx({"0": 1 * 2 / 3, "1": 0.5 * 2 / 3})


def done_of(shift):
    """Ten seeds of each arm, whose `right` is plain's and so much."""
    random = np.random.default_rng(0)
    noise, wide = random.normal(0, 0.01, (len(ARMS), 10)), random.normal(0, 0.02, (len(ARMS), 20))
    return {
        Cell(arm, seed): {
            "right": 0.6 + shift.get(arm, 0) + noise[at, seed], "visual": 3.0, "function": 1.0 + seed / 10,
            "end": 2.0 + (arm == "prior"),
            "described": {str(of): 0.6 + shift.get(arm, 0) + wide[at, of] + seed / 10 for of in range(20)},
        }
        for at, arm in enumerate(ARMS)
        for seed in range(10)
    }  # fmt: skip


def test_arms_are_told_less_plain_and_prior_less_its_rivals():
    done = done_of({"prior": 0.1, "shuffled": 0.0})
    found = compare.summary(done)
    assert [*found] == [*list(ARMS)[1:], "prior less shuffled", "prior less rarity", "prior less random"]
    own = [done[Cell("prior", seed)]["right"] - done[Cell("plain", seed)]["right"] for seed in range(10)]
    assert found["prior"]["right"].mean == pytest.approx(np.mean(own))
    assert asdict(found["prior"]["right"])["seeds"] == 10 and found["prior"]["right"].detectable > 0
    over = [
        np.mean([row["described"][str(of)] for cell, row in done.items() if cell.arm == "prior"])
        - np.mean([row["described"][str(of)] for cell, row in done.items() if cell.arm == "plain"])
        for of in range(20)
    ]
    assert found["prior"]["described"].seeds == 20
    assert found["prior"]["described"].mean == pytest.approx(np.mean(over))
    lines = table(done)
    assert len({line.count("|") for line in lines[: 3 + len(found)]}) == 1
    assert lines[3].startswith("| prior |") and lines[3].endswith("| helps |")
    assert "| 2.000 |" in lines[2] and "+1.000 [+1.000, +1.000]" in lines[3]
    assert "no difference larger than" in lines[4] and "10 seeds, 20 descriptions" in lines[-1]


def test_cells_of_other_weights_items_or_settings_are_others(setting):
    lm, init = setting.folder / compare.LM, setting.folder / "init"
    for each in (lm, init):
        each.mkdir()
        (each / "model.safetensors").write_bytes(b"1")
    setting = setting._replace(changes=setting.changes | {"init": str(init)})
    seen = [setting.digest]
    assert setting.digest == seen[0]
    seen.append(setting._replace(changes=setting.changes | {"steps": 3}).digest)
    seen.append(setting._replace(lm={}).digest)
    for file, text in ((lm / "model.safetensors", "2"), (init / "model.safetensors", "2")):
        file.write_text(text)
        seen.append(setting.digest)
    (setting.folder / "items.json").write_text("[]")
    assert len({*seen, setting.digest}) == 6
