"""The terms of a task's loss: an objective, and what it is to be read with."""

from vlalign.tasks.terms.answer import Answer, Part
from vlalign.tasks.terms.attributes import Attributes
from vlalign.tasks.terms.embedding import EmbeddingTerm
from vlalign.tasks.terms.names import head_name, named, own_extras
from vlalign.tasks.terms.term import SIDES, Direction, Term, check_directions
from vlalign.tasks.terms.token import TokenTerm
from vlalign.tasks.terms.width import Width, check_widths, cut

__all__ = [
    "SIDES",
    "Answer",
    "Attributes",
    "Direction",
    "EmbeddingTerm",
    "Part",
    "Term",
    "TokenTerm",
    "Width",
    "check_directions",
    "check_widths",
    "cut",
    "head_name",
    "named",
    "own_extras",
]
