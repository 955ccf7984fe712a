"""How a model does on a labelled image set that it was not trained on.

N images, G groups (patients). Probabilities are calibrated ones where the model is calibrated.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from bhcnet_jax import machine
from bhcnet_jax.datasets import input_pipeline
from bhcnet_jax.datasets.input_pipeline import ImageSet
from bhcnet_jax.errors import UserError
from bhcnet_jax.inference import calibration
from bhcnet_jax.inference.model import PHANTOM, Measured, Model
from bhcnet_jax.plan import groups
from bhcnet_jax.records import evaluations, recipes
from bhcnet_jax.statistics import bootstrap, metrics
from bhcnet_jax.statistics.bootstrap import Estimate

NET_BENEFIT_AT = (0.05, 0.1, 0.2, 0.5)  # probabilities at which somebody would act
RULES = {'largest': 1, 'mean of the three largest': 3}  # from the probabilities of a group's images to its own
MAX_VALUES = 12  # of a column that parts the images; one with more is no kind of image
RECALIBRATION_DRAWS = 500  # each is a regression
Row = dict[str, Any]


def read_images(model: Model, directory: pathlib.Path, columns: str = '', positive: str = '') -> ImageSet:
    """A labelled set as the model sees it. columns, positive: as of config.dataset. UserError: no set, a broken one."""
    dataset = {
        'name': 'auto', 'dir': str(directory), 'image_size': model.image_size, 'columns': columns,
        'positive': positive, 'label': '', 'equalise': bool(model.resolution),
    }  # fmt: skip
    return input_pipeline.load(ConfigDict(dataset), model.resolution)


def new_images(model: Model, image_set: ImageSet, leave_out: bool) -> np.ndarray:
    """Which images are not of the training set, pixel by pixel: bool [N].

    UserError: some are, and leave_out is False; all are; or the model does not know its training images.
    """
    if model.training_images is None:
        raise UserError(
            f'{model.name} does not know its training images, so that nothing tells whether these are others. Start '
            'its training again with the same command: it trains nothing and records them.'
        )
    new = np.array([each not in model.training_images for each in image_set.pixel_sha256])
    if new.all():
        return new
    known = f'{np.sum(~new)} of {len(new)} images are training images of {model.name}'
    if not new.any():
        raise UserError(f'all {len(new)} images are training images of {model.name}; expected others.')
    if not leave_out:
        first = image_set.ids[int(np.argmin(new))]
        raise UserError(f'{known}, the first {first}. Use others, or --leave_out_training_images.')
    return new


def score(model: Model, image_set: ImageSet, new: np.ndarray) -> pd.DataFrame:
    """What the model says of the new images, a row each: id, label, group, unit, Answers, and the csv's columns.

    probability is before calibration, used is what metrics are of. unit: int, what the bootstrap draws: published
    groups with exact copies and look-alikes.
    """
    answers = model.answer(image_set.images[new])
    used = answers.probability if model.calibration is None else answers.calibrated
    found = {
        'id': image_set.ids, 'label': image_set.labels == 1, 'group': image_set.groups,
        'unit': groups.find_groups(image_set).groups,
    }  # fmt: skip
    rows = pd.DataFrame(found)[new].reset_index(drop=True)
    rows = rows.assign(**answers._asdict(), used=used)
    for name, cells in image_set.columns.items():
        rows[f'column {name}'] = np.array(cells, object)[new]
    return rows


def evaluate(model: Model, image_set: ImageSet, rows: pd.DataFrame) -> Row:
    """All numbers of an evaluation, ready for JSON. rows: of `score`."""
    threshold = calibration.THRESHOLD if model.calibration is None else model.calibration.threshold
    results = [_row('images', rows, threshold)]
    if rows.group.any():
        results += [_row(f'groups, {rule}', _of_groups(rows, top), threshold) for rule, top in RULES.items()]
    answered = rows[rows.abstained == '']
    results += [_row('images that were answered', answered, threshold)] if len(answered) < len(rows) else []
    return {
        'format': evaluations.FORMAT,
        'version': evaluations.VERSION,
        'code': machine.code_version(),
        'model': {
            'name': model.name,
            'trials': [each.trial_id for each in model.members],
            'trained_on': model.trained_on,
            'weights_sha256': model.weights_sha256,
            'fingerprint': model.fingerprint,
            'calibrated': model.calibration is not None,
            'operating_point': 'none' if model.calibration is None else model.calibration.operating_point,
            'threshold': threshold,
        },
        'data': {
            'dataset': image_set.label,
            'fingerprint': image_set.fingerprint,
            'images': len(rows),
            'left_out': len(image_set.ids) - len(rows),
            'groups': int(rows.group[rows.group != ''].nunique()),
        },
        'abstained': {why: int((rows.abstained == why).sum()) for why in sorted({*rows.abstained} - {''})},
        'results': results,
        'subgroups': _subgroups(rows, threshold),
    }


def _of_groups(rows: pd.DataFrame, top: int) -> pd.DataFrame:
    """A row for each published group: positive if one of its images is; the mean of its `top` largest probabilities."""
    named = rows[rows.group != ''].groupby('group', sort=False)
    return pd.DataFrame({
        'label': named.label.any(),
        'used': named.used.apply(lambda each: each.nlargest(top).mean()),
        'unit': named.unit.first(),
    })  # fmt: skip


def _subgroups(rows: pd.DataFrame, threshold: float) -> list[Row]:
    """The images by the values of each further column of the csv that has a few."""
    found = []
    for name in (name for name in rows if name.startswith('column ')):
        values = rows[name].unique()
        if 1 < len(values) <= MAX_VALUES:
            found += [
                _row(f'{name.removeprefix("column ")} = {value}', rows[rows[name] == value], threshold, whole=False)
                for value in sorted(values)
            ]
    return found


def _row(of: str, rows: pd.DataFrame, threshold: float, whole: bool = True) -> Row:
    """The metrics of some images or groups. whole: with calibration and net benefit."""
    labels, probabilities = rows.label.to_numpy(bool), rows.used.to_numpy(np.float64)
    units = rows.unit.to_numpy()
    found: dict[str, Estimate] = {}
    if len(labels):
        found = recipes.estimate(labels, probabilities[None], units, _measures(threshold, whole))
    if len(labels) and whole:
        found |= bootstrap.bootstrap(labels, probabilities, _RECALIBRATION, units, RECALIBRATION_DRAWS)
    n = {'sensitivity': int(labels.sum()), 'specificity': int((~labels).sum())}
    return {
        'of': of,
        'n': len(labels),
        'positives': int(labels.sum()),
        'metrics': {
            name: {'value': _known(each.mean), 'low': _known(each.low), 'high': _known(each.high),
                   'n': n.get(name, len(labels))}
            for name, each in found.items()
        },
    }  # fmt: skip


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _measures(threshold: float, whole: bool) -> dict[str, bootstrap.Metric]:
    def at_threshold(metric: bootstrap.Metric) -> bootstrap.Metric:
        return lambda labels, p, weights: metric(labels, (p >= threshold).astype(float), weights)

    found = {'auc': bootstrap.METRICS['auc']}
    found |= {name: at_threshold(bootstrap.METRICS[name]) for name in ('sensitivity', 'specificity')}
    if whole:
        found['brier'] = bootstrap.METRICS['brier']
        found |= {f'net benefit at {act:g}': functools.partial(_net_benefit, act) for act in NET_BENEFIT_AT}
    return found


def _net_benefit(act: float, labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """True positives per image less false ones at the odds of `act` (Vickers, Elkin, Med. Decis. Making 26, 2006)."""
    worth = np.where(labels, 1.0, -act / (1 - act))
    return weights @ ((probabilities >= act).mean(axis=0) * worth) / weights.sum(axis=1)


def _recalibrate(place: int, labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The intercept (place 0) or slope (1) of `metrics.calibration` in each draw, [B]."""
    found = []
    for counts in weights.astype(int):
        drawn = np.repeat(np.arange(len(labels)), counts)
        found.append(metrics.calibration(labels[drawn], probabilities[0, drawn])[place][0])
    return np.array(found)


