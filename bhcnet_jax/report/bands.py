"""Curves of one recipe with bands over images: ROC, precision and recall, reliability, net benefit.

Each point of a curve is a metric of `bootstrap.bootstrap`: bands resample groups of look-alikes with all their seeds.

S seeds, N images, B bootstrap draws, K points of a curve.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bhcnet_jax.report.evidence import Recipe
from bhcnet_jax.statistics import metrics

SHARES = np.linspace(0, 1, 26)  # where ROC and precision-recall curves have their points
THRESHOLDS = np.linspace(0.04, 0.96, 24)
BINS = 10
FEW = 3  # images in a bin


class Curve(NamedTuple):
    """x, y: the mean over seeds, low, high: its pointwise 95 % band over images. [K] each, nan where undefined."""

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray


def roc(recipe: Recipe) -> Curve:
    """Sensitivity that is reached at a share of false alarms of at most x."""
    return _curve(recipe, SHARES, _sensitivity_at)


def precision_recall(recipe: Recipe) -> Curve:
    """Precision at the highest threshold whose sensitivity is at least x."""
    return _curve(recipe, SHARES[1:], _precision_at)


def net_benefit(recipe: Recipe) -> Curve:
    """Net benefit over thresholds t, in true positives per image (Vickers and Elkin, Medical Decision Making 26, 2006).

    tp / N - fp / N * t / (1 - t): a threshold t says that a missed positive weighs (1 - t) / t false alarms.
    """
    return _curve(recipe, THRESHOLDS, _net_benefit_at)


def reliability(recipe: Recipe) -> tuple[Curve, np.ndarray]:
    """The share of positives among images whose probability is in a bin; and n, images per bin, the mean over seeds.

    K = BINS bins of equal width; bin k is (k/K, (k+1)/K], the first with 0. Bins of FEW images, and those whose images
    are all of one class, have Wilson's interval: their draws differ too little.
    """
    probabilities = recipe.pooled.probabilities
    edges = np.linspace(0, 1, BINS + 1)[1:-1]
    bins = np.where(np.isnan(probabilities), -1, np.searchsorted(edges, probabilities))
    found = _curve(recipe, np.arange(BINS), _observed_in)
    inside = [bins == each for each in range(BINS)]
    n = np.array([each.sum() / len(probabilities) for each in inside])
    predicted = np.array([probabilities[each].mean() if each.any() else np.nan for each in inside])
    few = (n > 0) & ((n <= FEW) | np.isnan(found.low))
    low, high = found.low.copy(), found.high.copy()
    low[few], high[few] = metrics.wilson(np.clip(found.y[few] * n[few], 0, n[few]), n[few])
    return found._replace(x=predicted, low=low, high=high), n


def _curve(recipe: Recipe, points: np.ndarray, at: Callable[..., np.ndarray]) -> Curve:
    measures = {str(place): functools.partial(at, point) for place, point in enumerate(points)}
    found = list(recipe.estimate(measures).values())
    return Curve(points, *(np.array([getattr(each, name) for each in found]) for name in ('mean', 'low', 'high')))


# Metrics as of bootstrap.py, with the point of the curve in front.


def _sensitivity_at(share: float, labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    def measure(true: np.ndarray, false: np.ndarray) -> np.ndarray:
        allowed = false <= share * false[:, -1:] + 1e-9
        return np.where(allowed, true, 0).max(axis=1) / true[:, -1]

    return _over_seeds(measure, labels, probabilities, weights)


def _precision_at(share: float, labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    def measure(true: np.ndarray, false: np.ndarray) -> np.ndarray:
        first = np.argmax(true >= share * true[:, -1:] - 1e-9, axis=1)[:, None]
        hits, alarms = (np.take_along_axis(each, first, axis=1)[:, 0] for each in (true, false))
        return hits / (hits + alarms)

    return _over_seeds(measure, labels, probabilities, weights)


def _over_seeds(
    measure: Callable[..., np.ndarray], labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Mean over seeds of a measure of true and false positives [B, thresholds], highest threshold first. -> [B]."""
    found = []
    for each in probabilities:
        order = np.argsort(-each, kind='stable')
        last = np.append(np.diff(each[order]) != 0, True)  # equal probabilities are called positive together
        true, false = (np.cumsum(weights[:, order] * part[order], axis=1)[:, last] for part in (labels, ~labels))
        found.append(measure(true, false))
    return np.mean(found, axis=0)


def _net_benefit_at(
    threshold: float, labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    called = (probabilities >= threshold).mean(axis=0)
    value = called * np.where(labels, 1, -threshold / (1 - threshold))
    return weights @ value / weights.sum(axis=1)


def _observed_in(number: int, labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    inside = (np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], probabilities) == number).astype(float)
    shares = weights @ (inside * labels).T / (weights @ inside.T)  # [B, S]
    return np.nansum(shares, axis=1) / np.sum(~np.isnan(shares), axis=1)


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of |observed - predicted| over bins, weighted by their images (Naeini, Cooper, Hauskrecht, 2015). -> [B].

    It is biased upwards where bins hold few images: even of a perfectly calibrated model it is far from 0 with 20.
    """
    bins = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], probabilities)
    gaps = [np.abs(weights @ ((bins == each) * (labels - probabilities)).T) for each in range(BINS)]  # [B, S] each
    return np.mean(sum(gaps), axis=1) / weights.sum(axis=1)
