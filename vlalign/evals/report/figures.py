"""Matplotlib figures as inline SVG that takes its colours and its font from the page, light or dark."""

import re
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Matplotlib writes colours as they are given; these stand for variables of the page's style sheet.
INK, RULE, SERIES = "#010101", "#020202", ("#030303", "#040404")
VARIABLES = {INK: "var(--soft)", RULE: "var(--rule)", SERIES[0]: "var(--accent)", SERIES[1]: "var(--second)"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": RULE,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "ytick.left": False,
    "ytick.minor.left": False,
    "xtick.major.size": 3,
    "lines.linewidth": 1.6,
    "lines.solid_joinstyle": "round",
    "legend.frameon": False,
}


def curve(title: str, steps: Sequence[int], values: Sequence[float]) -> Markup:
    """One quantity over the steps of a run."""
    told = f"{title} over {len(steps)} logged steps: {values[0]:.4g} at step {steps[0]}"
    told += f", {values[-1]:.4g} at step {steps[-1]}."
    return _draw(told, {title: (steps, values)}, "step")


def spectra(title: str, values: Mapping[str, Sequence[float]]) -> Markup:
    """Singular values of each side, as shares of its largest, on a logarithmic axis."""
    lines = {
        side: (range(1, len(found) + 1), [value / found[0] for value in found])
        for side, found in values.items()
    }
    large = "; ".join(
        f"{side} {sum(value >= 0.1 * found[0] for value in found)} of {len(found)}"
        for side, found in values.items()
    )
    told = f"Singular values of {title}. Above a tenth of the largest are: {large}."
    return _draw(told, lines, "singular value", logarithmic=True)


def _draw(
    told: str,
    lines: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    below: str,
    logarithmic: bool = False,
) -> Markup:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**STYLE, "svg.hashsalt": told}):
        figure = Figure(figsize=(4.6, 2.1), layout="constrained")
        axes = figure.add_subplot()
        for (name, (x, y)), colour in zip(lines.items(), SERIES, strict=False):
            axes.plot(x, y, color=colour, label=name)
        _axes(axes, below, logarithmic)
        if len(lines) > 1:
            axes.legend(loc="lower left")
        file = StringIO()
        figure.savefig(
            file,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )
    return _inline(file.getvalue(), told)


def _axes(axes: "Axes", below: str, logarithmic: bool) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    axes.set_xlabel(below)
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _inline(svg: str, told: str) -> Markup:
    """The `<svg>` element alone, described, in the page's colours, and with no id that two figures share."""
    svg = svg[svg.index("<svg") :]
    for pattern, replacement in (
        (r' (width|height)="[\d.]+pt"', ""),  # the page decides
        (r' xmlns(:xlink)?="[^"]*"', ""),
        (r"xlink:href", "href"),
        (r"<style.*?</style>", ""),
        (r'<g id="[^"]*"', "<g"),
        (r"font-family: [^;\"]*(; )?", ""),
    ):
        svg = re.sub(pattern, replacement, svg, flags=re.DOTALL)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    return Markup(svg.replace("<svg", Markup('<svg role="img" aria-label="{}"').format(told), 1))
