"""What a run says of itself: what it is about to train, and its result as tables and figures."""

import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from bhcnet_jax import models, run_dir, trial
from bhcnet_jax.input_pipeline import ImageSet
from bhcnet_jax.report import paper, tables
from bhcnet_jax.results import COUNTS, PROPORTIONS, SCORES, Results
from bhcnet_jax.trial import Trial

MARK = 'PHANTOM: synthetic images'


def describe(wanted: Sequence[Trial], missing: Sequence[Trial], image_set: ImageSet) -> None:
    """Prints what is about to be trained, and on what."""
    first = wanted[0] if wanted else None
    print(f'Data: {run_dir.dataset_label(image_set)}, {len(image_set.labels)} images')
    if len(wanted) != 1:
        groups = len({trial.signature(each) for each in missing})
        print(f'{len(wanted)} trials, {len(missing)} of them still to train, in {groups} groups of equal signature')
    elif not missing:
        print('This run is finished; --rerun=all trains it again.')
    if first is None:
        return
    train, test = (image_set.labels[part] for part in (first.split.train, first.split.test))
    which = 'Training part' if len(wanted) == 1 else 'First trial: training part'
    print(
        f'{which} {np.sum(train == 0)} normal + {np.sum(train == 1)} hemorrhage, '
        f'test part {np.sum(test == 0)} + {np.sum(test == 1)}'
    )
    for phase in first.phases:
        print(
            f'Phase {phase.name}: {phase.counts[0]} normal + {phase.counts[1]} hemorrhage '
            f'made into {len(phase.sources)} images, {phase.epochs} epochs'
        )
    config = first.config
    tables.print_model_table(models.describe(models.create(config.model), config.dataset.image_size))


def print_end(wanted: Sequence[Trial], image_set: ImageSet, results: Results, path: pathlib.Path) -> None:
    """Prints the result of a single trial, or how many of several trials ended how."""
    statuses = results.statuses()
    for each in wanted:
        if statuses.get(each.trial_id) in ('FAILED', 'DIVERGED'):
            print(_obituary(results.read('trials', each.trial_id).iloc[0]))
    if len(wanted) == 1 and statuses.get(wanted[0].trial_id) == 'DONE':
        _print_result(wanted[0], image_set, results)
    elif len(wanted) != 1:
        counts = Counter(statuses.get(each.trial_id, 'PENDING') for each in wanted)
        print(f'{len(wanted)} trials: ' + ', '.join(f'{count} {status}' for status, count in counts.items()))
        print(f'Leaderboard: python -m bhcnet_jax.results {path}')
    print(f'Everything is in {path}')


def _obituary(row: pd.Series) -> str:
    """One line on a trial that ended badly."""
    who = f'Trial {row.trial_id[:12]} (seed {row.seed}, fold {row.fold})'
    if row.status == 'DIVERGED':
        where = f'{row.diverged_phase} epoch {row.diverged_epoch:.0f}'
        return f'{who} DIVERGED: its loss is not finite after {where}. Lower optimizer.peak_lr.'
    return f'{who} FAILED: {row.error.strip().splitlines()[-1]} The traceback is in results.sqlite; --rerun=failed.'


def _print_result(this: Trial, image_set: ImageSet, results: Results) -> None:
    row = results.read('trials', this.trial_id).astype(dict.fromkeys(SCORES, float)).iloc[0]
    tables.print_result(
        {name: row[name] for name in (*COUNTS, *SCORES)},
        {name: (row[f'{name}_low'], row[f'{name}_high']) for name in PROPORTIONS},
        paper.row_for(row['model'], tuple(this.config.phases), row['epochs']),
        image_set.synthetic,
    )
    print(f'Trained in {row["train_seconds"]:.0f} s, {row["images_per_second"]:.0f} images per second')


def draw(this: Trial, image_set: ImageSet, params: Any, results: Results, directory: pathlib.Path) -> None:
    """Draws the figures of one trained trial. params: its final weights, without a leading axis."""
    from bhcnet_jax.report import figures  # matplotlib takes a second to import, which a start should not wait for

    directory.mkdir(exist_ok=True)
    mark = MARK if image_set.synthetic else ''
    test, labels = this.split.test, image_set.labels
    predictions = results.read('predictions', this.trial_id)
    epochs = results.read('epochs', this.trial_id)
    first = params['trunk']['conv1']
    bleeding = test[labels[test] == 1][0]  # a split never lacks a class
    figures.curves(epochs, directory / 'curves.png', mark)
    counts = {name: int(epochs[name].iloc[-1]) for name in COUNTS}
    figures.confusion_matrix(counts, directory / 'confusion_matrix.png', mark)
    figures.image_sizes(image_set.heights, image_set.widths, labels, directory / 'image_sizes.png', mark)
    figures.grey_density(image_set.images, labels, directory / 'grey_density.png', mark)
    figures.predictions(
        image_set.images[test],
        labels[test],
        predictions.probability.to_numpy(),
        list(predictions.image_id),
        directory / 'predictions.png',
        mark,
    )
    figures.features(first['kernel'], first['bias'], image_set.images[bleeding], directory / 'features.png', mark)
