"""What a run says of itself: what it is about to train, and its result as tables and figures."""

from __future__ import annotations

import pathlib
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bhcnet_jax import models
from bhcnet_jax.datasets.input_pipeline import ImageSet
from bhcnet_jax.display import tables
from bhcnet_jax.display.progress import counted
from bhcnet_jax.paper import bhcnet
from bhcnet_jax.plan import splits, table, trial
from bhcnet_jax.plan.phases import DRAWN, UNLABELLED, Phase
from bhcnet_jax.plan.study import Study
from bhcnet_jax.plan.trial import Identity, Trial
from bhcnet_jax.records.database import Results
from bhcnet_jax.records.schema import COUNTS, PROPORTIONS, SCORES

if TYPE_CHECKING:
    import pandas as pd

MARK = 'PHANTOM: synthetic images'
BEST = 3  # trials that the end of a sweep names
OBITUARIES = 10  # lines on trials that ended badly; the database has them all


STATES = {  # how a status is called before anything is trained
    'DONE': 'finished',
    'RUNNING': 'in flight',
    'PENDING': 'in flight',
    'FAILED': 'failed',
    'DIVERGED': 'diverged',
    'PRUNED': 'pruned',
}


def describe(
    study: Study, wanted: Sequence[Identity], missing: Sequence[Identity], statuses: Mapping[str, str]
) -> None:
    """Prints what is about to be trained, and on what. statuses: of the trials that are in the database."""
    labels, (negative, positive) = study.image_set.labels, study.image_set.class_names
    print(f'Data: {study.image_set.label}, {len(labels)} images')
    for warning in study.grouping.warnings:
        print(f'warning: {warning}')
    if len(wanted) != 1:
        pretrainings = study.pretrainings(missing)
        programs = len({each.signature for each in (*pretrainings, *missing) if each.epochs > each.shared_epochs})
        compiled = f', with {programs} programs to compile' if programs > 1 else ''
        print(f'{counted(len(wanted), "trial")}, {len(missing)} of them still to train{compiled}')
        if pretrainings:
            left = sum(statuses.get(each.trial_id) != 'PRETRAINED' for each in pretrainings)
            shared = counted(len(pretrainings), 'pre-training')
            print(f'{shared} on drawn heads, each shared by the trials that go on from it; {left} still to train')
        states = Counter(STATES.get(statuses.get(each.trial_id), 'new') for each in wanted)
        print('Trials: ' + ', '.join(f'{count} {state}' for state, count in states.items()))
    elif not missing:
        print('This run is finished; --rerun=all trains it again.')
    if not wanted:
        return
    first = study.first_possible(wanted)
    train, val, test = (
        (np.sum(labels[part] == 0), np.sum(labels[part] == 1))
        for part in (first.split.train, first.split.val, first.split.test)
    )
    which = 'Training part' if len(wanted) == 1 else 'First trial: training part'
    held_out = f', validation part {val[0]} + {val[1]}' if len(first.split.val) else ''
    print(f'{which} {train[0]} {negative} + {train[1]} {positive}{held_out}, test part {test[0]} + {test[1]}')
    config = first.config
    if config.split.scheme == 'kfold':
        sizes = splits.fold_sizes(labels, study.grouping.groups, config.split.folds, config.split.seed)
        _print_folds(sizes, positive)
    for phase in first.phases:
        _print_phase(phase, study.image_set.class_names, len(first.split.train))
    tables.print_model_table(models.describe(config.model, config.dataset.image_size, config.dataset.slices))


def _print_folds(sizes: np.ndarray, positive: str) -> None:
    """The range of the folds' test parts. sizes: images of each class, int [2, folds]."""
    images, positives = sizes.sum(axis=0), sizes[1]
    ranges = [' to '.join(map(str, sorted({counts.min(), counts.max()}))) for counts in (images, positives)]
    print(f'Test parts of {len(images)} folds: {ranges[0]} images, {ranges[1]} of them {positive}')
    for name, counts in (('images', images), (f'{positive} images', positives)):
        if counts.max() > 2 * counts.min():
            print(
                f'warning: the largest fold has {counts.max()} {name}, the smallest {counts.min()}, since groups stay '
                'together; fewer split.folds are more even.'
            )


def _print_phase(phase: Phase, class_names: tuple[str, str], images: int) -> None:
    """images: of the training part."""
    if phase.name == DRAWN:
        print(f'Phase {phase.name}: {phase.samples} drawn heads, {counted(phase.epochs, "epoch")}, new ones in each')
        return
    of_each = ' + '.join(f'{count} {name}' for count, name in zip(phase.counts, class_names, strict=True))
    sources, layers = of_each, ''
    if phase.name == UNLABELLED:
        sources = f'{images} images without their labels'
        layers = f', {" + ".join(map(str, phase.parts))} of them for one layer after the other'
    print(f'Phase {phase.name}: {sources} made into {phase.samples} images, {counted(phase.epochs, "epoch")}{layers}')
    if phase.used < images:
        other = 'more epochs' if phase.is_fresh else 'augment.frozen=False'
        print(
            f'warning: phase {phase.name} uses {phase.used} of {images} training images and leaves out the others in '
            f'all epochs; augment.samples=0 uses all in each epoch, {other} more of them.'
        )


