"""UniME-V2-Reranker's pointwise prompt, Gu et al. 2025, https://arxiv.org/abs/2510.13515, appendix.

The released code breaks the first sentence by a run of spaces, and misspells "respond"; this is the paper's.
"""

from dataclasses import dataclass

from vlalign.data.templates.chat import ChatTemplate
from vlalign.registry import TEMPLATES


@TEMPLATES.register("unime")
@dataclass(frozen=True, kw_only=True)
class UniME(ChatTemplate):
    """Of texts and pictures."""

    text: str = "{instruction} Query:{query}Candidate:{document}"
    instruction: str = (
        "I will provide you with a query and a candidate. Please evaluate whether the candidate meets the "
        "requirements of the query. If it does, respond with 'Yes'; if it doesn't, respond with 'No'."
    )
    yes: str = "Yes"
    no: str | None = "No"
