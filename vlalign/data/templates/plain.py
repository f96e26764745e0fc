"""A prompt that is written out, as a saved reranker has its own."""

from dataclasses import dataclass

from vlalign.data.template import Template
from vlalign.registry import TEMPLATES


@TEMPLATES.register("plain")
@dataclass(frozen=True, kw_only=True)
class PlainTemplate(Template):
    """`text` is what the tokenizer reads, but for the places."""
