"""Qwen3-VL-Reranker's prompt, as https://github.com/QwenLM/Qwen3-VL-Embedding has it."""

from dataclasses import dataclass

from vlalign.data.template import Template
from vlalign.data.templates.qwen3_reranker import ANSWER, JUDGE
from vlalign.registry import TEMPLATES


@TEMPLATES.register("qwen3_vl_reranker")
@dataclass(frozen=True, kw_only=True)
class Qwen3VLReranker(Template):
    """Of texts and pictures. It has no line before the query, and no space after the last two colons."""

    text: str = f"{JUDGE}<Instruct>: {{instruction}}<Query>:{{query}}\n<Document>:{{document}}{ANSWER}"
    instruction: str = "Given a search query, retrieve relevant candidates that answer the query."
