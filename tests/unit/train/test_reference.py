"""A reference that reads captions while a captioner learns them: its numbers, and where they stay."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.dist.launch import forked
from tests.language_models import language_model, tokenizer
from tests.multimodal_models import picture
from tests.unit.infer.mined import lines
from vlalign.models.caption_writer import CaptionWriter
from vlalign.recipe.decode import load_recipe
from vlalign.recipe.decode import write as write_recipe
from vlalign.registry import MODELS, REFERENCES, SOURCES
from vlalign.train import reference
from vlalign.train.loop import train
from vlalign.train.plan.forecast import forecast
from vlalign.train.reference import ReferenceNumbers
from vlalign.types import DataError, Item, RecipeError, UserError

CPU = torch.device("cpu")
WORDS = ["a red car", "a cat", "a small cat near a tree, with a dog in the house", "no", "the dog"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLALIGN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A language model, and rows of pictures with captions, two of which are alike."""
    place = tmp_path_factory.mktemp("reference")
    language_model(place / "lm", "llama", seed=3)
    rows = []
    for at in range(12):
        picture(at).save(place / f"{at}.png")
        rows.append(
            json.dumps({"id": f"r{at}", "image": f"{at}.png", "caption": f"{WORDS[at % 5]} {at // 2}"})
        )
    (place / "rows.jsonl").write_text("\n".join(rows) + "\n")
    return place


def recipe(folder, out, *overrides, **fields):
    told = {"name": "language_model", "model": str(folder / "lm")} | fields
    made = {"language": str(folder / "lm"), "tower": "test_efficientnet", "weights": None, "image_size": 64}
    data = {"name": "jsonl", "path": str(folder / "rows.jsonl"), "id": "id"}
    changes = [f"model.made={json.dumps(made)}", f"data.train={json.dumps(data)}", "log.trackers=[]"]
    changes += [f"data.reference={json.dumps(told)}", f"out={out}", "optim.lr=0.01", *overrides]
    return load_recipe("recipes/tiny/prior.yaml", changes)


@pytest.fixture(scope="module")
def process(folder):
    """Of a captioner."""
    made = {"language": str(folder / "lm"), "tower": "test_efficientnet", "image_size": 64}
    return MODELS.decode({"name": "captioner", "made": made, "length": 100}).build().process


@pytest.fixture
def source(folder):
    return SOURCES.decode({"name": "jsonl", "path": str(folder / "rows.jsonl"), "id": "id"}).build()


def chunk(process, *texts):
    read = [process.read(Item(images=(picture(at),)), [Item(text=text)]) for at, text in enumerate(texts)]
    return {"pairs": process.join(read), "ids": [str(at) for at in range(len(texts))], "bad": []}


def numbers(process, source, told, kept=False):
    spec = REFERENCES.decode(told)
    return ReferenceNumbers(spec.gives, spec.build(process, source, CPU), 0, kept)


@pytest.fixture
def own(folder, process, source):
    return numbers(process, source, {"name": "language_model", "model": str(folder / "lm")})


@pytest.fixture
def asked(monkeypatch):
    """How many captions a language model reads from now on, forward by forward."""
    counts, whole = list[int](), CaptionWriter.losses_of

    def noted(self, read):
        counts.append(len(read))
        return whole(self, read)

    monkeypatch.setattr(CaptionWriter, "losses_of", noted)
    return counts


def losses(out):
    return [line["loss"] for line in lines(out / "log.jsonl")[1:]]


def test_numbers_are_those_of_transformers_for_each_caption_alone(folder, process, own):
    import transformers

    net = transformers.AutoModelForCausalLM.from_pretrained(folder / "lm")
    found = own(chunk(process, *WORDS))["token_fields"]["log_probability"]
    assert found.dtype is torch.float32 and not found.requires_grad
    at = 0
    for text in WORDS:
        ids = process.written(text)
        assert tokenizer().decode(ids) == f"{text}<|im_end|>"
        with torch.no_grad():
            logits = net(torch.tensor([[tokenizer().eos_token_id, *ids]])).logits[0, :-1].double()
        wanted = logits.log_softmax(-1)[torch.arange(len(ids)), ids]
        torch.testing.assert_close(found[at : at + len(ids)].double(), wanted, atol=1e-5, rtol=0)
        at += len(ids)
    assert at == len(found)


def test_they_are_the_same_in_any_company(folder, process, source, own):
    whole = own(chunk(process, *WORDS))["token_fields"]["log_probability"]
    for order in ([4, 2, 0, 1, 3], [2], [3, 1]):
        made = chunk(process, *[WORDS[at] for at in order])
        fresh = numbers(process, source, {"name": "language_model", "model": str(folder / "lm")})(made)
        found = fresh["token_fields"]["log_probability"].split(made["pairs"]["row"].bincount().tolist())
        parts = whole.split([len(process.written(text)) for text in WORDS])
        for at, each in zip(order, found, strict=True):
            torch.testing.assert_close(each, parts[at], atol=1e-5, rtol=0)
    assert set(fresh) == {"pairs", "ids", "bad", "token_fields"}


