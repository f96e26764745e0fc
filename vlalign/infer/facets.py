"""Measurements of several judges -> ordinal ratings -> one ability of each candidate, in logits."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlalign.evals.metrics.judging import Lists, interval_alpha
from vlalign.evals.metrics.rasch import Rasch, check_joined, log_probabilities, moments, rasch
from vlalign.recipe.facets import Facets, Rating
from vlalign.specs import Judge
from vlalign.types import RecipeError, UserError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def check_design(asked: Facets, judges: Mapping[str, Judge], numbers: Sequence[str]) -> None:
    """Before anything is measured. Raises RecipeError for ratings that nobody gives, UserError for a design
    of which two parts have nothing in common.
    """
    for name in asked.ratings:
        if name not in (*judges, *numbers):
            raise RecipeError(
                f"rasch.ratings: nothing measures '{name}'; what is measured is called "
                f"{', '.join((*judges, *numbers))}"
            )
        if name in judges and name in numbers:
            raise RecipeError(
                f"rasch.ratings: '{name}' is a judge and a number of the rows; rename the number"
            )
        if name in judges and (width := judges[name].width) > 1:
            raise RecipeError(
                f"rasch.ratings: '{name}' measures {width} numbers of a pair, and a rating is one; leave it "
                "to calibrate"
            )
    with _told(asked):
        check_joined("item", _ids(asked, "item"), "rater", _ids(asked, "rater"))


def rated(asked: Facets, measured: Mapping[str, Lists]) -> tuple[list[list[float]], dict[str, Any]]:
    """The ability of each candidate, by query, and what `judged.json` tells of raters and items.

    `measured`: the number of each candidate, by query, of each rating. Raises UserError.
    """
    flat = {name: np.array([x for own in measured[name] for x in own], np.float64) for name in asked.ratings}
    some = measured[next(iter(asked.ratings))]
    pairs, count = sum(map(len, some)), len(asked.ratings)
    n = np.tile(np.arange(pairs), count)
    i, j = (np.repeat(_ids(asked, facet), pairs) for facet in ("item", "rater"))
    x = np.concatenate([ordinal(flat[name], own, asked.categories) for name, own in asked.ratings.items()])
    with _told(asked):
        found = rasch(n, i, j, x, categories=asked.categories, partial_credit=asked.partial_credit)
    ability = [own.tolist() for own in np.split(found.ability, np.cumsum([len(own) for own in some])[:-1])]
    told = _account(asked, found)
    told["beyond_scale"] = {name: _beyond(flat[name], own) for name, own in asked.ratings.items()}
    of_one = n * len(found.difficulty) + i
    told["agreement"] = {
        "ratings": interval_alpha(of_one, x.astype(np.float64)),
        "without_severity": interval_alpha(of_one, x + _lost(found, n, i, j)),
    }
    return ability, told


def ordinal(numbers: Floats, rating: Rating, categories: int) -> Ints:
    """0 to `categories` - 1: rounded where the scale has as many whole numbers, else of equal widths."""
    numbers, (low, high) = _scaled(numbers, rating)
    if float(low).is_integer() and high - low == categories - 1:
        places = np.floor(numbers - low + 0.5)
    else:
        places = np.floor((numbers - low) / (high - low) * categories)
    return places.clip(0, categories - 1).astype(np.int64)


def _scaled(numbers: Floats, rating: Rating) -> tuple[Floats, tuple[float, float]]:
    if rating.scale == "log_odds":
        return np.exp(-np.logaddexp(0, -numbers)), (0.0, 1.0)
    return numbers, rating.scale


def _beyond(numbers: Floats, rating: Rating) -> int:
    numbers, (low, high) = _scaled(numbers, rating)
    return int(((numbers < low) | (numbers > high)).sum())


def _lost(found: Rasch, n: Ints, i: Ints, j: Ints) -> Floats:
    """What the severity of its rater has taken from each rating, as the model expects, [R]."""
    place = found.ability[n] - found.difficulty[i]
    just, severe = (
        moments(log_probabilities(each, found.steps[i]))[0] for each in (place, place - found.severity[j])
    )
    return just - severe


def _account(asked: Facets, found: Rasch) -> dict[str, Any]:
    raters, items = _names(asked, "rater"), _names(asked, "item")
    own = {"severity": found.severity, "error": found.severity_error}
    own |= {"infit": found.rater_infit, "outfit": found.rater_outfit}
    of_items = {"difficulty": found.difficulty, "infit": found.item_infit, "outfit": found.item_outfit}
    return {
        "raters": {name: {key: float(x[at]) for key, x in own.items()} for at, name in enumerate(raters)},
        "items": {name: {key: float(x[at]) for key, x in of_items.items()} for at, name in enumerate(items)},
        "misfits": [raters[at] for at in found.misfits],
        "ability_error": float(found.ability_error.mean()),
    }


def _names(asked: Facets, facet: str) -> list[str]:
    return list(dict.fromkeys(getattr(each, facet) for each in asked.ratings.values()))


def _ids(asked: Facets, facet: str) -> Ints:
    """Of each rating."""
    names = _names(asked, facet)
    return np.array([names.index(getattr(each, facet)) for each in asked.ratings.values()], np.int64)


@contextmanager
def _told(asked: Facets) -> Iterator[None]:
    """The model knows raters and items by number only."""
    try:
        yield
    except UserError as error:
        who, what = (
            ", ".join(f"{at} {name}" for at, name in enumerate(_names(asked, facet)))
            for facet in ("rater", "item")
        )
        raise UserError(f"rasch: with raters {who}, and items {what}: {error}") from error
