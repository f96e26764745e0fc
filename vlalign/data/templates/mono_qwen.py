"""MonoQwen2-VL-v0.1's prompt, Chaffin and Lac 2024, of the model `lightonai/MonoQwen2-VL-v0.1`."""

from dataclasses import dataclass

from vlalign.data.templates.chat import ChatTemplate
from vlalign.registry import TEMPLATES


@TEMPLATES.register("mono_qwen")
@dataclass(frozen=True, kw_only=True)
class MonoQwen(ChatTemplate):
    """Of a document that is a picture, which stands before the query."""

    text: str = (
        "{document}Assert the relevance of the previous image document to the following query, answer True "
        "or False. The query is: {query}"
    )
    instruction: str = ""
    yes: str = "True"
    no: str | None = "False"