def test_a_caption_is_read_once_and_kept_by_a_checkpoint(process, own, asked, tmp_path, monkeypatch):
    first = own(chunk(process, WORDS[0], WORDS[1], WORDS[0]))["token_fields"]["log_probability"]
    assert sum(asked) == 2
    again = own(chunk(process, WORDS[1], WORDS[0]))["token_fields"]["log_probability"]
    assert sum(asked) == 2 and torch.equal(again[-len(process.written(WORDS[0])) :], first[: -len(again)])
    before = dict(own.known)
    own.save(tmp_path)
    own.known = {}
    own.restore(tmp_path)
    assert own.known.keys() == before.keys()
    assert all(torch.equal(x, before[key]) for key, x in own.known.items())
    monkeypatch.setattr(reference, "REMEMBERED", 1)
    own(chunk(process, WORDS[2], WORDS[3]))
    assert len(own.known) == 1 and sum(asked) == 4
    own(chunk(process, WORDS[0]))
    assert sum(asked) == 5


def test_an_empty_memory_and_one_of_other_processes_begin_anew(own, tmp_path):
    own.save(tmp_path)
    own.restore(tmp_path)
    assert own.known == {}
    (tmp_path / "reference_00000.safetensors").unlink()
    own.restore(tmp_path)
    assert own.known == {}


def test_another_run_finds_them_on_the_disk_by_the_models_content(
    folder, process, source, asked, tmp_path, monkeypatch
):
    told = {"name": "language_model", "model": str(folder / "lm")}
    first = numbers(process, source, told, kept=True)
    wanted = first(chunk(process, *WORDS[:3]))["token_fields"]["log_probability"]
    (tmp_path / "step").mkdir()
    first.save(tmp_path / "step")
    second = numbers(process, source, told, kept=True)
    count = sum(asked)
    assert torch.equal(second(chunk(process, *WORDS[:3]))["token_fields"]["log_probability"], wanted)
    assert sum(asked) == count == 3
    monkeypatch.setattr(reference, "TOGETHER", 1)
    second(chunk(process, WORDS[3]))
    assert numbers(process, source, told, kept=True).disk.get([*second.known]) and not second.new
    other = {"name": "language_model", "model": str(language_model(tmp_path / "other", "llama", seed=4))}
    numbers(process, source, other, kept=True)(chunk(process, WORDS[0]))
    numbers(process, source, told | {"pretrained": False}, kept=True)(chunk(process, WORDS[0]))
    assert sum(asked) == count + 3


def test_random_weights_are_the_same_each_time_and_leave_the_runs_random_state(folder, process, source):
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    told = {"name": "language_model", "model": str(folder / "lm"), "pretrained": False}
    one, other = (numbers(process, source, told)(chunk(process, *WORDS)) for _ in range(2))
    assert torch.equal(torch.rand(1), wanted)
    assert torch.equal(one["token_fields"]["log_probability"], other["token_fields"]["log_probability"])
    read = numbers(process, source, told | {"pretrained": True})(chunk(process, *WORDS))
    assert not torch.allclose(
        read["token_fields"]["log_probability"], one["token_fields"]["log_probability"], atol=0.1
    )


def test_a_share_is_that_of_a_loop_over_all_captions(process, source):
    counts = [1] * len(process.tokenizer)
    for index in range(len(source)):
        for caption in source.captions(index):
            for id in process.written(caption):
                counts[id] += 1
    made = chunk(process, *WORDS)
    found = numbers(process, source, {"name": "unigram"})(made)["token_fields"]["log_probability"]
    wanted = torch.tensor([counts[id] / sum(counts) for id in made["pairs"]["labels"].tolist()]).log()
    torch.testing.assert_close(found, wanted)
    assert len(set(found.tolist())) > 5


def test_it_learns_what_a_plain_run_does_with_alpha_0_and_something_else_with_1(folder, tmp_path):
    out = train(recipe(folder, tmp_path / "prior"))
    flat = train(recipe(folder, tmp_path / "flat", "task.token_terms.0.weighters.0.alpha=0"))
    plain = [f"out={tmp_path / 'plain'}", "data.reference=null", "task.token_terms.0.weighters=[]"]
    plain = train(recipe(folder, tmp_path / "plain", *plain))
    assert losses(flat) == losses(plain)
    assert all(abs(one - other) > 1e-4 for one, other in zip(losses(out), losses(plain), strict=True))
    names = load_file(out / "model" / "model.safetensors").keys()
    assert names == load_file(plain / "model" / "model.safetensors").keys()  # the reference is not saved
    whole = train(recipe(folder, tmp_path / "whole", "data.chunk=null", "data.workers=1"))
    assert losses(whole) == pytest.approx(losses(out), rel=1e-5)


