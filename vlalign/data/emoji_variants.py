"""Variants of emoji: who is drawn, and of what skin tone, as their code points tell."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from vlalign.data.emoji_art import Style, cut, drawn, sheet

TONES = {
    "1F3FB": "light",
    "1F3FC": "medium-light",
    "1F3FD": "medium",
    "1F3FE": "medium-dark",
    "1F3FF": "dark",
}
PEOPLE = {"1F9D1": "person", "1F468": "man", "1F469": "woman"}
SIGNS = {"2642": "man", "2640": "woman"}
JOINERS = ("FE0F", "200D")
MIRRORED = "27A1"  # the same picture, facing right
TEXTS = (  # of an attribute: its place in a `Variant`, its value, and what is asked
    *((0, tone, f"{tone} skin tone") for tone in TONES.values()),
    *((1, who, who) for who in PEOPLE.values()),
)

Row = Mapping[str, Any]  # of the package
Variant = tuple[str, str]  # a tone, empty for none, and who it is, empty for a base that has no gender
Bases = Mapping[str, Mapping[Variant, Row]]


@dataclass(frozen=True, slots=True)
class Change:
    """A reference and what is asked of it, what is right, and what is wrong, of its base and of others."""

    reference: Row
    text: str
    right: Row
    same: list[Row]
    others: list[Row]


def variants() -> tuple[Bases, list[str]]:
    """By base, its code points without tone and gender, those bases that have several.

    And the code points of variants that are left out, since a style draws another so too. Raises DataError.
    """
    found: dict[str, dict[Variant, Row]] = defaultdict(dict)
    for row in drawn(variants=True):
        codes = [code for code in row["unified"].split("-") if code not in JOINERS]
        tones = [TONES[code] for code in codes if code in TONES]
        who = [{**PEOPLE, **SIGNS}[code] for code in codes if code in PEOPLE or code in SIGNS]
        base = "-".join(
            "1F9D1" if code in PEOPLE else code for code in codes if code not in TONES and code not in SIGNS
        )
        if base and MIRRORED not in codes and max(len(tones), len(who)) <= 1:  # families have several of each
            found[base].setdefault(("".join(tones), "".join(who) or "person"), row)
    alike = _alike([row for own in found.values() if len(own) > 1 for row in own.values()])
    kept = {
        base: {variant: row for variant, row in own.items() if row["unified"] not in alike}
        for base, own in found.items()
    }
    return {base: _told(own) for base, own in kept.items() if len(own) > 1}, sorted(alike)


def _alike(rows: Sequence[Row]) -> set[str]:
    """Code points of those whose pixels are another one's too, in any style: so styles match one to one."""
    found = set[str]()
    for style in get_args(Style):
        path, codes = sheet(style), defaultdict[bytes, list[str]](list)
        for row in rows:
            codes[cut(path, (row["sheet_x"], row["sheet_y"])).tobytes()].append(row["unified"])
        found.update(*(own for own in codes.values() if len(own) > 1))
    return found


def _told(own: Mapping[Variant, Row]) -> Mapping[Variant, Row]:
    """Nobody's gender where all are alike: a hand is no person."""
    if len({who for _, who in own}) > 1:
        return own
    return {(tone, ""): row for (tone, _), row in own.items()}


def changes(bases: Bases) -> Iterator[Change]:
    """Every change of one attribute that leads from a variant to another one of its base.

    Wrong are those of the base without what is asked, and what has all that is right of other bases.
    """
    for base, own in bases.items():
        for variant, reference in own.items():
            for at, value, text in TEXTS:
                wanted = (value, variant[1]) if at == 0 else (variant[0], value)
                if wanted != variant and wanted in own:
                    same = [row for each, row in own.items() if each[at] != value and each != variant]
                    others = [its[wanted] for other, its in bases.items() if other != base and wanted in its]
                    yield Change(reference, text, own[wanted], same, others)