def print_end(
    wanted: Sequence[Identity],
    single: Trial | None,
    image_set: ImageSet,
    results: Results,
    path: pathlib.Path,
    is_told: bool = False,
) -> None:
    """Prints the result of a single trial, or how many of several trials ended how.

    single: the only one wanted. is_told: its result was printed before.
    """
    statuses = results.statuses()
    bad = [each.trial_id for each in wanted if statuses.get(each.trial_id) in ('FAILED', 'DIVERGED')]
    for trial_id in bad[:OBITUARIES]:
        print(_obituary(results.read('trials', trial_id).iloc[0]))
    if len(bad) > OBITUARIES:
        print(f'... and {len(bad) - OBITUARIES} more.')
    if single is None:
        counts = Counter(statuses.get(each.trial_id, 'PENDING') for each in wanted)
        told = ', '.join(f'{count} {status}' for status, count in counts.items())
        print(f'{counted(len(wanted), "trial")}: {told}')
        _print_best(wanted, results.scores())
        print(f'Leaderboard: {shlex.join(["python", "-m", "bhcnet_jax.results", str(path)])}')
    elif statuses.get(single.trial_id) == 'DONE' and not is_told:
        row = results.read('trials', single.trial_id).astype(dict.fromkeys(SCORES, float)).iloc[0]
        print_result(single, image_set, row)
    print(f'Everything is in {path}')


def _print_best(wanted: Sequence[Identity], scores: Mapping[str, Mapping[str, float | None]]) -> None:
    """The best trials of a sweep, by validation loss if all have one. scores: of the trials that are DONE, by id."""
    done = [(each, scores[each.trial_id]) for each in wanted if each.trial_id in scores]
    if len(done) < 2:
        return
    has_val = all(found['val_loss'] is not None for _, found in done)
    if has_val:
        print('Best trials by validation loss:')
        done.sort(key=lambda each: each[1]['val_loss'])
    else:
        print('Best trials by test accuracy, which flatters them: it chose them.')
        done.sort(key=lambda each: -each[1]['accuracy'])
    for each, found in done[:BEST]:
        loss = f'validation loss {found["val_loss"]:.4f}, ' if has_val else ''
        point = ' '.join(f'{key}={value}' for key, value in each.point.items())
        print(f'  {loss}test accuracy {100 * found["accuracy"]:.1f} %  {point}')


def _obituary(row: pd.Series) -> str:
    """One line on a trial that ended badly."""
    who = f'Trial {row.trial_id[:12]} (seed {row.seed}, fold {row.fold})'
    if row.status == 'DIVERGED':
        where = f'{row.diverged_phase} epoch {row.diverged_epoch:.0f}'
        section = row.diverged_phase if row.diverged_phase == DRAWN else 'optimizer'
        return f'{who} DIVERGED: its loss is not finite after {where}. Lower {section}.peak_lr.'
    return f'{who} FAILED: {_own_line(row.error)} The traceback is in results.sqlite; --rerun=failed.'


def _own_line(error: str) -> str:
    """What an error says of itself in a traceback, where notes may follow it, as JAX's on its internal frames."""
    lines = error.strip().splitlines()
    frames = [number for number, line in enumerate(lines) if line.startswith('  File "')]
    after = lines[frames[-1] :] if frames else lines
    return next((line for line in after if not line.startswith(' ')), lines[-1])


def print_result(this: Trial, image_set: ImageSet, row: Mapping[str, Any]) -> None:
    """Prints the result of a trained trial. row: its scores, by their columns in the database."""
    tables.print_result(
        {name: row[name] for name in (*COUNTS, *SCORES)},
        {name: (row[f'{name}_low'], row[f'{name}_high']) for name in PROPORTIONS},
        paper_row(this, image_set.fingerprint, image_set.synthetic),
        image_set.synthetic,
        image_set.class_names,
    )
    print(f'Trained in {row["train_seconds"]:.0f} s, {row["images_per_second"]:.0f} images per second', flush=True)


def paper_row(this: Trial, fingerprint: str, synthetic: bool) -> bhcnet.PaperRow | None:
    """The paper's row for a trial; None on other images, for another recipe, and where the paper prints none.

    fingerprint, synthetic: of the images. Synthetic ones stand in for those of the paper.
    """
    on_its_images = synthetic or fingerprint == bhcnet.FINGERPRINT
    if not on_its_images or not bhcnet.is_papers(dict(table.leaves(trial.resolve(this.config)))):
        return None
    return bhcnet.row_for(this.config.model.name, this.identity.phase_names, this.identity.phase_epochs[-1])


def draw(this: Trial, image_set: ImageSet, params: Any, results: Results, directory: pathlib.Path) -> None:
    """Draws the figures of one trained trial. params: its final weights, without a leading axis."""
    from bhcnet_jax.display import figures  # matplotlib takes a second to import, which a start should not wait for

    directory.mkdir(exist_ok=True)
    mark = MARK if image_set.synthetic else ''
    test, labels, classes = this.split.test, image_set.labels, image_set.class_names
    predictions = results.read('predictions', this.trial_id)
    epochs = results.read('epochs', this.trial_id)
    figures.curves(epochs, directory / 'curves.png', mark)
    counts = {name: int(epochs[name].iloc[-1]) for name in COUNTS}
    figures.confusion_matrix(counts, classes, directory / 'confusion_matrix.png', mark)
    figures.image_sizes(image_set.heights, image_set.widths, labels, classes, directory / 'image_sizes.png', mark)
    figures.grey_density(image_set.images, labels, classes, directory / 'grey_density.png', mark)
    figures.predictions(
        image_set.pictures[test],
        labels[test],
        predictions.probability.to_numpy(),
        list(predictions.image_id),
        classes,
        directory / 'predictions.png',
        mark,
    )
    first = models.first_convolution(this.config.model, params)
    if first:
        positive = image_set.images[test[labels[test] == 1][0]]  # a split never lacks a class
        bias = first.get('bias', np.zeros(first['kernel'].shape[-1]))
        figures.features(first['kernel'], bias, positive, directory / 'features.png', mark)
