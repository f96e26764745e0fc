"""What learns, learns what it should, and is what is saved."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vlalign
from tests.language_models import inputs, language_model, reranker
from vlalign.models import causal
from vlalign.models.weights import initialise, opened, save
from vlalign.recipe.decode import load_recipe
from vlalign.registry import MODELS
from vlalign.train.loop import train
from vlalign.types import RecipeError, UserError

GROUPS = [("a red car", ["a red car near a tree", "a cat", "no"]), ("a cat", ["a dog", "the small cat"])]
LORA = {"rank": 2, "alpha": 4.0}
WORDS = ["red", "green", "blue", "cat", "dog", "car", "tree", "house"]


def gradients(model) -> dict[str, torch.Tensor]:
    model.zero_grad()
    answer = model(inputs(model, *GROUPS))
    total = 0 if answer.total is None else answer.total.sum()
    (answer.scores.tanh().sum() + answer.yes.sin().sum() + total).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_alike(found, wanted, atol=1e-5):
    assert found.keys() == wanted.keys() and found
    for name, x in wanted.items():
        torch.testing.assert_close(found[name], x, atol=atol * max(1.0, float(x.abs().max())), rtol=0)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_a_shared_prefix_gives_the_same_gradients(family, lora, tmp_path):
    model = reranker(tmp_path, family, lora=lora).train()
    shared = gradients(model)
    assert inputs(model, *GROUPS)["pairs"]["prefix_ids"].shape[1] > 20
    model.process.share = False
    assert inputs(model, *GROUPS)["pairs"]["prefix_ids"].shape[1] == 0
    assert_alike(gradients(model), shared)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_15_gradient_checkpointing_gives_the_same_gradients(lora, tmp_path):
    model = reranker(tmp_path, lora=lora).train()
    plain = gradients(model)
    model.gradient_checkpointing()
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    assert_alike(gradients(model), plain)
    if lora:
        assert all("lora_" in name for name in plain)
        moved = {name.split(".lora_")[0] for name in plain}
        assert len(moved) == 3 * 7  # every Linear of every layer


@pytest.mark.parametrize("tied", [True, False])
def test_18_the_rows_of_the_words_make_no_gradient_of_the_whole_vocabulary(tied, tmp_path):
    model = reranker(tmp_path, tied=tied).train()
    model.vocabulary = True
    names = gradients(model)
    assert names and not any("embed" in name or "lm_head" in name for name in names)
    assert not model.answers.requires_grad
    head = model.net.get_output_embeddings().weight
    assert torch.equal(model.answers, head[model.words])
    assert model.answers.untyped_storage().data_ptr() != head.untyped_storage().data_ptr()


@torch.no_grad()
def test_the_sum_over_all_words_is_the_whole_models(tmp_path):
    model = reranker(tmp_path)
    assert model(inputs(model, *GROUPS)).total is None
    model.vocabulary = True
    batch = inputs(model, ("a red car", ["a cat"]))
    logits = model.net(input_ids=batch["pairs"]["input_ids"]).logits[0, -1]
    torch.testing.assert_close(model(batch).total[0], logits.logsumexp(-1))


def learnt(model):
    """After two steps away from where it began."""
    descent = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        gradients(model)
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        descent.step()
    return model.eval()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("fields", [{}, {"lora": LORA}, {"layer": 2}, {"layer": 2, "lora": LORA}], ids=str)
@torch.no_grad()
def test_19_saved_and_loaded_it_scores_alike(fields, tied, tmp_path):
    """By this package, by transformers, and where there are adapters by PEFT over the base."""
    import transformers
    from peft import PeftModel

    with torch.enable_grad():
        model = learnt(reranker(tmp_path / "base", tied=tied, **fields).train())
    batch = inputs(model, *GROUPS)
    expected = model(batch).scores
    before = reranker(tmp_path / "base", tied=tied, **{"layer": fields.get("layer")})(batch).scores
    assert (before - expected).abs().max() > 0.01
    save(model, tmp_path / "saved")
    again = opened(tmp_path / "saved", device="cpu")
    torch.testing.assert_close(again(batch).scores, expected, atol=1e-5, rtol=0)
    model.process.share = False
    prompts = inputs(model, *GROUPS)["pairs"]
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    nets = [whole]
    if "lora" in fields and "layer" not in fields:
        base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        nets.append(PeftModel.from_pretrained(base, tmp_path / "saved" / "adapter").eval())
    for net in nets:
        logits = net(input_ids=prompts["input_ids"], attention_mask=prompts["mask"]).logits
        last = logits[torch.arange(len(logits)), prompts["mask"].sum(1) - 1]
        torch.testing.assert_close(
            last[:, model.words[0]] - last[:, model.words[1]], expected, atol=1e-5, rtol=0
        )
    scores = vlalign.load(tmp_path / "saved").score(["a red car"], [GROUPS[0][1]])
    torch.testing.assert_close(scores[0], expected[:3], atol=1e-5, rtol=0)


@pytest.mark.parametrize("prompt", ["qwen3_reranker", "chat", "bge_gemma", "unime"])
@torch.no_grad()
def test_19_sentence_transformers_finds_the_same_scores(prompt, tmp_path):
    """Its CrossEncoder, raw as ours, from the folder alone."""
    cross_encoder = pytest.importorskip("sentence_transformers").CrossEncoder
    model = reranker(tmp_path / "base", prompt=prompt, lora=LORA)
    save(model, tmp_path / "saved")
    query, documents = "a red {car}", ["a red car near a tree", 'say "no"\n', "a cat"]
    theirs = cross_encoder(str(tmp_path / "saved"), device="cpu").predict(
        [(query, each) for each in documents]
    )
    [mine] = vlalign.load(tmp_path / "saved").score([query], [documents])
    torch.testing.assert_close(mine, torch.from_numpy(theirs), atol=1e-5, rtol=0)


@torch.no_grad()
def test_it_may_start_from_another_whose_words_it_takes_over(tmp_path):
    other = reranker(tmp_path / "other")
    other.net.get_output_embeddings().weight.mul_(2)
    save(other, tmp_path / "saved")
    model = (
        MODELS.decode(
            {
                "name": "llm_reranker",
                "id": str(language_model(tmp_path / "mine", seed=1)),
                "prompt": "qwen3_reranker",
                "lora": LORA,
            }
        )
        .build()
        .eval()
    )
    initialise(model, tmp_path / "saved")
    batch = inputs(model, *GROUPS)
    fresh = opened(tmp_path / "saved", device="cpu")
    torch.testing.assert_close(model(batch).scores, fresh(batch).scores, atol=1e-5, rtol=0)


def test_an_early_exit_has_its_layers_and_no_others(tmp_path):
    model = reranker(tmp_path, layer=2)
    assert len(model.net.get_decoder().layers) == 2 == model.net.config.num_hidden_layers
    with pytest.raises(UserError, match="model.layer: 4 layers are to be kept, and .* has 3"):
        reranker(tmp_path, layer=4)


@pytest.mark.parametrize("name", causal.BENT)
def test_logits_that_are_bent_after_the_head_are_refused(name, tmp_path):
    folder = language_model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {name: 30.0}))
    with pytest.raises(UserError, match=rf"its logits are more than .* \({name}\)"):
        MODELS.decode({"name": "llm_reranker", "id": str(folder)}).build()


def rows(path: Path, count: int = 24) -> Path:
    """A word, and texts with it and without."""
    generator = torch.Generator().manual_seed(0)
    lines = []
    for row in range(count):
        draws = [torch.randperm(len(WORDS), generator=generator)[:2].tolist() for _ in range(6)]
        texts = [" ".join(WORDS[at] for at in draw) for draw in draws]
        query = WORDS[row % len(WORDS)]
        told = [{"text": x, "label": int(query in x.split()), "first": len(x) / 10} for x in texts]
        lines.append(json.dumps({"id": f"q{row}", "query": query, "candidates": told}))
    path.write_text("\n".join(lines) + "\n")
    return path


def recipe(tmp_path: Path, *overrides: str, **model):
    told = {
        "verb": "train",
        "out": str(tmp_path / "out"),
        "model": {
            "name": "llm_reranker",
            "id": str(language_model(tmp_path / "lm", "llama")),
            "length": 128,
            **model,
        },
        "data": {"train": {"name": "candidates", "path": str(rows(tmp_path / "rows.jsonl")), "negatives": 3}}
        | {"batch": 8, "chunk": 3},
        "task": {"name": "rerank", "answer_terms": [{"objective": "yes_no"}]},
        "steps": 4,
        "optim": {"name": "adamw", "lr": 1e-3},
        "schedule": {"name": "cosine"},
        "log": {"every": 1, "trackers": []},
    }
    (tmp_path / "r.yaml").write_text(json.dumps(told))
    return load_recipe(tmp_path / "r.yaml", list(overrides))


def logged(out: Path) -> list[dict]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{**line, "time": None} for line in lines if "loss" in line]


def test_a_run_does_not_depend_on_chunks_or_sharing_or_workers(tmp_path):
    told = [
        logged(train(recipe(tmp_path, f"out={tmp_path / name}", *more)))
        for name, more in {
            "a": (),
            "b": ("data.chunk=8",),
            "c": ("model.share=false",),
            "d": ("data.workers=2",),
        }.items()
    ]
    losses = torch.tensor([[line["loss"] for line in lines] for lines in told])
    assert (losses - losses[0]).abs().max() < 1e-5 and losses.shape == (4, 4)
    assert "scale" not in told[0][0] and told[0][0]["norm"] > 0


def test_a_run_that_stopped_goes_on_where_it_was(tmp_path):
    whole = train(recipe(tmp_path, f"out={tmp_path / 'whole'}", lora=LORA))
    with pytest.MonkeyPatch.context() as patch:
        stop = RuntimeError("stopped")
        from vlalign.train.run import Run

        plain = Run.after

        def after(self, step, *rest):
            plain(self, step, *rest)
            if step == 3:
                raise stop

        patch.setattr(Run, "after", after)
        with pytest.raises(RuntimeError, match="stopped"):
            train(recipe(tmp_path, f"out={tmp_path / 'halves'}", "checkpoint.every=2", lora=LORA))
    halves = train(recipe(tmp_path, f"out={tmp_path / 'halves'}", "checkpoint.every=2", lora=LORA))
    mine, other = (load_file(out / "model" / "model.safetensors") for out in (halves, whole))
    assert mine.keys() == other.keys() and all(torch.equal(mine[name], x) for name, x in other.items())


def test_what_does_not_fit_together_is_told_before_anything_loads(tmp_path):
    with pytest.raises(
        RecipeError, match="model: llm_reranker is for candidates, and the task align reads pairs"
    ):
        recipe(tmp_path, "task={name: align, targets: identity, terms: [{objective: info_nce}]}")
    with pytest.raises(RecipeError, match="data.augment is for pairs, and the task rerank reads candidates"):
        recipe(tmp_path, "data.augment.flip=true")
    with pytest.raises(RecipeError, match="reads the number 'teacher' of candidates.*all have first, label"):
        train(
            recipe(
                tmp_path,
                "task={name: rerank, terms: [{objective: kl, targets: {name: given, field: teacher}}]}",
            )
        )
