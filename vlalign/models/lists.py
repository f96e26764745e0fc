"""A query's candidates in one prompt, by number: Gu et al. 2025, https://arxiv.org/abs/2510.13515."""

from collections.abc import Sequence
from dataclasses import dataclass

from vlalign.models.pictures import Picture
from vlalign.models.prompt import Prompt, as_text
from vlalign.models.prompts import Prompts, TemplateSpec
from vlalign.registry import TEMPLATES
from vlalign.types import BadRow, Inputs, Item

MOST = 9  # candidates of a list: larger numbers are not one token everywhere
LISTED = "list_"  # what names of a batch's lists begin with


@dataclass(frozen=True, kw_only=True)
class Lists:
    """What the user says, with the places {query} and {candidates}, and what the number comes `after`.

    `length`: tokens of a prompt; where it is longer, the longest candidates lose their ends.
    """

    text: str = (
        "I will provide you with a query followed by multiple candidates in the format: (1) cand1 (2) cand2, "
        "etc. Each candidate is independent of the others. Evaluate each candidate against the query, and "
        "respond with the number corresponding to the candidate that best meets the requirements of the "
        "query. Query:{query}Candidates:{candidates}"
    )
    after: str = "Ans: ("
    length: int = 2048

    def __post_init__(self) -> None:
        for place in ("{query}", "{candidates}"):
            if self.text.count(place) != 1:
                raise ValueError(f"text must have the place {place} once, got {self.text!r:.80}")
        if "{document}" in self.text:
            raise ValueError("text must not have the place {document}; {candidates} are all documents")
        if self.length < 1:
            raise ValueError(f"length must be >= 1, got {self.length}")

    def template(self) -> TemplateSpec:
        """The conversation of such a prompt; the list is its document, the first number its yes."""
        text = self.text.replace("{candidates}", "{document}")
        made: TemplateSpec = TEMPLATES.get("chat")(
            text=text, instruction="", after=self.after, yes="1", no=None
        )
        return made


class ListPrompts:
    """A query's prompts of pairs, and one of all its candidates by number, as they come."""

    def __init__(self, pairs: Prompts, lists: Lists) -> None:
        """Raises UserError where a number is not one token."""
        self.pairs = pairs
        self.whole = Prompts(pairs.tokenizer, lists.template(), lists.length, False, pairs.pictures)
        self.numbers = [self.whole.answer(str(number)) for number in range(1, MOST + 1)]

    def read(self, query: Item, candidates: Sequence[Item]) -> tuple[list[Prompt], Prompt]:
        """Raises BadRow, for more candidates than there are numbers as well."""
        if len(candidates) > MOST:
            raise BadRow(
                "long_list",
                f"{len(candidates)} candidates, and a list has {MOST} at most; set data.train.positives and "
                "negatives",
            )
        asked, *shown = (self.pairs.look(each) for each in (query, *candidates))
        both = zip(candidates, shown, strict=True)
        pairs = [self.pairs.one(query, each, asked, pictures) for each, pictures in both]
        return pairs, self.one(query, candidates, asked, shown)

    def one(
        self,
        query: Item,
        candidates: Sequence[Item],
        asked: Sequence[Picture],
        shown: Sequence[Sequence[Picture]],
    ) -> Prompt:
        """The prompt of all, with the pictures of the query and of each candidate. Raises BadRow."""
        text, spans = "", []
        for number, (candidate, pictures) in enumerate(zip(candidates, shown, strict=True), 1):
            text += f"{' ' * bool(text)}({number}) {''.join(each.text for each in pictures)}"
            before = len(text)
            text += as_text(candidate.text, self.pairs.special)
            spans.append((before, len(text)))
        whole, start = self.whole.filled(query, asked, text)
        pictures = [each for several in shown for each in several]
        both = [*asked, *pictures] if self.whole.query_first else [*pictures, *asked]
        return self.whole.tokens(whole, [(start + a, start + b) for a, b in spans], both)

    def join(self, read: Sequence[tuple[list[Prompt], Prompt]]) -> Inputs:
        """Of several queries: the inputs of their pairs, and those of their lists by other names."""
        lists = self.whole.join([[listed] for _, listed in read])
        own = {f"{LISTED}{name}": x for name, x in lists.items()}
        return {**self.pairs.join([pairs for pairs, _ in read]), **own}


def of_lists(inputs: Inputs) -> Inputs:
    """What `join` gave of the lists, by its own names."""
    return {name.removeprefix(LISTED): x for name, x in inputs.items() if name.startswith(LISTED)}
