"""How well scores tell pictures that have an attribute from those that lack it, and how well a look would."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageStat
from torch import Tensor

from vlalign.evals.metrics.pooled_auc import auc

LEVELS = 4  # of each colour in the histogram
LOOKS = {"luminance": slice(0, 2), "colours": slice(2, None)}

Floats = NDArray[np.float64]


def look(image: Image.Image) -> Floats:
    """Of an RGB picture the mean of its grey values, from 0 to 1, and their deviation; then how often each
    of LEVELS^3 colours is in it: [2 + LEVELS^3]."""
    grey = ImageStat.Stat(image.convert("L"))
    red, green, blue = (np.asarray(image) // (256 // LEVELS)).reshape(-1, 3).T
    colour = (red * LEVELS + green) * LEVELS + blue  # fits in 8 bits
    shares = np.bincount(colour, minlength=LEVELS**3) / len(colour)
    return np.concatenate([[grey.mean[0] / 255, grey.stddev[0] / 255], shares])


def told_apart(positive: Tensor, negative: Tensor) -> dict[str, float]:
    """`auc`, and `accuracy` by the sign of the scores, the mean of both classes'. Raises UserError."""
    right = ((positive > 0).double().mean() + (negative < 0).double().mean()) / 2
    return {"auc": auc(positive, negative)["auc"], "accuracy": right.item()}


def by_looks(
    positive: Floats, negative: Floats, unseen: tuple[Floats, Floats]
) -> dict[str, dict[str, float]]:
    """The same of logistic regressions on parts of `look` [N, *], told apart on `unseen`, by LOOKS."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found = {}
    labels = np.repeat([1, 0], [len(positive), len(negative)])
    for name, part in LOOKS.items():
        model: Any = make_pipeline(
            StandardScaler(), LogisticRegression(max_iter=1000, class_weight="balanced")
        )
        model.fit(np.concatenate([positive, negative])[:, part], labels)
        scores = (torch.from_numpy(model.decision_function(each[:, part])) for each in unseen)
        found[name] = told_apart(*scores)
    return found
