"""Intervals over images by the bootstrap: of the metrics of one recipe, and of the differences between two.

S seeds, N images, P of them positive, Q negative, G groups of images, B bootstrap draws. A metric is a
function of weights, how often each image is in each draw, so all draws are computed at once.
"""

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from bhcnet_jax.statistics import metrics

# labels: bool [N], probabilities: float [S, N], weights: float [B, N] -> in each draw the mean over the seeds for which
# it is defined, [B]; nan where it is for none.
Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
DRAWS = 2000
_PART_SIZE = 2**22  # comparisons of two probabilities that are held in memory at once


def _share(values: np.ndarray, part: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of values [S, N] over the images of a part, bool [N], and over seeds. -> [B]."""
    weights = weights[:, part]
    return weights @ values[:, part].mean(axis=0) / weights.sum(axis=1)


def _accuracy(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _share((probabilities >= 0.5) == labels, np.ones_like(labels), weights)


def _sensitivity(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _share(probabilities >= 0.5, labels, weights)


def _specificity(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _share(probabilities < 0.5, ~labels, weights)


def _precision(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    called = (probabilities >= 0.5).astype(float)
    return _over_defined(weights @ (called * labels).T / (weights @ called.T))


def _f1(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    called = (probabilities >= 0.5).astype(float)
    return _over_defined(2 * (weights @ (called * labels).T) / (weights @ (called + labels).T))


def _over_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the seeds whose value is not nan. [B, S] -> [B]."""
    return np.nansum(values, axis=1) / np.sum(~np.isnan(values), axis=1)


def _auc(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The share of pairs in the right order, ties counted as half (Mann and Whitney, 1947).

    A pair counts in a draw with the product of its images' weights. Its order, averaged over seeds, is the same in all
    draws, so seeds cost nothing in the bootstrap.
    """
    positive, negative = probabilities[:, labels], probabilities[:, ~labels]  # [S, P], [S, Q]
    of_positive, of_negative = weights[:, labels], weights[:, ~labels]
    step = max(1, _PART_SIZE // max(1, negative.size))
    total = np.zeros(len(weights))
    for start in range(0, positive.shape[1], step):
        part = slice(start, start + step)
        above, below = positive[:, part, None], negative[:, None, :]
        order = (above > below).mean(axis=0) * 0.5 + (above >= below).mean(axis=0) * 0.5  # [part of P, Q]
        total += ((of_positive[:, part] @ order) * of_negative).sum(axis=1)
    return total / (of_positive.sum(axis=1) * of_negative.sum(axis=1))


def _log_loss(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    tiny = np.finfo(np.float64).eps
    given = np.clip(np.where(labels, probabilities, 1 - probabilities), tiny, 1)
    return _share(-np.log(given), np.ones_like(labels), weights)


def _brier(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _share((probabilities - labels) ** 2, np.ones_like(labels), weights)


METRICS: Mapping[str, Metric] = {  # those of `metrics.evaluate`
    'accuracy': _accuracy,
    'precision': _precision,
    'sensitivity': _sensitivity,
    'specificity': _specificity,
    'f1': _f1,
    'auc': _auc,
    'log_loss': _log_loss,
    'brier': _brier,
}


class Estimate(NamedTuple):
    """A metric, or a difference of two.

    Attributes:
      mean: over seeds.
      low, high: 95 % interval over images; nan if all draws have the same value, or none is defined.
      spread: standard deviation over seeds; nan for one seed, and of a difference.
      undefined: draws that were left out, such as those without one of the classes.
    """

    mean: float
    low: float
    high: float
    spread: float
    undefined: int


def bootstrap(
    labels: np.ndarray,
    probabilities: np.ndarray,
    measures: Mapping[str, Metric] = METRICS,
    groups: Sequence[Hashable] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Metrics with their intervals over images and their spread over seeds.

    A metric is computed for every seed on all its images together, then averaged over seeds. Intervals are those of the
    percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). G groups are drawn
    with replacement, each with all its images (the cluster bootstrap: Davison and Hinkley, Bootstrap Methods and their
    Application, 1997, section 3.8). An image brings all its seeds, since seeds are wrong on the same images. Near 0 and
    100 % the interval is too narrow: no draw has an image unlike those that are there.

    labels: [N], 0 or 1. probabilities: float [N] or [S, N] in [0, 1], nan for an image that a seed has not scored.
    measures: name -> Metric. groups: [N], equal for images of one patient; None: every image is its own group. Needs
    8 * draws * N bytes. ValueError: as in `metrics.counts`, groups of another length than labels.
    """
    labels, probabilities = _check(labels, probabilities)
    parts = _parts(labels, probabilities, drawn_weights(len(labels), groups, draws, seed))
    found = {}
    for name, measure in measures.items():
        of_seeds = _of_seeds(measure, parts)
        spread = float(of_seeds.std(ddof=1)) if len(of_seeds) > 1 else np.nan
        found[name] = _estimate(_mean(of_seeds), _over_seeds(measure, parts), spread)
    return found


def difference(
    labels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    measures: Mapping[str, Metric] = METRICS,
    groups: Sequence[Hashable] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Metrics of the second recipe minus those of the first on the same images: the paired bootstrap.

    Both recipes are scored on the same draws, so that images that are hard for both do not widen the interval.
    first, second: float [N] or [S, N]; each may have its own S. Otherwise as in `bootstrap`.
    """
    labels, first = _check(labels, first)
    _, second = _check(labels, second)
    weights = drawn_weights(len(labels), groups, draws, seed)
    before, after = (_parts(labels, each, weights) for each in (first, second))
    found = {}
    for name, measure in measures.items():
        mean = _mean(_of_seeds(measure, after)) - _mean(_of_seeds(measure, before))
        found[name] = _estimate(mean, _over_seeds(measure, after) - _over_seeds(measure, before), np.nan)
    return found


def _check(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """-> labels as bool [N], probabilities as float64 [S, N]."""
    probabilities = np.atleast_2d(np.asarray(probabilities, np.float64))
    scored = ~np.isnan(probabilities)
    labels, _ = metrics.check(labels, np.zeros(probabilities.shape[1]))
    metrics.check(np.broadcast_to(labels, probabilities.shape)[scored], probabilities[scored])
    return labels, probabilities


def drawn_weights(count: int, groups: Sequence[Hashable] | None, draws: int, seed: int) -> np.ndarray:
    """How often each of `count` images or recipes is in each draw, those of a group together: [B, count]."""
    if groups is None:
        return _resample(count, draws, seed)
    group_of, ids = pd.factorize(np.asarray(groups))
    if len(group_of) != count:
        raise ValueError(f'{len(group_of)} groups for {count} images: expected the group of each image.')
    if (group_of < 0).any():
        raise ValueError(f'{np.sum(group_of < 0)} of {count} images have no group: expected one for each.')
    return _resample(len(ids), draws, seed)[:, group_of]


@functools.lru_cache(maxsize=1)
def _resample(count: int, draws: int, seed: int) -> np.ndarray:
    """How often each of `count` items is in each draw of `count` with replacement. -> float64 [B, count]."""
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)
    drawn.flags.writeable = False  # since callers share it
    return drawn


class _Part(NamedTuple):
    """What seeds that scored the same images share: labels [N], probabilities [S, N], weights [B, N]."""

    labels: np.ndarray
    probabilities: np.ndarray
    weights: np.ndarray


def _parts(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> list[_Part]:
    """A part for each pattern of scored images, without nan; one part if all folds are done."""
    patterns, pattern_of = np.unique(~np.isnan(probabilities), axis=0, return_inverse=True)
    pattern_of = pattern_of.reshape(-1)
    if patterns.all():
        return [_Part(labels, probabilities, weights)]
    return [
        _Part(labels[scored], probabilities[np.ix_(pattern_of == number, scored)], weights[:, scored])
        for number, scored in enumerate(patterns)
    ]


@np.errstate(invalid='ignore', divide='ignore')
def _of_seeds(measure: Metric, parts: Sequence[_Part]) -> np.ndarray:
    """A metric of each seed for which it is defined, in the order of the parts."""
    found = []
    for labels, probabilities, _ in parts:
        once = np.ones((1, len(labels)))
        found += [measure(labels, each[None], once) for each in probabilities]
    values = np.concatenate(found)
    return values[~np.isnan(values)]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float('nan')


@np.errstate(invalid='ignore', divide='ignore')
def _over_seeds(measure: Metric, parts: Sequence[_Part]) -> np.ndarray:
    """The mean of a metric over those seeds for which it is defined, in each draw: [B]."""
    sums, counts = 0, 0
    for part in parts:
        drawn = measure(*part)
        sums = sums + len(part.probabilities) * np.nan_to_num(drawn)
        counts = counts + len(part.probabilities) * ~np.isnan(drawn)
    return sums / counts


def _estimate(mean: float, drawn: np.ndarray, spread: float) -> Estimate:
    defined = drawn[~np.isnan(drawn)]
    says_nothing = not defined.size or np.ptp(defined) < 1e-9
    low, high = (np.nan, np.nan) if says_nothing else np.percentile(defined, (2.5, 97.5))
    return Estimate(mean, float(low), float(high), spread, len(drawn) - len(defined))
