"""Two recipes on the same images, folds taken together, and what the paper's protocol would report.

S seeds, N images, K comparisons. Intervals of differences are in `bootstrap.py`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from bhcnet_jax.statistics import metrics

QUANTILES = (0, 0.025, 0.25, 0.5, 0.75, 0.975, 1)


class McNemar(NamedTuple):
    """only_first, only_second: images that only this recipe has right. p: two-sided mid-p value."""

    only_first: int
    only_second: int
    p: float


def mcnemar(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> McNemar:
    """McNemar's test of equal accuracy of two recipes on the same images, at the threshold 0.5.

    first, second: float [N] in [0, 1]; the rest as in `metrics.counts`. The test takes images as independent.
    """
    labels, first = metrics.check(labels, first)
    _, second = metrics.check(labels, second)
    right, other = (first >= 0.5) == labels, (second >= 0.5) == labels
    only_first, only_second = int(np.sum(right & ~other)), int(np.sum(~right & other))
    return McNemar(only_first, only_second, mid_p(only_first, only_second))


def mid_p(only_first: int, only_second: int) -> float:
    """Mid-p value of McNemar's test (Fagerland, Lydersen, Laake, BMC Medical Research Methodology 13:91, 2013).

    Of n images only one recipe is right, by the null hypothesis either with probability 1/2. p is the chance of a split
    more uneven than the one found, plus half the chance of one equally uneven; 1 if n is 0. ValueError: counts below 0.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f'Counts {only_first} and {only_second}: expected numbers of images.')
    n = only_first + only_second
    if not n:
        return 1.0
    splits = np.arange(n + 1)
    chances, uneven = stats.binom.pmf(splits, n, 0.5), np.abs(2 * splits - n)
    found = abs(only_first - only_second)
    return float(chances[uneven > found].sum() + chances[uneven == found].sum() / 2)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p values of K comparisons, adjusted: below 0.05, the chance of any false one is 5 % (Holm, 1979). [K] -> [K].

    ValueError: none, or one that is not in [0, 1].
    """
    p_values = np.asarray(p_values, np.float64)
    if not p_values.size or not ((p_values >= 0) & (p_values <= 1)).all():
        raise ValueError(f'p values {p_values.tolist()}: expected one or more in [0, 1].')
    return multipletests(p_values, method='holm')[1]


class Pooled(NamedTuple):
    """Predictions of all folds together: seeds [S], image_ids [N], labels bool [N], probabilities float64 [S, N]."""

    seeds: np.ndarray
    image_ids: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray


def pivot(scored: pd.DataFrame) -> Pooled:
    """From a row per prediction to a table; nan where a seed has not scored an image.

    scored: of one recipe; columns seed, image_id, label, probability. The last row of an image and seed counts.
    """
    image, image_ids = pd.factorize(scored.image_id, sort=True)
    seed, seeds = pd.factorize(scored.seed)
    probabilities = np.full((len(seeds), len(image_ids)), np.nan)
    probabilities[seed, image] = scored.probability
    labels = np.zeros(len(image_ids), bool)
    labels[image] = scored.label == 1
    return Pooled(np.asarray(seeds), np.asarray(image_ids), labels, probabilities)


class Protocol(NamedTuple):
    """The paper's protocol, one split and one training, done many times.

    Attributes:
      trainings, n_test: how many, and on how many test images each was scored.
      quantiles: of the accuracy, at QUANTILES: [7].
      reached: trainings whose accuracy is at least the figure.
      share, low, high: reached / trainings with its 95 % interval (Wilson), which takes trainings as independent.
    """

    trainings: int
    n_test: int
    quantiles: np.ndarray
    reached: int
    share: float
    low: float
    high: float


def protocol(trials: pd.DataFrame, figure: float = 1.0) -> Protocol:
    """What a single training on a single split may report: the spread of accuracy over splits and seeds.

    trials: a row per training; columns tp, tn, n_test of the results database. figure: an accuracy in [0, 1].
    ValueError: no trainings, unfinished ones, or test sets of different sizes.
    """
    if not len(trials) or trials[['tp', 'tn', 'n_test']].isna().any(axis=None):
        raise ValueError(f'{len(trials)} trainings, some without result: expected one or more that are DONE.')
    sizes = trials.n_test.unique().tolist()
    if len(sizes) > 1:
        raise ValueError(f'Test sets of {sorted(sizes)} images: expected trainings with equally many.')
    hits, n_test = (trials.tp + trials.tn).to_numpy(int), sizes[0]
    # Hits are whole: the tolerance is for the product's rounding error.
    reached = int(np.sum(hits >= figure * n_test - 1e-6))
    low, high = metrics.wilson(reached, len(hits))
    quantiles = np.quantile(hits / n_test, QUANTILES)
    return Protocol(len(hits), n_test, quantiles, reached, reached / len(hits), float(low), float(high))
