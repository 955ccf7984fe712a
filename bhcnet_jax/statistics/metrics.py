"""From labels and probabilities to counts, metrics and their 95 % intervals, and calibration.

N images. Positive is 1. An image is called positive where its probability reaches the
threshold. Intervals by resampling are in `bootstrap.py`, comparisons of recipes in `comparison.py`.

Training counts hits after every epoch, but needs the statistics libraries only at its end. They take two seconds to
import, so each function imports what it needs (and scipy its parts when they are first used).
"""

from typing import NamedTuple

import numpy as np
import scipy


class Counts(NamedTuple):
    """Confusion matrix, in images."""

    tp: int
    tn: int
    fp: int
    fn: int


def counts(labels: np.ndarray, probabilities: np.ndarray, threshold: float = 0.5) -> Counts:
    """Confusion matrix at a threshold.

    labels: [N], 0 or 1; probabilities: float [N] in [0, 1], of the positive class. ValueError: empty, of different
    lengths, labels other than 0 and 1, or probabilities that are not finite or not in [0, 1].
    """
    labels, probabilities = check(labels, probabilities)
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
    from sklearn import metrics

    found = counts(labels, probabilities)
    labels, probabilities = check(labels, probabilities)
    both_classes = labels.any() and not labels.all()
    return {
        **found._asdict(),
        **{name: _ratio(hits, total) for name, (hits, total) in _proportions(found).items()},
        'f1': _ratio(2 * found.tp, 2 * found.tp + found.fp + found.fn),
        'auc': float(metrics.roc_auc_score(labels, probabilities)) if both_classes else float('nan'),
        'log_loss': float(metrics.log_loss(labels, probabilities, labels=[False, True])),
        'brier': float(np.mean((probabilities - labels) ** 2)),
    }


def intervals(found: Counts, method: str = 'wilson') -> dict[str, tuple[float, float]]:
    """95 % intervals of accuracy, precision, sensitivity, specificity; (nan, nan) where undefined.

    method: as in `proportion_interval`.
    """
    undefined = (float('nan'), float('nan'))
    return {
        name: tuple(map(float, proportion_interval(hits, total, method))) if total else undefined
        for name, (hits, total) in _proportions(found).items()
    }


