"""The comparison of methods: what it compares, on which data, and what it says of it."""

import json
import lzma
from dataclasses import asdict, replace

import arms
import cells
import compare_methods as compare
import numpy as np
import pytest
import study_data
import torch
from cells import Arm, Rows
from sklearn.metrics import ndcg_score

from vlalign.registry import (
    EMBEDDING_OBJECTIVES,
    MIXERS,
    OBJECTIVES,
    SAMPLERS,
    SELECTORS,
    TARGETS,
    TASKS,
    WEIGHTERS,
)

# Two change pictures, one holds embeddings near those of an earlier model, one learns from another view of a
# picture, one weighs siblings and is yet to be compared; the others are about a query's own candidates.
ELSEWHERE = {"along", "anchor", "faithful", "given", "lambda_rank", "list_net", "margin_mse", "rank_net"}
ELSEWHERE |= {"own_candidates", "right_keys", "self_training", "sibling"}


def rows(count: int, seed: int = 0, first: int = 0) -> Rows:
    """Pairs that a linear map joins, two of a concept, eight concepts of a subcategory."""
    torch.manual_seed(0)
    maps = torch.randn(2, 8, 12)
    generator = torch.Generator().manual_seed(seed)
    known = torch.randn(count, 8, generator=generator)
    image, text = (known @ each + 0.3 * torch.randn(count, 12, generator=generator) for each in maps)
    place = torch.arange(first, first + count)
    labels = {"row": 2 * place, "caption": place, "concept": place // 2, "subcategory": place // 16}
    labels |= {"category": place // 32, "order": place / (first + count)}
    tags = torch.stack([place % 3, 3 + place % 5], 1)
    sentences = {"sentences": torch.stack([text, -text], 1), "count": 1 + place % 2}
    words = {number: f"two words {number}" for number in place.tolist()}
    return Rows(image, text, labels | {"tags": tags} | sentences, words)


@pytest.fixture
def own_data(monkeypatch):
    sets = {"seen style": rows(96), "unseen style": rows(96, seed=1), "flags": rows(16, first=500)}
    texts = [*study_data.BOILERPLATE, *study_data.NAMES]
    generator, places = torch.Generator().manual_seed(2), range(1000, 1000 + len(texts))
    junk = torch.randn(len(texts), 12, generator=generator)
    words = dict(zip(places, texts, strict=True))
    sets["junk"] = Rows(torch.zeros(len(texts), 0), junk, {"caption": torch.tensor(places)}, words)
    sets[study_data.CLIP_ART] = rows(96)
    monkeypatch.setattr(study_data, "FOUND", sets)
    return sets


def test_every_method_has_an_arm_that_decodes():
    words = []
    for arm in arms.ARMS.values():
        task = TASKS.decode({"name": "align", **arm.at(10.0).task})
        assert task.momentum == (arm.ema is not None)
        words.append(json.dumps(asdict(arm), default=str))
    for registry in (OBJECTIVES, EMBEDDING_OBJECTIVES, TARGETS, WEIGHTERS, SELECTORS, MIXERS, SAMPLERS):
        missing = {name for name in registry.names() if not any(f'"{name}"' in text for text in words)}
        assert missing <= ELSEWHERE, registry.kind


def test_a_scale_is_written_wherever_an_arm_names_it():
    arm = Arm(task={"terms": [{"a": "SCALE", "b": ["1/SCALE", 2]}], "c": "scale"})
    assert arm.at(4.0).task == {"terms": [{"a": 4.0, "b": [0.25, 2]}], "c": "scale"}


def test_swapped_captions_leave_none_in_its_place():
    before = rows(40)
    after, planted = arms.permuted(before, np.random.default_rng(0))
    assert planted.sum() == 12
    assert torch.equal(after.fields["caption"] != before.fields["caption"], planted)
    assert torch.equal(after.text.sort(0).values, before.text.sort(0).values)
    assert torch.equal((after.text != before.text).any(1), planted) and torch.equal(after.image, before.image)


def test_copies_are_other_rows_of_the_same_concept():
    before = rows(40)
    after, planted = arms.duplicated(before, np.random.default_rng(0))
    assert len(after) == 52 and planted.sum() == 12
    kept = after.at(~planted)
    assert all(torch.equal(kept.fields[name], before.fields[name]) for name in before.fields)
    assert len(after.fields["row"].unique()) == 52 and len(after.fields["concept"].unique()) == 20


def test_a_tail_is_as_long_as_zipf_says():
    before = rows(96)
    sizes = arms.zipf(before, np.random.default_rng(0)).fields["subcategory"].unique(return_counts=True)[1]
    assert sorted(sizes.tolist(), reverse=True) == [16, 8, 5, 4, 3, 3]


def test_junk_is_planted_and_the_filter_leaves_the_rest(own_data):
    before = rows(60)
    after, planted = arms.littered(before, np.random.default_rng(0))
    assert planted.sum() == 18 and torch.equal((after.text != before.text).any(1), planted)
    texts = [after.words[number] for number in after.fields["caption"][planted].tolist()]
    assert sum(text in study_data.BOILERPLATE for text in texts) == 9
    rules = arms.ARMS[arms.FILTER].rules | {"images_per_text": 1}
    kept = cells.passed(after, rules)
    once = [text for text in texts if text in study_data.BOILERPLATE and texts.count(text) == 1]
    assert len(kept) == 42 + len(once)  # boilerplate that stands beside one picture is told from nothing


def test_grades_are_those_of_a_loop_and_the_gain_is_of_both_directions():
    own = rows(20)
    label, tags, caption = (own.fields[name] for name in ("subcategory", "tags", "caption"))
    wanted = torch.tensor(
        [
            [
                3
                if caption[i] == caption[j]
                else int(label[i] == label[j]) + bool(set(tags[i].tolist()) & set(tags[j].tolist()))
                for j in range(20)
            ]
            for i in range(20)
        ]
    )
    assert torch.equal(cells.grades(own), wanted) and {0, 1, 2, 3} == set(wanted.flatten().tolist())
    model = cells.trained(own, arms.ARMS[arms.BASELINE], seed=0, batch=10, steps=2, lr=1e-3)
    image, text = model.encode_image({"features": own.image}), model.encode_text({"features": own.text})
    scores = (image @ text.T).detach().numpy()
    both = ndcg_score(wanted, scores, k=10) + ndcg_score(wanted.T, scores.T, k=10)
    assert cells.measured(model, own, graded=True)["ndcg@10"] == pytest.approx(both / 2)


def test_an_arm_draws_sentences_and_virtual_pictures_anew():
    own = rows(48)
    labels = own.fields["subcategory"].clone()
    labels[:44], labels[44:] = 1, 2
    own = own.having(subcategory=labels)
    calibrate = {"field": "subcategory", "head": 40, "share": 1.0}
    arm = replace(arms.ARMS[arms.SENTENCES], calibrate=calibrate)
    drawn = cells.Draws(own, arm, seed=0)
    places = torch.arange(48)
    once, again = drawn(cells._batch(own, places), places), drawn(cells._batch(own, places), places)
    moved = (once["query"]["features"] != own.image).any(1)
    assert torch.equal(moved, labels == 2)
    assert not torch.equal(once["query"]["features"], again["query"]["features"])
    two = own.fields["count"] == 2
    other = (again["key"]["features"] != own.text).any(1)
    assert not other[~two].any() and 0 < other[two].sum() < two.sum()


def test_an_arm_stands_where_its_data_are():
    def has(condition):
        return [arm for arm, _ in compare.entries([*arms.ARMS], [condition])]

    assert (
        arms.RCAL in has("Zipf tail")
        and arms.RCAL not in has("clean")
        and arms.UNLIKE not in has("Zipf tail")
    )
    art = [arms.BASELINE, arms.TWIN, arms.CONVIRT, arms.SENTENCES]
    assert has("clip art, several sentences") == art
    assert has("30 % junk captions")[-1] == arms.ORACLE and arms.ORACLE not in has("clean")
    everywhere = {
        entry for condition in arms.CONDITIONS for entry in compare.entries([*arms.ARMS], [condition])
    }
    assert arms.CLAIMS.keys() <= everywhere


def test_splits_keep_a_concept_on_one_side_and_draw_from_every_subcategory(own_data):
    assert set(compare.split(0, study_data.CLIP_ART).measured) == {"validation", "seen style"}
    splits = [compare.split(seed) for seed in (0, 1)]
    for learned, measured in splits:
        sides = [learned, measured["validation"], measured["seen style"]]
        concepts = [set(rows.fields["concept"].tolist()) for rows in sides]
        assert sum(map(len, concepts)) == len(set.union(*concepts)) == 48
        assert sum(map(len, sides)) == 96 and len(sides[2].fields["subcategory"].unique()) == 6
        assert torch.equal(sides[2].fields["row"], measured["unseen style"].fields["row"])
    assert not torch.equal(splits[0].learned.fields["row"], splits[1].learned.fields["row"])


def test_every_arm_learns_a_step(own_data):
    for name, arm in arms.ARMS.items():
        annotate = {
            field: how | ({"k": 40} if how["name"] == "kmeans" and how["k"] > 2 else {})
            for field, how in arm.annotate.items()
        }
        batch = 16 if name in (arms.UNLIKE, arms.LIKE) else 64
        model = cells.trained(
            rows(96), replace(arm, annotate=annotate).at(10.0), seed=0, batch=batch, steps=1, lr=1e-3
        )
        assert 0 < cells.measured(model, rows(96, seed=2))["mrr"] <= 1, name


def test_what_cannot_be_trained_is_told_and_never_chosen(own_data, monkeypatch, tmp_path):
    monkeypatch.setattr(compare, "CONDITIONS", {"clean": arms.Condition(batch=8, epochs=1)})
    grid = compare.grid(arms.UNLIKE, "clean", 0)  # 300 clusters of 60 rows
    failed = compare.run(grid[0])
    assert "fewer" in failed["failed"]
    done = compare.Cells(tmp_path / "cells.jsonl")
    for cell in grid:
        done.add(cell._asdict() | {"failed": "told"})
    assert done.best(arms.UNLIKE, "clean", 0) == {} == done.columns(arms.UNLIKE, "clean", 1)
    done.add(grid[1]._asdict() | measured(0.2))
    assert done.best(arms.UNLIKE, "clean", 0)["seen style"]["mrr"] == 0.2


def test_a_cell_learns_and_is_a_function_of_what_it_is_called(own_data, monkeypatch):
    short = {
        "clean": arms.Condition(batch=24, epochs=20),
        "planted": arms.CONDITIONS["30 % permuted captions"],
    }
    short["planted"] = replace(short["planted"], batch=24, epochs=5)
    monkeypatch.setattr(compare, "CONDITIONS", short)
    cell = compare.grid(arms.BASELINE, "clean", 0)[2]
    assert (cell.rate, cell.scale) == (3e-3, 10.0)
    once, again = compare.run(cell), compare.run(cell)
    untrained = compare.run(cell._replace(rate=1e-9))
    assert once["seen style"] == again["seen style"]
    assert once["seen style"]["mrr"] > untrained["seen style"]["mrr"] + 0.1
    twin = compare.run(cell._replace(arm=arms.TWIN))
    assert twin["seen style"] != once["seen style"]
    planted = compare.run(cell._replace(condition="planted"))["rows"]
    oracle = compare.run(cell._replace(arm=arms.ORACLE, condition="planted"))["rows"]
    assert oracle == planted - round(0.3 * planted)


def measured(mrr: float, validation: float = 0.1) -> dict:
    numbers = {"mrr": mrr, "r@1": mrr, "r@10": mrr}
    unseen = dict.fromkeys(("seen style", "unseen style", "flags"), numbers)
    return unseen | {"validation": {"mrr": validation}, "rows": 1, "seconds": 1.0}


NOISY, ASKED = "30 % permuted captions", [arms.BASELINE, arms.TWIN, "dcl", "focal"]


def filled(path, twin: float, seeds: int = 20) -> compare.Cells:
    """Cells of some seeds: a method that helps, one that does not, an oracle, the baseline's twin."""
    done, random = compare.Cells(path), np.random.default_rng(0)
    gains = {arms.BASELINE: 0.0, arms.TWIN: twin, "dcl": 0.04, "focal": 0.0, arms.ORACLE: 0.08}
    levels = random.normal(0.5, 0.05, seeds)
    for arm, gain in gains.items():
        for seed in reversed(range(seeds)):  # as processes finish, in any order
            found = levels[seed] + gain + random.normal(0, 0.01)
            for place, cell in enumerate(compare.grid(arm, NOISY, seed)):
                best = place == seed % 4
                done.add(cell._asdict() | measured(found if best else 0.9, 0.1 + 0.1 * best))
    return done


def summary(done: compare.Cells, seeds: int = 20) -> dict[str, dict]:
    return {row["arm"]: row for row in compare.summary(done, ASKED, [NOISY], seeds)}


def test_a_table_says_what_helps_and_how_much_could_have_been_seen(tmp_path):
    found = summary(filled(tmp_path / "cells.jsonl", twin=0.0))
    assert found["dcl"]["verdict"] == "helps" and found["dcl"]["share"] == pytest.approx(0.5, abs=0.1)
    assert found["focal"]["verdict"].startswith("no difference larger than")
    assert found[arms.ORACLE]["share"] is None and arms.BASELINE not in found
    compare.check_twin(list(found.values()))
    text = compare.markdown(list(found.values()))
    assert "| dcl | **helps** +" in text and "% of the oracle's" in text
    assert text.count("| dcl |") == 2 and "unseen style MRR" in text
    assert "- dynamic, linupper" not in text  # nobody ran it
    told = compare.markdown([{**found["focal"], "arm": "storm"}])
    assert f"- storm, {NOISY}: helps; here " in told and "(D " in told.split("Claimed")[1]
    assert summary(compare.Cells(tmp_path / "cells.jsonl")) == found


def test_nothing_is_told_where_the_baseline_differs_from_itself_or_has_no_twin(tmp_path):
    rows = summary(filled(tmp_path / "cells.jsonl", twin=0.05))
    with pytest.raises(SystemExit, match="differs from itself"):
        compare.check_twin(list(rows.values()))
    with pytest.raises(SystemExit, match="no twin"):
        compare.check_twin([rows["dcl"]])


def test_an_arm_is_compared_on_the_seeds_of_the_baseline_or_not_at_all(tmp_path):
    done = filled(tmp_path / "cells.jsonl", twin=0.0)
    cell = next(cell for cell in done.rows if cell.arm == "dcl" and cell.seed == 7)
    done.rows.pop(cell)  # whether or not it was the best
    assert "dcl" not in summary(done) and "focal" in summary(done)
    assert summary(done, seeds=5)["dcl"]["paired"].seeds == 5
    other = cell._replace(seed=3, made="of an arm that was changed")
    done.add(other._asdict() | measured(0.9))
    assert summary(done, seeds=5)["dcl"]["paired"].mean < 0.1


def test_a_torn_line_is_run_again(tmp_path):
    path = tmp_path / "cells.jsonl"
    count = len(filled(path, twin=0.0).rows)
    path.write_text(path.read_text()[:-40])
    again = compare.Cells(path)
    assert len(again.rows) == count - 1
    again.add(compare.grid("dcl", "clean", 0)[0]._asdict() | measured(0.5))
    assert len(compare.Cells(path).rows) == count


def test_a_digest_is_of_the_arm_and_of_the_condition():
    made = {compare.grid(arm, name, 0)[0].made for arm in arms.ARMS for name in arms.CONDITIONS}
    assert len(made) == (len(arms.ARMS) - 1) * len(arms.CONDITIONS)  # the twin's are the baseline's


def test_each_seed_has_what_its_own_validation_says_and_the_unseen_do_not_choose(tmp_path):
    done = filled(tmp_path / "cells.jsonl", twin=0.0, seeds=6)
    assert len(compare.grid("dcl", NOISY, 0)) == len(compare.RATES) * len(compare.SCALES)
    for seed in range(6):
        best = done.best("dcl", NOISY, seed)
        wanted = compare.grid("dcl", NOISY, seed)[seed % 4]
        assert (best["rate"], best["scale"]) == (wanted.rate, wanted.scale)
    assert max(done.columns("dcl", NOISY, 6)["primary"].values()) < 0.9


def test_the_cells_that_are_shipped_are_of_these_arms(tmp_path):
    path = tmp_path / "cells.jsonl"
    path.write_bytes(lzma.decompress(compare.SHIPPED.read_bytes()))
    shipped = compare.Cells(path).rows
    made = {
        (arm, name): compare.grid(arm, name, 0)[0].made
        for arm, name in compare.entries([*arms.ARMS], [*arms.CONDITIONS])
    }
    assert shipped and all(made[cell.arm, cell.condition] == cell.made for cell in shipped)


def test_frozen_rows_answer_as_annotators_ask():
    own = cells.Annotated(rows(10))
    assert len(own) == 10 and own.field("concept").dtype == torch.int64
    torch.testing.assert_close(own.features("text").norm(dim=1), torch.ones(10))
