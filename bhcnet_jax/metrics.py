"""From labels and probabilities to counts, metrics and their 95 % intervals.

N images. Positive is hemorrhage, 1. An image is called positive where its probability reaches the threshold.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats
from sklearn import metrics
from statsmodels.stats.proportion import proportion_confint


class Counts(NamedTuple):
    """Confusion matrix, in images."""

    tp: int
    tn: int
    fp: int
    fn: int


def counts(labels: np.ndarray, probabilities: np.ndarray, threshold: float = 0.5) -> Counts:
    """Confusion matrix at a threshold.

    labels: [N], 0 or 1; probabilities: float [N] in [0, 1], of hemorrhage. ValueError: empty, of different
    lengths, labels other than 0 and 1, or probabilities that are not finite or not in [0, 1].
    """
    labels, probabilities = _check(labels, probabilities)
    called = probabilities >= threshold
    return Counts(
        tp=int(np.sum(called & labels)),
        tn=int(np.sum(~called & ~labels)),
        fp=int(np.sum(called & ~labels)),
        fn=int(np.sum(~called & labels)),
    )


def evaluate(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """All metrics of one set of predictions; arguments and errors as in `counts`, at the threshold 0.5.

    Counts are integers. A metric that is undefined is nan: precision where nothing is called positive,
    sensitivity and specificity where their class is missing, F1 (2 tp / (2 tp + fp + fn)) where nothing is
    positive by label or call, AUC where a class is missing.
    log_loss is in nats, with probabilities clipped to [e, 1 - e], e = 2.2e-16 (float64), so that one certain
    and wrong image costs 36. brier is the mean squared difference of probability and label.
    """
    found = counts(labels, probabilities)
    labels, probabilities = _check(labels, probabilities)
    both_classes = labels.any() and not labels.all()
    return {
        **found._asdict(),
        **{name: _ratio(hits, total) for name, (hits, total) in _proportions(found).items()},
        'f1': _ratio(2 * found.tp, 2 * found.tp + found.fp + found.fn),
        'auc': float(metrics.roc_auc_score(labels, probabilities)) if both_classes else float('nan'),
        'log_loss': float(metrics.log_loss(labels, probabilities, labels=[False, True])),
        'brier': float(np.mean((probabilities - labels) ** 2)),
    }


def intervals(found: Counts) -> dict[str, tuple[float, float]]:
    """Wilson 95 % intervals of accuracy, precision, sensitivity, specificity; (nan, nan) where undefined."""
    undefined = (float('nan'), float('nan'))
    return {
        name: tuple(map(float, wilson(hits, total))) if total else undefined
        for name, (hits, total) in _proportions(found).items()
    }


def wilson(hits: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilson (1927) 95 % interval. hits, n: int [...] -> low, high: float64 [...] in [0, 1].

    ValueError: n is 0, or hits are not in 0..n.
    """
    hits, n = np.asarray(hits), np.asarray(n)
    if (n <= 0).any() or (hits < 0).any() or (hits > n).any():
        raise ValueError(f'hits {hits.tolist()} of n {n.tolist()}: expected 0 <= hits <= n and n > 0.')
    low, high = proportion_confint(hits, n, alpha=0.05, method='wilson')
    return np.clip(low, 0, 1), np.clip(high, 0, 1)


def delong(labels: np.ndarray, scores: np.ndarray) -> tuple[float, float, float]:
    """AUC with its 95 % interval after DeLong et al. (1988), ties counted as half, clipped to [0, 1].

    labels: [N], 0 or 1; scores: float [N], any finite values. -> (auc, low, high). The interval is (nan, nan)
    where a class has fewer than two images and where the estimated variance is 0, as at an AUC of 0 or 1: it
    says nothing there. nan altogether where a class is missing. ValueError: as in `counts`, without a range.
    """
    labels, scores = _check(labels, scores, (-np.inf, np.inf))
    positive, negative = scores[labels], scores[~labels]
    if not len(positive) or not len(negative):
        return float('nan'), float('nan'), float('nan')
    ranks = stats.rankdata(scores)
    # For every positive the share of negatives below it, for every negative the share of positives above it.
    above = (ranks[labels] - stats.rankdata(positive)) / len(negative)
    below = 1 - (ranks[~labels] - stats.rankdata(negative)) / len(positive)
    auc = float(above.mean())
    if min(len(positive), len(negative)) < 2:
        return auc, float('nan'), float('nan')
    error = np.sqrt(above.var(ddof=1) / len(positive) + below.var(ddof=1) / len(negative))
    low, high = np.clip(stats.norm.interval(0.95, auc, error if error > 1e-9 else np.nan), 0, 1)
    return auc, float(low), float(high)


def _proportions(found: Counts) -> dict[str, tuple[int, int]]:
    """Hits and total of each metric that is a proportion of images."""
    tp, tn, fp, fn = found
    return {
        'accuracy': (tp + tn, tp + tn + fp + fn),
        'precision': (tp, tp + fp),
        'sensitivity': (tp, tp + fn),
        'specificity': (tn, tn + fp),
    }


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float('nan')


def _check(
    labels: np.ndarray, values: np.ndarray, bounds: tuple[float, float] = (0, 1)
) -> tuple[np.ndarray, np.ndarray]:
    """-> labels as bool [N], values as float64 [N]."""
    labels, values = np.asarray(labels), np.asarray(values, np.float64)
    if labels.ndim != 1 or labels.shape != values.shape:
        raise ValueError(f'labels {labels.shape} and values {values.shape}: expected one value per label.')
    if not labels.size:
        raise ValueError('No images: expected one or more labels and values.')
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f'Labels {np.unique(labels)[:5].tolist()}: expected 0 (normal) and 1 (hemorrhage).')
    if not np.isfinite(values).all():
        wrong = np.count_nonzero(~np.isfinite(values))
        raise ValueError(f'{wrong} of {values.size} values are not finite. Did the training diverge?')
    if values.min() < bounds[0] or values.max() > bounds[1]:
        raise ValueError(f'Values from {values.min():g} to {values.max():g}: expected probabilities.')
    return labels.astype(bool), values
