"""Two recipes on the same images: their difference, and which recipe others are best compared with.

R recipes.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from bhcnet_jax.records import recipes
from bhcnet_jax.report.evidence import Recipe
from bhcnet_jax.report.page import Number
from bhcnet_jax.statistics import bootstrap, comparison


class Difference(NamedTuple):
    """A recipe minus another one on the same images: accuracy and AUC, and McNemar's test of the accuracies.

    only_first, only_second: images that only the other one, or only the recipe, has right.
    """

    accuracy: Number
    auc: Number
    only_first: int
    only_second: int
    p: float


def difference(first: Recipe, second: Recipe) -> Difference:
    """second - first. McNemar's test, which knows one answer per image, is of probabilities averaged over seeds."""
    pooled, other = first.pooled, second.pooled
    measures = {name: bootstrap.METRICS[name] for name in ('accuracy', 'auc')}
    of_pair = (pooled.labels, pooled.probabilities, other.probabilities, measures, first.groups, recipes.DRAWS)
    found, n = bootstrap.difference(*of_pair), len(pooled.labels)
    test = comparison.mcnemar(pooled.labels, first.mean_probability, second.mean_probability)
    numbers = (
        Number(found[name].mean, found[name].low, found[name].high, n, style)
        for name, style in (('accuracy', 'points'), ('auc', 'signed'))
    )
    return Difference(*numbers, *test)


def most_neighbours(found: Sequence[Recipe]) -> Recipe:
    """The recipe that most others are one setting away from, on the same folds; the first network of several."""
    networks = [each for each in found if each.kind == 'network'] or list(found)
    keys = dict.fromkeys(key for each in networks for key in each.settings)
    codes = np.array([_codes([each.settings.get(key) for each in networks]) for key in keys])
    codes = codes.reshape(len(keys), len(networks))
    codes = codes[(codes != codes[:, :1]).any(axis=1)]  # [keys that vary, R]
    parts = np.array(_codes([each.parts for each in networks]))
    known = np.array([bool(each.settings) for each in networks])
    counts = [np.sum(known & known[place] & (parts == parts[place]) & _one_away(codes, place))
              for place in range(len(networks))]  # fmt: skip
    return networks[int(np.argmax(counts))]


def _codes(values: Sequence[Hashable | list | None]) -> list[int]:
    """Equal numbers for equal values; -1 for None, which stands for a key that a recipe lacks."""
    numbers: dict[Hashable, int] = {None: -1}
    return [numbers.setdefault(tuple(each) if isinstance(each, list) else each, len(numbers)) for each in values]


def _one_away(codes: np.ndarray, place: int) -> np.ndarray:
    """Which recipes differ from one in a single setting, as `settings.differing` counts. codes: [keys, R]. -> [R]."""
    mine = codes[:, place, None]
    both = (codes >= 0) & (mine >= 0)
    in_both = np.sum(both & (codes != mine), axis=0)
    in_one = np.sum((codes >= 0) != (mine >= 0), axis=0)
    return (in_both == 1) | ((in_both == 0) & (in_one == 1))
