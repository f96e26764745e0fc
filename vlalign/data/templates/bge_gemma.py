"""BGE-reranker-v2-gemma's prompt, as FlagEmbedding writes it: https://github.com/FlagOpen/FlagEmbedding."""

from dataclasses import dataclass

from vlalign.data.template import Template
from vlalign.registry import TEMPLATES


@TEMPLATES.register("bge_gemma")
@dataclass(frozen=True, kw_only=True)
class BGEGemma(Template):
    """Of texts. The logit of `Yes` alone is the score."""

    text: str = "A: {query}\nB: {document}\n{instruction}"
    instruction: str = (
        "Given a query A and a passage B, determine whether the passage contains an answer to the query by "
        "providing a prediction of either 'Yes' or 'No'."
    )
    yes: str = "Yes"
    no: str | None = None
    start: bool = True
