"""What a logit is worth: a calibrated probability, a decision, or no answer; fitted on out-of-fold predictions.

N images, S seeds. Each image of the training set was scored by the networks that were not trained on it, one a seed.
Their mean logit is what is calibrated, so that an image counts once. A model applies it to the mean logit of all its
networks. Where these are of one fold, that is the same; where they are of several folds, no image is left to test it.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special
from sklearn.metrics import roc_curve
from sklearn.model_selection import StratifiedGroupKFold

from bhcnet_jax.errors import UserError
from bhcnet_jax.records import recipes
from bhcnet_jax.records.merge import Merged
from bhcnet_jax.statistics import bootstrap, comparison
from bhcnet_jax.statistics.bootstrap import Estimate

METHODS = ('temperature', 'platt')
OPERATING_POINTS = ('youden', 'sensitivity>=0.95')
ERROR_LEVEL = 0.1  # of the abstention
THRESHOLD = 0.5  # of a model that is not calibrated
# Below these, two numbers and three limits would be fitted to noise. One holdout of the paper has 10 and 10 images.
MIN_IMAGES, MIN_GROUPS = 30, 10  # of each class
FOLDS = 5
MAX_LOGIT = 16.0  # recorded probabilities have 24 bits
MIN_SLOPE = 1e-3  # the order of images stays, however little the networks know


class OutOfFold(NamedTuple):
    """What networks say of images that they were not trained on.

    logits: float64 [N], each the mean over seeds. labels: bool [N]. groups: int [N]. seeds: S.
    """

    logits: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    seeds: int

    def part(self, chosen: np.ndarray) -> 'OutOfFold':
        """The images that bool [N] chooses."""
        return OutOfFold(self.logits[chosen], self.labels[chosen], self.groups[chosen], self.seeds)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What is made of a logit.

    Attributes:
      method: temperature, the logit times slope; or platt, the same plus intercept (Platt, 1999).
      slope, intercept: of the calibrated logit.
      operating_point: of OPERATING_POINTS, how the threshold was chosen.
      threshold: the calibrated probability from which the decision is positive.
      error_level: each class, when it is the true one, is held for impossible in this share of images at most, as long
        as new images are exchangeable with the training set's (Vovk, Gammerman, Shafer, 2005, section 4.5).
      negative_up_to, positive_from: calibrated probabilities, between which a class is held for possible.
    """

    method: str
    slope: float
    intercept: float
    operating_point: str
    threshold: float
    error_level: float
    negative_up_to: float
    positive_from: float

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated probabilities of logits, float64 [N]."""
        return special.expit(self.slope * np.clip(logits, -MAX_LOGIT, MAX_LOGIT) + self.intercept)

    def decide(self, calibrated: np.ndarray) -> np.ndarray:
        """Whether the answer to calibrated probabilities is positive, bool [N]."""
        return calibrated >= self.threshold

    def possible(self, calibrated: np.ndarray) -> np.ndarray:
        """Which classes are possible, bool [N, 2]: negative, positive."""
        return np.stack([calibrated <= self.negative_up_to, calibrated >= self.positive_from], axis=1)

    def answers(self, calibrated: np.ndarray) -> np.ndarray:
        """Whether the class decided for is possible and the other is not, bool [N]; else the model abstains."""
        positive, possible = self.decide(calibrated), self.possible(calibrated)
        return np.where(positive, possible[:, 1] & ~possible[:, 0], possible[:, 0] & ~possible[:, 1])


def out_of_fold(chosen: Merged) -> OutOfFold:
    """The out-of-fold predictions of the trials that `trained.select` chose."""
    trials = chosen.trials
    pooled = comparison.pivot(chosen.predictions.join(trials[['seed']], on='trial'))
    group_of = recipes.read_groups(trials.file).get(trials.data_fingerprint.iloc[0], {})
    logits = np.nanmean(np.clip(special.logit(pooled.probabilities), -MAX_LOGIT, MAX_LOGIT), axis=0)
    return OutOfFold(
        logits, pooled.labels, recipes.number_groups(pooled.image_ids, group_of), len(pooled.seeds)
    )


def lacking(data: OutOfFold) -> str:
    """Why there are too few images to calibrate on, in words; '' if there are enough."""
    images, groups = _counts(data)
    if min(images) >= MIN_IMAGES and min(groups) >= MIN_GROUPS:
        return ''
    return (
        f'{len(data.labels)} out-of-fold images, {images[1]} of them positive, in {len(set(data.groups))} groups; '
        f'a calibration needs {MIN_IMAGES} images and {MIN_GROUPS} groups of each class'
    )


def _counts(data: OutOfFold) -> tuple[list[int], list[int]]:
    """Images and groups of the negative and the positive class."""
    of_class = [data.groups[data.labels == label] for label in (False, True)]
    return [len(each) for each in of_class], [len(set(each.tolist())) for each in of_class]


def fit(data: OutOfFold, operating_point: str = 'youden', error_level: float = ERROR_LEVEL) -> Calibration | None:
    """The calibration of out-of-fold predictions; None if they are `lacking`.

    The method is the one with the lower cross-validated log-loss. UserError: too few images for the error level.
    """
    if lacking(data):
        return None
    needed = int(np.ceil(1 / error_level)) - 1
    if min(_counts(data)[0]) < needed:
        raise UserError(
            f'--error_level={error_level}: needs {needed} out-of-fold images of each class, there are '
            f'{min(_counts(data)[0])}. Choose a higher level.'
        )
    return _fit(data, operating_point, error_level)


def _fit(data: OutOfFold, operating_point: str, error_level: float) -> Calibration:
    parts = list(parts_of(data.labels, data.groups))
    method = min(METHODS, key=lambda each: _cross_validated_loss(data, parts, each))
    slope, intercept = _fit_method(data, method)
    calibrated = special.expit(slope * data.logits + intercept)
    return Calibration(
        method,
        slope,
        intercept,
        operating_point,
        _threshold(calibrated, data.labels, operating_point),
        error_level,
        negative_up_to=_limit(calibrated[~data.labels], error_level),
        positive_from=1 - _limit(1 - calibrated[data.labels], error_level),
    )


def _fit_method(data: OutOfFold, method: str) -> tuple[float, float]:
    """Slope and intercept of the lowest log-loss, with Platt's targets: separable classes have a finite slope."""
    positives = int(data.labels.sum())
    negatives = len(data.labels) - positives
    targets = np.where(data.labels, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    inputs = np.stack([data.logits, np.full(len(data.logits), method == 'platt', np.float64)])

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits = weights @ inputs
        return np.sum(np.logaddexp(0, logits) - targets * logits), inputs @ (special.expit(logits) - targets)

    found = optimize.minimize(loss, np.array([1.0, 0.0]), jac=True, bounds=[(MIN_SLOPE, None), (None, None)])
    return float(found.x[0]), float(found.x[1])


def parts_of(labels: np.ndarray, groups: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Which images to fit on and which to report on, bool [N] each, groups whole.

    FOLDS times, or as often as the groups of the smaller class allow. labels: 0 and 1 [N]. groups: int [N].
    """
    folds = min(FOLDS, *(len(set(groups[labels == label].tolist())) for label in (0, 1)))
    for _, test in StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(labels, labels, groups):
        held = np.zeros(len(labels), bool)
        held[test] = True
        yield ~held, held


def _cross_validated_loss(data: OutOfFold, parts: Iterable[tuple[np.ndarray, np.ndarray]], method: str) -> float:
    total = 0.0
    for fitted, held in parts:
        slope, intercept = _fit_method(data.part(fitted), method)
        logits = slope * data.logits[held] + intercept
        total += np.sum(np.logaddexp(0, logits) - data.labels[held] * logits)
    return float(total)


def _threshold(calibrated: np.ndarray, labels: np.ndarray, operating_point: str) -> float:
    """Half way between the lowest probability that is to be positive and the next lower one."""
    curve = roc_curve(labels, calibrated, drop_intermediate=False)
    false_alarms, sensitivity, scores = (each[1:] for each in curve)  # without infinity, above all scores
    if operating_point == 'youden':  # Youden, Cancer 3:32, 1950: the sum of sensitivity and specificity
        lowest = scores[np.argmax(sensitivity - false_alarms)]
    else:
        lowest = scores[np.argmax(sensitivity >= float(operating_point.partition('>=')[2]))]
    below = calibrated[calibrated < lowest]
    return float((lowest + below.max()) / 2 if len(below) else lowest)


def _limit(strangeness: np.ndarray, error_level: float) -> float:
    """The highest strangeness, in [0, 1], at which a class is still possible. strangeness: of images of that class."""
    from crepes import ConformalClassifier  # takes a second

    candidates = np.append(strangeness, 1.0)
    by_class = ConformalClassifier().fit(strangeness)
    p_values = by_class.predict_p(candidates[:, None], smoothing=False)[:, 0]
    return float(candidates[p_values >= error_level].max(initial=0.0))


Metric = Mapping[str, float | None]


def evidence(data: OutOfFold, operating_point: str, error_level: float) -> dict[str, Any]:
    """How a calibration does on images that it was not fitted on, ready for JSON; data is not `lacking`.

    All that `fit` does, with its choice of a method, is done again without each of FOLDS parts, and applied to that
    part. Values have 95 % intervals over groups of images. 'before' is of the logits as they are, at threshold 0.5.
    'abstention' has for each class, negative first: how often it was held for possible where it is the true one, the
    share of images that were answered, and the share of right answers among those.
    """
    calibrated, decided, answered, contained = (np.zeros(len(data.labels)) for _ in range(4))
    for fitted, held in parts_of(data.labels, data.groups):
        made = _fit(data.part(fitted), operating_point, error_level)
        calibrated[held] = probabilities = made.probabilities(data.logits[held])
        decided[held], answered[held] = made.decide(probabilities), made.answers(probabilities)
        contained[held] = made.possible(probabilities)[np.arange(held.sum()), data.labels[held].astype(int)]
    everything = np.ones(len(data.labels), bool)
    plain = special.expit(data.logits)
    return {
        'images': len(data.labels),
        'positives': int(data.labels.sum()),
        'networks_per_image': data.seeds,
        'before': _scores(data, plain, plain >= THRESHOLD),
        'after': _scores(data, calibrated, decided),
        'abstention': {
            'possible': _by_class(data, contained, everything),
            'answered': _by_class(data, answered, everything),
            'right': _by_class(data, decided == data.labels, answered.astype(bool)),
        },
    }


def _scores(data: OutOfFold, probabilities: np.ndarray, decided: np.ndarray) -> dict[str, Metric]:
    of_probabilities = _estimate(data, probabilities, ('log_loss', 'brier'))
    return of_probabilities | _estimate(data, np.asarray(decided, np.float64), ('sensitivity', 'specificity'))


def _by_class(data: OutOfFold, holds: np.ndarray, among: np.ndarray) -> list[Metric]:
    """The share of images of the negative and of the positive class for which something holds, and their number."""
    some, true = data.part(among), np.asarray(holds, bool)[among]
    found = _estimate(some, np.where(some.labels, true, ~true).astype(np.float64), ('specificity', 'sensitivity'))
    counts = (int((~some.labels).sum()), int(some.labels.sum()))
    return [{**each, 'images': count} for each, count in zip(found.values(), counts, strict=True)]


def _estimate(data: OutOfFold, probabilities: np.ndarray, names: tuple[str, ...]) -> dict[str, Metric]:
    measures: dict[str, Callable[..., np.ndarray]] = {name: bootstrap.METRICS[name] for name in names}
    if not len(data.labels):
        return dict.fromkeys(names, _plain(Estimate(np.nan, np.nan, np.nan, np.nan, 0)))
    found = recipes.estimate(data.labels, probabilities[None], data.groups, measures)
    return {name: _plain(found[name]) for name in names}


def _plain(each: Estimate) -> Metric:
    values = {'value': each.mean, 'low': each.low, 'high': each.high}
    return {name: None if np.isnan(value) else float(value) for name, value in values.items()}
