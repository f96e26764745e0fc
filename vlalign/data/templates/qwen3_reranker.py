"""Qwen3-Reranker's prompt, Zhang et al. 2025, https://arxiv.org/abs/2506.05176."""

from dataclasses import dataclass

from vlalign.data.template import Template
from vlalign.registry import TEMPLATES

JUDGE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
    'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
ANSWER = "<|im_end|>\n<|im_start|>assistant\n"


@TEMPLATES.register("qwen3_reranker")
@dataclass(frozen=True, kw_only=True)
class Qwen3Reranker(Template):
    """Of texts. The model is asked not to think first."""

    text: str = (
        f"{JUDGE}<Instruct>: {{instruction}}\n<Query>: {{query}}\n<Document>: {{document}}"
        f"{ANSWER}<think>\n\n</think>\n\n"
    )
    instruction: str = "Given a web search query, retrieve relevant passages that answer the query"
