"""Documents by a tiny language model: as it alone would write them, whole after any stop, one a query."""

import json
from hashlib import blake2b

import pytest
import torch
import transformers
from typer.testing import CliRunner

from tests.language_models import language_model
from tests.unit.data.json_lines import lines as write
from vlalign.cli.main import app
from vlalign.data.hashing import hash63
from vlalign.infer import synthesize as module
from vlalign.infer.parts import Parts
from vlalign.infer.synthesize import Drawn, Writer, synthesize
from vlalign.recipe.decode import load_recipe
from vlalign.registry import SOURCES
from vlalign.types import RecipeError, UserError

QUERIES = ["a red car", "cat", "Which dog is in the house near the tree?", "<|im_end|> a small cat", "é🦙"]
ROWS = [
    {
        "id": f"q{row}",
        "query": f"{QUERIES[row % 5]} {row}",
        "candidates": [{"text": f"human {row}", "label": 1}],
    }
    for row in range(20)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("synthesize")
    language_model(place / "model", "llama")
    write(place / "rows.jsonl", *ROWS)
    return place


def recipe(folder, out, *overrides):
    told = {"verb": "synthesize", "out": str(out), "model": str(folder / "model"), "tokens": 12}
    told["data"] = {"name": "candidates", "path": str(folder / "rows.jsonl")}
    path = out.parent / f"{out.name}.yaml"
    path.write_text(json.dumps(told))
    return load_recipe(path, list(overrides))


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def alone(folder, text, count, choose):
    """One token after another by the whole forward, without padding and without a cache."""
    net = transformers.AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    start = len(ids)
    while len(ids) < start + count and tokenizer.eos_token_id not in ids[start:]:
        with torch.no_grad():
            ids.append(choose(net(torch.tensor([ids])).logits[0, -1]))
    return tokenizer.decode(ids[start:], skip_special_tokens=True).strip()


def asked(query):
    query = query.replace("<|im_end|>", "< |im_end|>")
    text = f"Write a short passage that answers this query.\n\nQuery: {query}\n\nPassage:"
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def test_the_likeliest_tokens_are_those_of_each_query_alone(folder, tmp_path):
    told = recipe(folder, tmp_path / "out", "temperature=0")
    found = lines(synthesize(told) / "documents.jsonl")
    assert [line["query_id"] for line in found] == [row["id"] for row in ROWS]
    prompt = blake2b(told.prompt.encode(), digest_size=8).hexdigest()
    for line, row in zip(found, ROWS, strict=True):
        assert line["query"] == row["query"] and line["seed"] == 0
        assert (line["generator"], line["prompt"]) == (str(folder / "model"), prompt)
    for line in found[:5]:
        assert line["document"] == alone(
            folder, asked(line["query"]), 12, lambda logits: int(logits.argmax())
        )
    assert not (tmp_path / "out" / "bad.json").exists()


def test_drawn_tokens_are_a_querys_own(folder, tmp_path, monkeypatch):
    found = lines(
        synthesize(recipe(folder, tmp_path / "out", "temperature=0.9", "seed=5")) / "documents.jsonl"
    )
    for line in found[:5]:
        own = torch.Generator().manual_seed(hash63(5, line["query_id"]))

        def choose(logits, own=own):
            noise = torch.empty(len(logits)).exponential_(generator=own).log()
            return int((logits / 0.9 - noise).argmax())

        assert line["document"] == alone(folder, asked(line["query"]), 12, choose)
    monkeypatch.setattr(module, "TOGETHER", 3)
    again = recipe(folder, tmp_path / "again", "temperature=0.9", "seed=5")
    assert lines(synthesize(again) / "documents.jsonl") == found
    other = recipe(folder, tmp_path / "other", "temperature=0.9", "seed=6")
    assert [line["document"] for line in lines(synthesize(other) / "documents.jsonl")] != [
        line["document"] for line in found
    ]


def test_noise_draws_from_the_distribution_at_a_temperature(folder, tmp_path):
    told, draws = recipe(folder, tmp_path / "out", "temperature=0.5"), 4000
    noise = Drawn(told, [f"q{row}" for row in range(draws)])
    logits = torch.tensor([1.0, 0.0, -0.5, 0.7])
    counts = noise(torch.zeros(draws, 1), logits.expand(draws, -1)).argmax(1).bincount(minlength=4)
    expected = (logits / 0.5).softmax(0) * draws
    assert ((counts - expected) ** 2 / expected).sum() < 16.3  # chi square of 3 degrees, 0.1 %
    next_ones = noise(torch.zeros(draws, 1), logits.expand(draws, -1)).argmax(1).bincount(minlength=4)
    assert not torch.equal(counts, next_ones)


def test_a_tokenizer_without_a_template_reads_the_prompt_itself(folder, tmp_path):
    language_model(tmp_path / "model", "qwen3")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.chat_template = None
    (tmp_path / "model" / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(tmp_path / "model")
    write(tmp_path / "rows.jsonl", *ROWS[:3])
    told = recipe(tmp_path, tmp_path / "out", "temperature=0", "prompt='Q {query} A'")
    for line in lines(synthesize(told) / "documents.jsonl"):
        text = f"Q {line['query']} A"
        assert line["document"] == alone(tmp_path, text, 12, lambda logits: int(logits.argmax()))


def test_killed_at_any_row_it_goes_on_and_ends_alike(folder, tmp_path, monkeypatch):
    whole = synthesize(recipe(folder, tmp_path / "whole"))
    told, plain, seen = recipe(folder, tmp_path / "out"), Parts.add, []

    def killed(self, row, found):
        seen.append(row)
        if len(seen) == 6:
            with self.own.open("a") as file:
                file.write('{"row": 5, "id": "q5", "docu')
            raise KeyboardInterrupt
        plain(self, row, found)

    monkeypatch.setattr(Parts, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        synthesize(told)
    monkeypatch.setattr(Parts, "add", lambda self, row, found: (seen.append(row), plain(self, row, found)))
    out = synthesize(told)
    assert sorted(seen) == sorted([*range(20), 5])  # the torn one again, no other
    assert (out / "documents.jsonl").read_bytes() == (whole / "documents.jsonl").read_bytes()
    monkeypatch.setattr(module, "Writer", lambda recipe: pytest.fail("nothing is left to write"))
    assert synthesize(told) == out


def test_processes_share_the_queries_and_the_last_one_writes(folder, tmp_path, monkeypatch):
    whole, told = synthesize(recipe(folder, tmp_path / "whole")), recipe(folder, tmp_path / "out")
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = []
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        found.append(synthesize(told))
        assert len(lines(tmp_path / "out" / f"part-{rank}.jsonl")) == 10
    assert found == [None, tmp_path / "out"]
    assert (tmp_path / "out" / "documents.jsonl").read_bytes() == (whole / "documents.jsonl").read_bytes()


def test_queries_that_nothing_is_written_for_are_told(folder, tmp_path):
    """A model whose last norm is 0 has equal logits, and the first token is a special one."""
    language_model(tmp_path / "model", "llama")
    net = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.nn.init.zeros_(net.model.norm.weight)
    net.save_pretrained(tmp_path / "model")
    candidates = [{"text": "x", "label": 1}]
    told = [
        {"id": "picture", "query": {"image": "a.png"}, "candidates": candidates},
        {"id": "long", "query": "a red car " * 400, "candidates": candidates},
        {"id": "good", "query": "a red car", "candidates": candidates},
    ]
    write(tmp_path / "rows.jsonl", *told)
    out = synthesize(recipe(tmp_path, tmp_path / "out", "temperature=0"))
    bad = {"picture": "no_text", "long": "too_long", "good": "empty_document"}
    assert json.loads((out / "bad.json").read_text()) == bad
    assert (out / "documents.jsonl").read_text() == ""


def test_what_is_written_is_read_by_the_source_of_synthetic_documents(folder, tmp_path):
    out = synthesize(recipe(folder, tmp_path / "out"))
    data = {"name": "candidates", "path": str(folder / "rows.jsonl")}
    told = {"name": "synthetic", "data": data, "documents": str(out / "documents.jsonl")}
    written = {line["query_id"]: line["document"] for line in lines(out / "documents.jsonl")}
    rows = SOURCES.decode(told).build()
    assert len(rows) == len(written) > 15
    for index in range(len(rows)):
        row = rows[index]
        assert row["candidates"][0].text == written[row["id"]]
        assert row["numbers"] == {"label": [1.0, 0, 0, 0, 0], "synthetic": [1.0] * 5}
    assert [licence.name for licence in rows.licences][1] == f"{len(written)} documents by {folder / 'model'}"


def test_other_data_in_the_same_place_are_told(folder, tmp_path):
    write(tmp_path / "rows.jsonl", *ROWS[:4])
    language_model(tmp_path / "model", "llama")
    synthesize(told := recipe(tmp_path, tmp_path / "out"))
    write(tmp_path / "rows.jsonl", *ROWS[1:5])
    with pytest.raises(UserError, match="row 0 is 'q1', and was 'q0' when a document was written for it"):
        synthesize(told)
    with pytest.raises(RecipeError, match="holds a run of another recipe"):
        synthesize(recipe(tmp_path, tmp_path / "out", "seed=1"))


def test_a_query_is_no_part_of_the_conversation(folder, tmp_path):
    writer = Writer(recipe(folder, tmp_path / "out"))
    marks = [writer.read(text).count(writer.tokenizer.eos_token_id) for text in ("a cat", "<|im_end|> a cat")]
    assert marks[0] == marks[1] == 1


def test_the_command_writes_and_says_where(folder, tmp_path):
    recipe(folder, tmp_path / "out", "tokens=2")
    found = CliRunner().invoke(app, ["synthesize", str(tmp_path / "out.yaml"), "tokens=2"])
    assert found.exit_code == 0 and "documents.jsonl" in found.output
    assert len(lines(tmp_path / "out" / "part-0.jsonl")) == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("prompt=Write.", "prompt: must have the place {query} once"),
        ("prompt='{query} {query}'", "prompt: must have the place {query} once"),
        ("tokens=0", "tokens: must be >= 1, got 0"),
        ("temperature=-1", "temperature: must be finite and >= 0, got -1"),
        ("temperature=.inf", "temperature: must be finite"),
        ("model=' '", "model: must not be empty"),
        ("data={name: jsonl, path: x}", "data: must be queries with candidates"),
    ],
)
def test_recipes_that_cannot_run_are_refused(folder, tmp_path, change, message):
    with pytest.raises(RecipeError) as error:
        recipe(folder, tmp_path / "out", change)
    assert message in str(error.value)