_RECALIBRATION: Mapping[str, Callable[..., np.ndarray]] = {
    name: functools.partial(_recalibrate, place) for place, name in enumerate(metrics.Calibration._fields)
}


def measured(model: Model, path: pathlib.Path) -> Measured:
    """What the evaluation.json at a path tells of a model. UserError: of other weights, or on synthetic images."""
    try:
        found = evaluations.read(path)
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}; expected what python -m bhcnet_jax.evaluate wrote.') from error
    if found['model'].get('weights_sha256') != model.weights_sha256:
        raise UserError(f'{path}: an evaluation of other weights than these. Evaluate this model, and give its file.')
    data, whole = found['data'], found['results'][0]
    if data['dataset'] == PHANTOM:
        raise UserError(f'{path}: an evaluation on synthetic images (PHANTOM); expected one on real ones.')
    auc = whole['metrics']['auc']
    if None in (auc['value'], auc['low'], auc['high']):
        raise UserError(f'{path}: its images give no AUC with an interval; expected images of both classes.')
    return Measured(
        data['dataset'], data['fingerprint'], whole['n'], whole['positives'], auc['value'], auc['low'], auc['high'],
        found['looks'],
    )  # fmt: skip


def worst(rows: pd.DataFrame, most: int) -> Sequence[tuple[str, pd.DataFrame]]:
    """Missed positives and false alarms, the most certain first, `most` of each; with a title."""
    missed = rows[rows.label & ~rows.positive].sort_values('used', kind='stable')
    alarms = rows[~rows.label & rows.positive].sort_values('used', ascending=False, kind='stable')
    return [(f'{len(missed)} missed', missed.head(most)), (f'{len(alarms)} false alarms', alarms.head(most))]
