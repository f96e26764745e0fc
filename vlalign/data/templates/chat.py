"""A prompt of one's own, written as the model's tokenizer writes conversations."""

from dataclasses import dataclass

from vlalign.data.template import Chat, Template
from vlalign.registry import TEMPLATES


@TEMPLATES.register("chat")
@dataclass(frozen=True, kw_only=True)
class ChatTemplate(Template):
    """`text` is what the user says, after `system` if there is one; `after`: what the answer begins with."""

    text: str = "{instruction}\nQuery: {query}\nDocument: {document}\nIs the document right for the query?"
    instruction: str = "Answer with yes or no alone."
    system: str = ""
    after: str = ""

    def whole(self, chat: Chat) -> str:
        """The conversation up to the answer."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return chat([*system, {"role": "user", "content": self.text}]) + self.after
