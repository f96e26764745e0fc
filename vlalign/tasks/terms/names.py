"""Names of terms and of what they learn, alike in losses that are logged, in the model and in its extras."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from vlalign.registry import name_of
from vlalign.types import Context, Embeddings, Weighter


class Scored(Protocol):
    """A term of any kind."""

    @property
    def objective(self) -> Any:
        """What it is called by."""
        ...


T = TypeVar("T", bound=Scored)


def named(terms: Sequence[T]) -> dict[str, T]:
    """Terms by their objective's name, numbered when one comes again."""
    found: dict[str, T] = {}
    seen = Counter[str]()
    for term in terms:
        name = name_of(type(term.objective))
        seen[name] += 1
        found[name if seen[name] == 1 else f"{name}_{seen[name]}"] = term
    return found


def head_name(term: str, weighter: Weighter | None = None) -> str:
    """The name, without dots, of the head of a term's objective or of its weighter in the model."""
    return (term if weighter is None else f"{term}-{name_of(type(weighter))}").replace(".", "_")


def headed(context: Context, head: str) -> Context:
    """The context with that head's parameters as extras, by the names that its module gives them."""
    if context.features is None:
        return context
    return replace(context, features=own_extras(context.features, head))


def own_extras(features: Embeddings, head: str) -> Embeddings:
    """The embeddings with one head's parameters alone."""
    own = {
        name.removeprefix(f"{head}."): x for name, x in features.extras.items() if name.startswith(f"{head}.")
    }
    return replace(features, extras=own)
