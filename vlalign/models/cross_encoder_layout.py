"""What sentence-transformers' CrossEncoder reads beside a causal language model: prompt and words."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlalign.files import write_json, write_text
from vlalign.models.prompts import Prompts

PACKAGE = "sentence_transformers"
SAID = {"method": "forward", "method_output_name": "logits"}
MODULES = {
    "": f"{PACKAGE}.base.modules.transformer.Transformer",
    "1_LogitScore": f"{PACKAGE}.cross_encoder.modules.logit_score.LogitScore",
}
SAID_BY = (  # pictures before words, as in prompts
    "{%- macro said(role) -%}{%- for message in messages if message.role == role -%}"
    "{%- if message.content is string -%}{{- message.content -}}{%- else -%}"
    "{%- for part in message.content if part.type == 'image' -%}{{- MARK -}}{%- endfor -%}"
    "{%- for part in message.content if part.type == 'text' -%}{{- part.text -}}{%- endfor -%}"
    "{%- endif -%}{%- endfor -%}{%- endmacro -%}"
)
PAIR, OTHERWISE, END = '{%- if messages[0].role == "query" -%}', "{%- else %}", "{%- endif %}"


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
    write_json(folder / "sentence_bert_config.json", _transformer(process))
    raw = "torch.nn.modules.linear.Identity"
    write_json(
        folder / "config_sentence_transformers.json", {"model_type": "CrossEncoder", "activation_fn": raw}
    )
    write_text(folder / "chat_template.jinja", chat_template(process))


def chat_template(process: Prompts) -> str:
    """The prompt as a template of two messages, of the roles `query` and `document`.

    Other conversations are written as the model's own template has them.
    """
    start = process.tokenizer.bos_token if process.template.start else None
    pieces = [_quoted(start)] if start else []
    for index, piece in enumerate(process.pieces):
        if index % 2 and piece != "instruction":
            pieces.append(f'said("{piece}")')
        else:
            pieces.append(_quoted(process.template.instruction if index % 2 else piece))
    said = SAID_BY.replace("MARK", _quoted(process.pictures.mark if process.pictures else ""))
    own = process.words.chat_template or ""
    if isinstance(own, dict):  # several by name
        own = own.get("default", "")
    if own.startswith(PAIR):  # a saved reranker's, read again
        own = own.partition(OTHERWISE)[2].removesuffix(END)
    return f"{PAIR}{said}{{{{- {' + '.join(pieces)} -}}}}{OTHERWISE}{own}{END}"


def _quoted(text: str) -> str:
    """As Jinja reads it, to which half of a surrogate pair is a letter."""
    return json.dumps(text, ensure_ascii=False)


def _transformer(process: Prompts) -> dict[str, Any]:
    """What reads pairs: a language model of texts, or one that sees as well."""
    sees = process.pictures is not None
    modalities: dict[str, Any] = {name: SAID for name in ("text", *(("image",) if sees else ()))}
    modalities["message"] = {**SAID, "format": "structured" if sees else "flat"}
    return {
        "transformer_task": "any-to-any" if sees else "text-generation",
        "modality_config": modalities,
        "module_output_name": "causal_logits",
        "max_seq_length": process.length,
    }
