"""A picture and what is to be changed of it, as in GeneCIS, Vaze et al. 2023, https://arxiv.org/abs/2306.07969.

Emoji of people, of whom Unicode says what differs, in place of captions.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from vlalign.data.emoji_art import Style, cut, licences, sheet
from vlalign.data.emoji_variants import Change, Row, changes, variants
from vlalign.data.hashing import hash63
from vlalign.data.query_rows import LABEL, HeldRows, Parsed, QuerySpec
from vlalign.data.splits import Split, held_out, keeps
from vlalign.registry import SOURCES
from vlalign.types import Item, Limits


@SOURCES.register("emoji_changes")
@dataclass(frozen=True, kw_only=True)
class EmojiChanges(QuerySpec):
    """Queries: a picture with a text such as `dark skin tone` or `woman`; right is its variant of which that
    is true, and which is the same else. Wrong are `distractors` variants of the same base of which it is not,
    and as many of other bases with all that the right one has: neither the picture nor the text is enough.

    `split`: by base, the code points without tone and gender, so that no variant is on both sides and all of
    a query are on one; even over subcategories. `unseen`: the share of bases held out, chosen by `seed`.
    `limit`: so many rows, chosen by their ids alone. Skipped: `few_distractors`, of either kind; and, of all
    splits, `same_drawing`, variants that show what another one shows, in one of the styles.
    """

    style: Style
    split: Split = "all"
    distractors: int = 4
    unseen: float = 0.25
    seed: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.unseen < 1:
            raise ValueError(f"unseen must be between 0 and 1, got {self.unseen}")
        if self.distractors < 1:
            raise ValueError(f"distractors must be >= 1, got {self.distractors}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be >= 1 or null, got {self.limit}")

    def build(self, limits: Limits = Limits()) -> HeldRows:
        """Fetch the package when it is not in the cache, and cut the sheet. Raises DataError."""
        skipped = defaultdict[str, list[str]](list)
        bases, skipped["same_drawing"] = variants()
        strata = {base: next(iter(own.values()))["subcategory"] for base, own in bases.items()}
        unseen = held_out(strata, self.unseen, self.seed)
        bases = {base: own for base, own in bases.items() if keeps(self.split, base, unseen)}
        chosen: list[tuple[str, Change]] = []
        for each in changes(bases):
            name = f"{each.reference['unified'].lower()}/{each.text}"  # alike for every style
            if min(len(each.same), len(each.others)) < self.distractors:
                skipped["few_distractors"].append(f"{self.style}/{name}")
            else:
                chosen.append((name, each))
        if self.limit is not None:
            chosen = sorted(chosen, key=lambda each: hash63(each[0]))[: self.limit]
        path = sheet(self.style)
        pictures = {
            row["unified"]: Item(images=(cut(path, (row["sheet_x"], row["sheet_y"])),))
            for own in bases.values()
            for row in own.values()
        }
        rows = [self._row(name, each, pictures) for name, each in chosen]
        return HeldRows(f"emoji_changes ({self.style})", rows, self, licences(self.style), skipped)

    def _row(self, name: str, change: Change, pictures: dict[str, Item]) -> Parsed:
        candidates = [change.right, *self._some(name, change.same), *self._some(name, change.others)]
        codes = [row["unified"] for row in candidates]
        return Parsed(
            id=f"{self.style}/{name}",
            query=Item(text=change.text, images=pictures[change.reference["unified"]].images),
            candidates=[pictures[code] for code in codes],
            candidate_ids=[code.lower() for code in codes],
            numbers={LABEL: [1.0, *[0.0] * (2 * self.distractors)]},
        )

    def _some(self, name: str, rows: Sequence[Row]) -> list[Row]:
        return sorted(rows, key=lambda row: hash63(name, row["unified"]))[: self.distractors]
