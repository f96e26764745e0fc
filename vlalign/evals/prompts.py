"""Class names, templates, and the classifier that they make: one unit row a class."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vlalign.specs import Embedder
from vlalign.types import DataError, UserError


def class_names(choice: str | Sequence[str]) -> list[str]:
    """The names of `imagenet` (the 1,000 that open_clip ships), of a file with one a line, or of a list."""
    return _chosen(choice, {"imagenet": _imagenet_names})


def templates(choice: str | Sequence[str]) -> list[str]:
    """Texts with `{c}` or `{}` for the name: `imagenet` (open_clip's 80), `simple` (one), a file, or a list.

    Raises UserError for a template without a place for the name.
    """
    found = _chosen(choice, {"imagenet": _imagenet_templates, "simple": lambda: ["a photo of a {c}."]})
    for template in found:
        if "{c}" not in template and "{}" not in template:
            raise UserError(f"template '{template}' has no place for a class name; write {{c}} where it goes")
    return found


def classifier(model: Embedder, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Unit rows [C, D]: each class is the mean of its prompts' unit rows, normalised again.

    Radford et al. 2021, https://arxiv.org/abs/2103.00020, section 3.1.4.
    """
    prompts = [fill(template, name) for name in names for template in templates]
    rows = nn.functional.normalize(model.encode_text(prompts), dim=1)
    return nn.functional.normalize(rows.view(len(names), len(templates), -1).mean(1), dim=1)


def fill(template: str, name: str) -> str:
    """The prompt of a class. No format string: a name or a template may hold any other braces."""
    return template.replace("{c}", name) if "{c}" in template else template.replace("{}", name)


def places(labels: Sequence[str], names: Sequence[str]) -> Tensor:
    """The class [N] of each label. All are names, or else all are numbers, from 0. Raises DataError."""
    known = {name: index for index, name in reversed(list(enumerate(names)))}
    labels = [label.strip() for label in labels]
    if all(label in known for label in labels):
        return torch.tensor([known[label] for label in labels])
    for label in labels:
        if label not in known and not _numbers(label, names):
            raise DataError(f"label '{label}' is none of the {len(names)} class names, nor the number of one")
    if named := [label for label in labels if not _numbers(label, names)]:
        raise DataError(
            f"label '{named[0]}' is a class name, and others are numbers of classes; use one kind"
        )
    return torch.tensor([int(label) for label in labels])


def rows_of(counts: Mapping[str, int], names: Sequence[str]) -> Tensor:
    """The rows [C] of each class by those of each label; what is no class does not matter.

    Labels are names where any is one, else numbers. Raises DataError where none is of a class.
    """
    named = {label: rows for label, rows in counts.items() if label.strip() in {*names}}
    known = named or {label: rows for label, rows in counts.items() if _numbers(label.strip(), names)}
    if not known:
        some = ", ".join(f"'{label}'" for label in [*counts][:3])
        raise DataError(
            f"none of {len(counts)} labels, {some} and so on, is one of the {len(names)} class names, "
            "nor the number of one"
        )
    rows = torch.tensor([*known.values()])
    return torch.zeros(len(names), dtype=torch.long).index_add_(0, places([*known], names), rows)


def _numbers(label: str, names: Sequence[str]) -> bool:
    """Whether a label is the number of a class."""
    return label.isascii() and label.isdigit() and int(label) < len(names)


def _chosen(choice: str | Sequence[str], shipped: Mapping[str, Callable[[], list[str]]]) -> list[str]:
    if not isinstance(choice, str):
        return list(choice)
    return shipped[choice]() if choice in shipped else _lines(choice)


def _imagenet_names() -> list[str]:
    from open_clip import IMAGENET_CLASSNAMES

    return list(IMAGENET_CLASSNAMES)


def _imagenet_templates() -> list[str]:
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return [template("{c}") for template in OPENAI_IMAGENET_TEMPLATES]


def _lines(path: str) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: cannot be read: it is not UTF-8 text: {error}") from None
    found = [line.strip() for line in text.rstrip().splitlines()]
    if not found:
        raise DataError(f"{path}: is empty; expected one entry a line")
    return found
