"""The card of a reranker: what the Hub indexes, the prompt byte for byte, and which servers it names."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from ruamel.yaml import YAML

from tests.language_models import language_model
from vlalign.files import write_json
from vlalign.models.card import Facts, card
from vlalign.models.parcel import collect, collect_adapter, read_texts
from vlalign.models.reranker_card import fenced
from vlalign.models.weights import save
from vlalign.registry import MODELS, TEMPLATES

RECIPE = """\
verb: train
out: runs/tiny
model: {name: llm_reranker, id: me/base, prompt: qwen3_reranker}
data: {batch: 64, train: {name: candidates, path: mined.jsonl}}
task:
  name: rerank
  terms: [{objective: info_nce}]
  answer_terms: [{objective: {name: yes_no}}]
  offset: {field: score, scale: 0.5}
steps: 300
evals: [{name: reranking, dataset: own/test, first_stage: score}, {name: reranking, dataset: own/other}]
"""
METRICS = [
    {
        "dataset": "own/test",
        "task": "reranking",
        "metrics": {"nDCG_linear@10": 0.71},
        "chance": {"nDCG_linear@10": 0.4},
    }
]
HEADER = {"rows": {"licences": [{"name": "own", "licence": "CC0-1.0", "source": "npm:own"}]}}
BASE = {"id": "me/base", "revision": "0123456789abcdef0123456789abcdef01234567"}


def run(folder: Path, family: str = "qwen3", base: dict[str, str] | None = None, **fields: Any) -> Path:
    """A finished run's folder. `base`: as a model that came from the Hub has it."""
    told = {"name": "llm_reranker", "id": str(language_model(folder / "base", family)), "length": 256}
    save(MODELS.decode(told | {"prompt": "qwen3_reranker"} | fields).build(), folder / "out" / "model")
    (folder / "out/recipe.yaml").write_text(RECIPE)
    write_json(folder / "out/metrics.json", METRICS)
    (folder / "out/log.jsonl").write_text(json.dumps({"header": HEADER}) + "\n")
    if base:
        manifest, adapter = (
            folder / "out/model/vlalign.json",
            folder / "out/model/adapter/adapter_config.json",
        )
        write_json(manifest, json.loads(manifest.read_text()) | {"base": base})
        if adapter.exists():
            own = {"base_model_name_or_path": base["id"], "revision": base["revision"]}
            write_json(adapter, json.loads(adapter.read_text()) | own)
    return folder / "out"


def written(out: Path, adapter: bool = False) -> str:
    files = (collect_adapter if adapter else collect)(out)
    return card(Facts.read("me/tiny", out, [*files, "README.md"], read_texts(files), "apache-2.0"))


def head(text: str) -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe").load(text.split("---\n")[1])
    return found


def test_the_hub_indexes_it_by_its_base_its_task_and_its_numbers(tmp_path: Path) -> None:
    text = written(run(tmp_path, base=BASE))
    told = head(text)
    assert told["pipeline_tag"] == "text-ranking" and told["library_name"] == "sentence-transformers"
    assert (told["base_model"], told["base_model_relation"]) == ("me/base", "finetune")
    tags = ["vlalign", "reranker", "cross-encoder", "sentence-transformers", "transformers"]
    assert told["tags"] == tags
    [result] = told["model-index"][0]["results"]
    assert result["task"]["type"] == "reranking"
    assert result["metrics"] == [{"type": "nDCG_linear@10", "value": 0.71}]
    assert ModelCard(text).data.eval_results[0].metric_value == 0.71


def test_an_adapter_alone_is_indexed_as_one(tmp_path: Path) -> None:
    out = run(tmp_path, base=BASE, lora={"rank": 2})
    told, whole = head(written(out, adapter=True)), head(written(out))
    assert (told["library_name"], told["base_model_relation"]) == ("peft", "adapter")
    assert {"peft", "lora"} <= set(told["tags"]) and {"peft", "lora"} <= set(whole["tags"])
    assert whole["base_model_relation"] == "finetune"
    assert "on top of `me/base`, of which vlalign loads the revision named below" in written(
        out, adapter=True
    )


def test_people_read_what_it_was_made_from_and_how_it_was_measured(tmp_path: Path) -> None:
    text = written(run(tmp_path, base=BASE))
    assert "A reranker trained with vlalign; `llm_reranker` (me/base); 300 steps of 64 queries; " in text
    assert "objective `info_nce` and `yes_no`." in text
    assert f"`me/base` at revision `{BASE['revision']}`" in text
    assert "| own/test | reranking | nDCG_linear@10 | 0.71 | 0.4 |" in text
    assert "`linear` is g, `exponential` is 2^g - 1" in text
    assert (
        "The candidates of own/test were found by a first stage, whose scores are their number `score`"
        in text
    )
    assert "own/other" not in text.split("## Recipe")[0]
    assert "rank by the score plus 0.5 times the number `score`" in text
    assert "| own | CC0-1.0 | npm:own |" in text and "license: apache-2.0" in text
    assert "256 tokens at most" in text and RECIPE.strip() in text


@pytest.mark.parametrize("name", TEMPLATES.names())
def test_the_prompt_is_there_byte_for_byte_with_words_and_tokens(name: str, tmp_path: Path) -> None:
    prompt = {"name": "plain", "text": "Q\n```\n{query}\n````\n{document}\n\n"} if name == "plain" else name
    out = run(tmp_path, prompt=prompt)
    text = written(out)
    told = json.loads((out / "model/vlalign.json").read_text())["spec"]["prompt"]
    asked, *instruction = re.findall(r"^(`{3,})text\n(.*?)\n\1$", text, re.DOTALL | re.MULTILINE)
    assert asked[1] == told["text"]
    assert [block for _, block in instruction] == ([told["instruction"]] if told["instruction"] else [])
    tokenizer = json.loads((out / "model/tokenizer.json").read_text())["model"]["vocab"]
    for word in (told["yes"], told["no"]):
        assert word is None or f"| `{word}` | {tokenizer[word]} |" in text
    assert ("beginning of a text" in text) == told["start"]


def test_vllm_is_named_where_it_reads_the_model(tmp_path: Path) -> None:
    line = (
        '--hf-overrides \'{"architectures": ["Qwen3ForSequenceClassification"], "classifier_from_token": '
        '["no", "yes"], "is_original_qwen3_reranker": true}\''
    )
    out = run(tmp_path / "qwen3", base=BASE, lora={"rank": 2})
    assert line in written(out) and "vllm serve me/tiny --runner pooling" in written(out)
    assert "chat_template.jinja" in collect(out)
    config = out / "model/config.json"
    seeing = json.loads(config.read_text()) | {"architectures": ["Qwen3VLForConditionalGeneration"]}
    assert "vllm" not in written(out, adapter=True)
    write_json(config, seeing)
    assert '["Qwen3VLForSequenceClassification"]' in written(out)
    assert "AutoModelForImageTextToText.from_pretrained" in written(out)
    others = {"llama": {"family": "llama"}, "unime": {"prompt": "unime"}, "bge": {"prompt": "bge_gemma"}}
    for name, fields in others.items():
        assert "vllm" not in written(run(tmp_path / name, **fields))


def test_what_came_from_nowhere_names_no_base(tmp_path: Path) -> None:
    text = written(run(tmp_path))
    assert "base_model" not in text.split("---\n")[1] and "What it was made from" not in text
    assert str(tmp_path) not in text


def test_a_fence_is_longer_than_any_inside() -> None:
    assert fenced("a```b````c") == "`````\na```b````c\n`````"
