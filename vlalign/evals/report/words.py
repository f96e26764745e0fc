"""Numbers and names as people read them."""

import re

from markupsafe import Markup, escape

# metrics between 0 and 1, shown in per cent beside a bar
SHARE = re.compile(
    r"([RP]|RR|nDCG\w*|Success)(@\d+)?$|^AP$|^acc\d|^inside$|^hit_rate$|recall|mrr$|_(auc|f1)$"
)
SPACE = "\N{NO-BREAK SPACE}"


def percent(value: float) -> str:
    """`46.6 %`."""
    return f"{100 * value:.1f}{SPACE}%"


def plain(name: str) -> str:
    """A data set's last name, its words apart: `emoji/unseen_concepts` is `unseen concepts`."""
    return name.rsplit("/", 1)[-1].replace("_", " ")


def breakable(name: str) -> Markup:
    """A name that a narrow page may break after `_` and `/`."""
    return Markup(re.sub("([_/])", r"\1<wbr>", str(escape(name))))


def metric(name: str) -> str:
    """`text_to_image_R@1` is `text \N{RIGHTWARDS ARROW} image R@1`."""
    return name.replace("_to_", " \N{RIGHTWARDS ARROW} ").replace("_", " ")


def amount(name: str, value: float) -> str:
    """A metric's value: shares in per cent, the rest with four digits."""
    return percent(value) if SHARE.search(name) else f"{value:.4g}"


def place(value: float) -> str:
    """An expected place in a ranking: `place 3`, or `place 3.5` between ties."""
    return f"place{SPACE}{round(value, 1):g}"


def counts(reasons: dict[str, int]) -> str:
    """`truncated: 3, too_large: 1`, or `none`."""
    return ", ".join(f"{reason}: {number:,}" for reason, number in sorted(reasons.items())) or "none"
