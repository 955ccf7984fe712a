"""What a run says of itself: what it is about to train, and its result as tables and figures."""

import pathlib
from typing import Any

import numpy as np

from bhcnet_jax import models, run_dir
from bhcnet_jax.input_pipeline import ImageSet
from bhcnet_jax.report import paper, tables
from bhcnet_jax.results import COUNTS, PROPORTIONS, SCORES, Results
from bhcnet_jax.trial import Trial

MARK = 'PHANTOM: synthetic images'


def describe(this: Trial, image_set: ImageSet) -> None:
    """Prints what is about to be trained, and on what."""
    train, test = (image_set.labels[part] for part in (this.split.train, this.split.test))
    print(
        f'Data: {run_dir.dataset_label(image_set)}, {len(image_set.labels)} images; '
        f'training part {np.sum(train == 0)} normal + {np.sum(train == 1)} hemorrhage, '
        f'test part {np.sum(test == 0)} + {np.sum(test == 1)}'
    )
    for phase in this.phases:
        print(
            f'Phase {phase.name}: {phase.counts[0]} normal + {phase.counts[1]} hemorrhage '
            f'made into {len(phase.sources)} images, {phase.epochs} epochs'
        )
    config = this.config
    tables.print_model_table(models.describe(models.create(config.model), config.dataset.image_size))


def print_result(this: Trial, image_set: ImageSet, results: Results) -> None:
    """Prints the confusion matrix and the metrics of a finished trial beside the paper's row."""
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
    figures.confusion_matrix({name: int(epochs[name].iloc[-1]) for name in COUNTS}, directory / 'confusion_matrix.png', mark)
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
