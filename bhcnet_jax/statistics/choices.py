"""What each of many choices does to the accuracy of recipes that were drawn at random from all their combinations.

R recipes, N images, L levels: values of all keys together, B bootstrap draws.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from bhcnet_jax.statistics import bootstrap


class Effect(NamedTuple):
    """One value of one key.

    Attributes:
      key, value: the choice. recipes: that made it.
      accuracy: their mean.
      change: of accuracy, to the mean over the key's values, the other choices being equal.
      low, high: 95 % interval of `change` over recipes and images.
    """

    key: str
    value: Hashable
    recipes: int
    accuracy: float
    change: float
    low: float
    high: float


def effects(
    hits: np.ndarray,
    choices: pd.DataFrame,
    groups: Sequence[Hashable] | None = None,
    drawn_together: Sequence[Hashable] | None = None,
    draws: int = bootstrap.DRAWS,
) -> list[Effect]:
    """The main effects of an additive model of accuracy, fitted by least squares; interactions are left in the rest.

    Intervals are those of the percentile bootstrap that draws recipes and groups of images independently (Owen, The
    pigeonhole bootstrap, 2007), which is wide rather than narrow.

    Args:
      hits: share of seeds that are right, [R, N].
      choices: a row per recipe, a column per key.
      groups: [N], equal for images of one patient; None: every image is its own group.
      drawn_together: [R], equal for recipes that are no independent draws; None: all are.

    Raises:
      ValueError: another number of choices or groups than hits has rows or columns.
    """
    if len(choices) != len(hits):
        raise ValueError(f'{len(choices)} choices for {len(hits)} recipes: expected a row for each.')
    columns = {key: pd.factorize(choices[key].map(repr), sort=False) for key in choices}
    levels = [(key, number) for key, (_, names) in columns.items() for number in range(len(names))]
    design = np.stack([columns[key][0] == number for key, number in levels], axis=1).astype(float)  # [R, L]
    of_recipes = bootstrap.drawn_weights(len(hits), drawn_together, draws, seed=1)
    of_images = bootstrap.drawn_weights(hits.shape[1], groups, draws, seed=0)
    accuracies = of_images @ hits.T / of_images.sum(axis=1, keepdims=True)  # [B, R]
    drawn = np.stack([_fit(design, each, times, levels) for each, times in zip(accuracies, of_recipes, strict=True)])
    low, high = np.nanpercentile(drawn, (2.5, 97.5), axis=0)
    accuracy = hits.mean(axis=1)
    change = _fit(design, accuracy, np.ones(len(hits)), levels)
    found = []
    for place, (key, number) in enumerate(levels):
        chosen = columns[key][0] == number
        value = choices[key][chosen].iloc[0]
        mean = float(accuracy[chosen].mean())
        found.append(Effect(key, value, int(chosen.sum()), mean, *map(float, (change[place], low[place], high[place]))))
    return found


def _fit(design: np.ndarray, accuracy: np.ndarray, times: np.ndarray, levels: Sequence[tuple[str, int]]) -> np.ndarray:
    """Changes [L]; nan for a key of which a value is not drawn, since its mean over values is unknown.

    times: how often each recipe counts, [R].
    """
    root = np.sqrt(times)[:, None]
    # Indicators of all values add up to 1 for each key. Of the many solutions that agree on all differences inside a
    # key, lstsq gives the shortest.
    solution = np.linalg.lstsq(root * design, root[:, 0] * accuracy, rcond=None)[0]
    missing = times @ design == 0
    keys = np.array([key for key, _ in levels])
    for key in dict.fromkeys(keys):
        mine = keys == key
        solution[mine] = np.nan if missing[mine].any() else solution[mine] - solution[mine].mean()
    return solution