def wilson(hits: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`proportion_interval` with its default method."""
    return proportion_interval(hits, n)


def proportion_interval(hits: np.ndarray, n: np.ndarray, method: str = 'wilson') -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of a proportion. hits, n: int [...] -> low, high: float64 [...] in [0, 1].

    method: 'wilson' (1927), which covers 95 % on average over proportions, or 'clopper_pearson' (1934), which covers
    at least 95 % for every proportion and is wider. ValueError: n is 0, hits are not in 0..n, or another method.
    """
    from statsmodels.stats.proportion import proportion_confint

    hits, n = np.asarray(hits), np.asarray(n)
    if method not in _METHODS:
        raise ValueError(f'Interval method {method!r}: expected one of {", ".join(_METHODS)}.')
    if (n <= 0).any() or (hits < 0).any() or (hits > n).any():
        raise ValueError(f'hits {hits.tolist()} of n {n.tolist()}: expected 0 <= hits <= n and n > 0.')
    low, high = proportion_confint(hits, n, alpha=0.05, method=_METHODS[method])
    return np.clip(low, 0, 1), np.clip(high, 0, 1)


_METHODS = {'wilson': 'wilson', 'clopper_pearson': 'beta'}  # ours -> statsmodels'


def delong(labels: np.ndarray, scores: np.ndarray) -> tuple[float, float, float]:
    """AUC with its 95 % interval after DeLong et al. (1988), ties counted as half, clipped to [0, 1].

    labels: [N], 0 or 1; scores: float [N], any finite values. -> (auc, low, high). The interval is (nan, nan)
    where a class has fewer than two images and where the estimated variance is 0, as at an AUC of 0 or 1: it
    says nothing there. All three are nan if a class is missing. ValueError: as in `counts`, without a range.
    """
    labels, scores = check(labels, scores, (-np.inf, np.inf))
    positive, negative = scores[labels], scores[~labels]
    if not len(positive) or not len(negative):
        return float('nan'), float('nan'), float('nan')
    # For every positive the share of negatives below it, for every negative the share of positives above it.
    above, below = _share_below(positive, negative), 1 - _share_below(negative, positive)
    auc = float(above.mean())
    if min(len(positive), len(negative)) < 2:
        return auc, float('nan'), float('nan')
    error = np.sqrt(above.var(ddof=1) / len(positive) + below.var(ddof=1) / len(negative))
    low, high = np.clip(auc + scipy.special.ndtri([0.025, 0.975]) * (error if error > 1e-9 else np.nan), 0, 1)
    return auc, float(low), float(high)


def _share_below(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of each value, the share of the others that are smaller, ties counted as half."""
    others = np.sort(others)
    return sum(np.searchsorted(others, values, side) for side in ('left', 'right')) / 2 / len(others)


class Calibration(NamedTuple):
    """Each with its 95 % interval, as (value, low, high). Perfect: intercept 0, slope 1."""

    intercept: tuple[float, float, float]
    slope: tuple[float, float, float]


def calibration(labels: np.ndarray, probabilities: np.ndarray) -> Calibration:
    """Intercept and slope of the logistic regression of the label on the logit (Cox, Biometrika 45, 1958).

    logit P(label = 1) = intercept + slope * logit(probability), with Wald intervals. A slope below 1 says that the
    probabilities are too extreme. Arguments and errors as in `counts`; probabilities are clipped as in `evaluate`.
    All nan where the fit does not exist: a class is missing, or the probabilities separate the classes, wholly or up
    to one shared value (Albert and Anderson, Biometrika 71, 1984); also where it does not converge.
    """
    from statsmodels.genmod import families
    from statsmodels.genmod.generalized_linear_model import GLM

    labels, probabilities = check(labels, probabilities)
    tiny = np.finfo(np.float64).eps
    logits = scipy.special.logit(np.clip(probabilities, tiny, 1 - tiny))
    nothing = Calibration((np.nan,) * 3, (np.nan,) * 3)
    if labels.all() or not labels.any():
        return nothing
    positive, negative = logits[labels], logits[~labels]
    if negative.max() <= positive.min() or positive.max() <= negative.min():
        return nothing
    design = np.column_stack([np.ones_like(logits), logits])
    with np.errstate(over='ignore'):  # steep fits, before they converge
        fitted = GLM(labels.astype(float), design, family=families.Binomial()).fit()
    if not fitted.converged:
        return nothing
    rows = np.column_stack([fitted.params, fitted.conf_int()]).tolist()
    return Calibration(*map(tuple, rows))


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


def check(
    labels: np.ndarray, values: np.ndarray, bounds: tuple[float, float] = (0, 1)
) -> tuple[np.ndarray, np.ndarray]:
    """-> labels as bool [N], values as float64 [N]. ValueError: as in `counts`, or values not within bounds."""
    labels, values = np.asarray(labels), np.asarray(values, np.float64)
    if labels.ndim != 1 or labels.shape != values.shape:
        raise ValueError(f'labels {labels.shape} and values {values.shape}: expected one value per label.')
    if not labels.size:
        raise ValueError('No images: expected one or more labels and values.')
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f'Labels {np.unique(labels)[:5].tolist()}: expected 0 (negative) and 1 (positive).')
    if not np.isfinite(values).all():
        wrong = np.count_nonzero(~np.isfinite(values))
        raise ValueError(f'{wrong} of {values.size} values are not finite. Did the training diverge?')
    if values.min() < bounds[0] or values.max() > bounds[1]:
        raise ValueError(f'Values from {values.min():g} to {values.max():g}: expected probabilities.')
    return labels.astype(bool), values