def test_a_run_that_was_cut_goes_on_to_the_same_losses(folder, tmp_path):
    """To the bit, without the disk's cache: a checkpoint has what was read beside what before the cut."""
    more = [
        "steps=6",
        "checkpoint.every=1",
        "checkpoint.keep=4",
        "data.batch=4",
        "data.chunk=2",
        "feature_cache=false",
    ]
    whole = train(recipe(folder, tmp_path / "whole", *more))
    assert not (tmp_path / "cache" / "references").exists()
    again = tmp_path / "again"
    again.mkdir()
    (again / "recipe.yaml").write_text((whole / "recipe.yaml").read_text().replace("/whole", "/again"))
    (whole / "step_00000004").rename(again / "step_00000004")
    log = (whole / "log.jsonl").read_text().splitlines(keepends=True)
    (again / "log.jsonl").write_text("".join(log[:5]))
    out = train(recipe(folder, again, *more))
    assert len(losses(out)) == 6 and losses(out) == losses(whole)


@pytest.mark.slow
def test_two_processes_learn_as_one(folder, tmp_path):
    write_recipe(recipe(folder, tmp_path / "two", "steps=5", "data.batch=4", "data.chunk=1"), tmp_path)
    (tmp_path / "recipe.yaml").rename(tmp_path / "r.yaml")
    for processes, out in ((1, "one"), (2, "two")):
        forked(processes, "tests.dist.rerank_run", str(tmp_path), out)
    one, two = (tmp_path / each for each in ("one", "two"))
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    kept = [load_file(two / "step_00000005" / f"reference_0000{rank}.safetensors") for rank in (0, 1)]
    assert all(len(each["captions"]) for each in kept)


def test_a_language_model_of_captions_learns_and_is_a_reference(folder, tmp_path):
    """It decodes no picture, and its loss on captions is that of the numbers which it then gives."""
    own = tmp_path / "rows.jsonl"
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    own.write_text(
        "".join(json.dumps({**row, "image": f"{folder}/gone/{row['id']}.png"}) + "\n" for row in rows)
    )
    data = json.dumps({"name": "jsonl", "path": str(own), "id": "id"})
    told = [
        f"out={tmp_path / 'lm'}",
        f"data.train={data}",
        f"model.id={folder / 'lm'}",
        "model.pretrained=true",
    ]
    lm = train(
        load_recipe("recipes/tiny/caption_lm.yaml", [*told, "log.trackers=[]", "steps=20", "optim.lr=0.01"])
    )
    assert losses(lm)[-1] < losses(lm)[0] - 0.5
    out = train(recipe(folder, tmp_path / "out", model=str(lm)))
    assert len(losses(out)) == 3
    assert (lm / "model" / "adapter").is_dir()


def test_what_cannot_refer_is_refused(folder, process, source, own, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with pytest.raises(
        RecipeError, match="a weighter reads the number 'log_probability' of tokens, and nothing gives"
    ):
        recipe(folder, out, "data.reference=null")
    with pytest.raises(
        RecipeError, match="data.reference: nothing in the task reads what it gives; name a wei"
    ):
        recipe(folder, out, "task.token_terms.0.weighters=[]")
    with pytest.raises(RecipeError, match="data.reference: nothing in the task reads what it gives"):
        load_recipe("recipes/tiny/clip.yaml", ["data.reference=unigram"])
    with pytest.raises(RecipeError, match="data.reference.model: must not be empty"):
        recipe(folder, out, model="")
    with pytest.raises(UserError, match="nowhere/at/all: there is no such folder"):
        train(recipe(folder, out, model="nowhere/at/all"))
    told = {"name": "language_model", "model": str(folder / "lm")}
    vocabulary = process.tokenizer.get_vocab()
    swapped = vocabulary | {"a": vocabulary["b"], "b": vocabulary["a"]}
    with monkeypatch.context() as other:
        other.setattr(process.tokenizer, "get_vocab", lambda: swapped)
        with pytest.raises(
            UserError, match="2 of the .* tokens of .*lm are not the captioner's, such as 'a';"
        ):
            numbers(process, source, told)
    own.reference.known = 7
    with pytest.raises(
        DataError, match="a caption has the token [0-9]+, and .*lm has 7; leave such captions out"
    ):
        own(chunk(process, WORDS[0]))
    own.reference = lambda captions: [torch.full((len(each),), torch.nan) for each in captions]
    with pytest.raises(UserError, match="some of its numbers are not finite; look at its weights"):
        own(chunk(process, WORDS[1]))
    with pytest.raises(RecipeError, match="only steps over pairs are forecast"):
        forecast(recipe(folder, out), 1, "cpu", "ddp")
