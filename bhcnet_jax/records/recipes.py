"""Recipes with their intervals: what the finished trials of databases say, over all seeds and folds.

S seeds, N images.
"""

import pathlib
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from bhcnet_jax.records import run_files
from bhcnet_jax.records.merge import Merged
from bhcnet_jax.statistics import bootstrap, comparison, metrics
from bhcnet_jax.statistics.bootstrap import DRAWS, Estimate, Metric

METRICS = ('accuracy', 'sensitivity', 'specificity', 'auc')
OTHERS = ('precision', 'f1', 'log_loss', 'brier')
MEANS = ('val_loss', 'val_accuracy', 'train_seconds')  # over trials
PROPORTIONS = ('accuracy', 'sensitivity', 'specificity', 'precision')


def estimate(
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: Sequence[Hashable] | None = None,
    measures: Mapping[str, Metric] = bootstrap.METRICS,
) -> dict[str, Estimate]:
    """Metrics with their intervals over images and their spread over seeds, see `bootstrap.bootstrap`.

    Two kinds of PROPORTIONS have Wilson's interval (`metrics.wilson`) instead: those of a single seed whose images are
    all of their own, and those that are the same in all draws, as at 100 %. Other metrics that are the same in all
    draws have none.

    labels: bool [N]. probabilities: float [S, N] in [0, 1], nan for an image that a seed has not scored. groups: [N].
    measures: name -> Metric.
    """
    found = bootstrap.bootstrap(labels, probabilities, measures, groups, DRAWS)
    independent = len(probabilities) == 1 and (groups is None or len(set(groups)) == len(groups))
    for name in found.keys() & set(PROPORTIONS):
        n = images_of(name, labels, probabilities)
        if n and (independent or np.isnan(found[name].low)):
            low, high = metrics.wilson(found[name].mean * n, n)
            found[name] = found[name]._replace(low=float(low), high=float(high))
    return found


def images_of(name: str, labels: np.ndarray, probabilities: np.ndarray) -> int:
    """Images that a metric is of; of precision those that are called positive, the mean over seeds, rounded."""
    counts = {'sensitivity': labels.sum(), 'specificity': (~labels).sum()}
    counts['precision'] = round(np.sum(probabilities >= 0.5) / len(probabilities))
    return int(counts.get(name, len(labels)))


def make(merged: Merged) -> pd.DataFrame:
    """A row per recipe and data set, from its DONE trials.

    Columns: recipe (its label, with the beginning of its id where two have the same), model, trials, seeds, images,
    folds ('3/10' where a seed has only three), each of METRICS, with _low, _high and _spread (see Estimate), the other
    metrics of `bootstrap.METRICS`, means over trials (val_loss, val_accuracy, train_seconds), dataset, recipe_id,
    data_fingerprint.
    """
    keys = ['data_fingerprint', 'recipe_id']
    done = merged.trials[merged.trials.status == 'DONE']
    scored = merged.predictions.join(done[['seed', *keys]], on='trial', how='inner')
    scored_by = dict(iter(scored.groupby(keys, sort=False)))
    group_of = read_groups(merged.trials.file)
    rows = [
        _row(trials, scored_by[key], group_of.get(key[0], {}))
        for key, trials in done.groupby(keys, sort=False)
        if key in scored_by
    ]
    board = pd.DataFrame(rows, columns=_COLUMNS)
    twice = board.duplicated(['dataset', 'data_fingerprint', 'recipe'], keep=False)
    board.loc[twice, 'recipe'] += ' ' + board.recipe_id[twice].str[:8]
    return board


_COLUMNS = (
    *('recipe', 'model', 'trials', 'seeds', 'images', 'folds'),
    *(name + end for name in METRICS for end in ('', '_low', '_high', '_spread')),
    *OTHERS,
    *MEANS,
    *('dataset', 'recipe_id', 'data_fingerprint'),
)


def read_groups(databases: Iterable[str]) -> dict[str, dict[str, int]]:
    """Fingerprint of a data set -> image id -> number of its group, for images that look like another one.

    databases: files, beside which run directories have their data.json. UserError: one that cannot be read.
    """
    found = {}
    for directory in {pathlib.Path(file).parent for file in databases}:
        data = run_files.data(directory)
        if data:
            numbers = {image: number for number, group in enumerate(data['groups']) for image in group}
            found[data['fingerprint']] = numbers
    return found


def number_groups(image_ids: Iterable[str], group_of: Mapping[str, int]) -> np.ndarray:
    """The group of each image, int [N]; an image of no group is its own."""
    return np.array([group_of.get(image, len(group_of) + place) for place, image in enumerate(image_ids)])


def _row(trials: pd.DataFrame, scored: pd.DataFrame, group_of: Mapping[str, int]) -> dict[str, object]:
    pooled = comparison.pivot(scored)
    groups = number_groups(pooled.image_ids, group_of)
    first = trials.iloc[0]
    found = {
        'trials': len(trials),
        'seeds': len(pooled.seeds),
        'images': len(pooled.image_ids),
        'folds': folds_done(trials),
        **{name: first[name] for name in ('recipe', 'model', 'dataset', 'recipe_id', 'data_fingerprint')},
    }
    measures = {name: bootstrap.METRICS[name] for name in METRICS}
    for name, value in estimate(pooled.labels, pooled.probabilities, groups, measures).items():
        found |= {name: value.mean, f'{name}_low': value.low, f'{name}_high': value.high}
        found[f'{name}_spread'] = value.spread
    others = {name: bootstrap.METRICS[name] for name in OTHERS}  # without intervals, so without draws
    values = bootstrap.bootstrap(pooled.labels, pooled.probabilities, others, draws=1)
    found |= {name: value.mean for name, value in values.items()}
    return found | {name: float(trials[name].mean()) for name in MEANS}


def drawn(trials: pd.DataFrame) -> list[str]:
    """Lines on recipes that have learnt from drawn heads. trials: rows with recipe and phases."""
    told = trials.drop_duplicates(['recipe', 'phases'])
    told = told[told.phases.fillna('').str.startswith('phantom')]
    alone, first = told[told.phases == 'phantom'], told[told.phases != 'phantom']
    named = (('Pre-trained on drawn heads', first), ('Trained on drawn heads alone, never on a real image', alone))
    return [f'{words}: {", ".join(dict.fromkeys(rows.recipe))}.' for words, rows in named if len(rows)]


def folds_done(trials: pd.DataFrame) -> str:
    """Folds done of folds planned, '10/10'; '3-10/10' where the seed with the fewest has 3."""
    planned = trials.folds.iloc[0] if trials.scheme.iloc[0] == 'kfold' else 1
    done = trials.groupby('seed').fold.nunique()
    return f'{done.min()}/{planned}' if done.min() == done.max() else f'{done.min()}-{done.max()}/{planned}'
