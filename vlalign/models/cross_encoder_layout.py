"""What sentence-transformers' CrossEncoder reads beside a causal language model: prompt and words."""

import json
from collections.abc import Sequence
from pathlib import Path

from vlalign.files import write_json, write_text
from vlalign.models.prompts import Prompts

PACKAGE = "sentence_transformers"
TEXT = {"method": "forward", "method_output_name": "logits"}
TRANSFORMER = {
    "transformer_task": "text-generation",
    "modality_config": {"text": TEXT, "message": {**TEXT, "format": "flat"}},
    "module_output_name": "causal_logits",
}
MODULES = {
    "": f"{PACKAGE}.base.modules.transformer.Transformer",
    "1_LogitScore": f"{PACKAGE}.cross_encoder.modules.logit_score.LogitScore",
}
ROLE = '{{%- set {0} = messages | selectattr("role", "eq", "{0}") | map(attribute="content") | first -%}}'


def write(process: Prompts, words: Sequence[int], folder: Path) -> None:
    """Into a model's folder; its chat template becomes the prompt. Scores are raw, as ours are."""
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": kind}
        for index, (path, kind) in enumerate(MODULES.items())
    ]
    score = {"true_token_id": words[0], "false_token_id": words[1] if len(words) > 1 else None}
    (folder / "1_LogitScore").mkdir(exist_ok=True)
    write_json(folder / "modules.json", modules)
    write_json(folder / "1_LogitScore" / "config.json", score | {"module_input_name": "causal_logits"})
    write_json(folder / "sentence_bert_config.json", {**TRANSFORMER, "max_seq_length": process.length})
    raw = "torch.nn.modules.linear.Identity"
    write_json(
        folder / "config_sentence_transformers.json", {"model_type": "CrossEncoder", "activation_fn": raw}
    )
    write_text(folder / "chat_template.jinja", chat_template(process))


def chat_template(process: Prompts) -> str:
    """The prompt as a template of two messages, of the roles `query` and `document`."""
    start = process.tokenizer.bos_token if process.template.start else None
    pieces = [json.dumps(start)] if start else []
    for index, piece in enumerate(process.pieces):
        if index % 2 and piece != "instruction":
            pieces.append(piece)
        else:
            pieces.append(json.dumps(process.template.instruction if index % 2 else piece))
    return "".join(ROLE.format(name) for name in ("query", "document")) + "{{- " + " + ".join(pieces) + " -}}"
