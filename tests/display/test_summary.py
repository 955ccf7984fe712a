"""What a run says before it trains."""

import contextlib
import traceback

import jax
import numpy as np
import pandas as pd
import pytest
from ml_collections import ConfigDict
from PIL import Image

from bhcnet_jax.configs import base
from bhcnet_jax.display import summary
from bhcnet_jax.paper import bhcnet
from bhcnet_jax.plan import splits, sweep, trial
from bhcnet_jax.plan.study import Study
from bhcnet_jax.plan.trial import Identity
from bhcnet_jax.records.database import Results
from lanes import small_config


@pytest.fixture
def said(tmp_path, monkeypatch, capsys):
    """said(groups, **overrides) -> the lines on a study of noise: an image for each group, every second labelled 1."""
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))

    def describe(groups, **overrides):
        rng, rows = np.random.default_rng(0), []
        for number, group in enumerate(groups):
            Image.fromarray(rng.integers(0, 255, (24, 24), dtype=np.uint8)).save(tmp_path / f'{number:02}.png')
            rows.append(f'{number:02}.png,{number % 2},{group}\n')
        (tmp_path / 'labels.csv').write_text('file,label,group\n' + ''.join(rows))
        study = Study(small_config(dataset__name='folder', dataset__dir=str(tmp_path), **overrides))
        wanted = study.trials(sweep.parse_shard('1/1'))
        capsys.readouterr()
        summary.describe(study, wanted, wanted, {})
        return capsys.readouterr().out.splitlines()

    return describe


def test_even_folds_are_told_without_a_warning(said):
    lines = said(range(30), split__scheme='kfold', augment__samples=0)
    assert 'Test parts of 10 folds: 3 images, 1 to 2 of them positive' in lines
    assert not [line for line in lines if line.startswith('warning')]


def test_folds_of_which_one_is_more_than_twice_another_are_warned_of(said):
    lines = said([0] * 20 + list(range(1, 13)), split__scheme='kfold', split__folds=4, augment__samples=0)
    assert 'Test parts of 4 folds: 4 to 20 images, 2 to 10 of them positive' in lines
    assert [line[:59] for line in lines if line.startswith('warning')] == [
        'warning: the largest fold has 20 images, the smallest 4, si',
        'warning: the largest fold has 10 positive images, the small',
    ]


def test_a_holdout_has_no_range_of_folds(said):
    assert not [line for line in said(range(30)) if 'folds' in line]


@pytest.mark.parametrize(
    ('settings', 'told'),
    [
        ({'augment__samples': 16}, [(16, 'augment.frozen=False')]),
        ({'augment__samples': 16, 'augment__frozen': False, 'balanced__epochs': 1}, [(16, 'more epochs')]),
        ({'augment__samples': 16, 'augment__frozen': False, 'balanced__epochs': 2}, []),
        ({'augment__samples': 25}, [(25, 'augment.frozen=False')]),
        ({'augment__samples': 26}, []),
        ({'augment__samples': 0}, []),
    ],
)
def test_training_images_that_no_epoch_uses_are_told(said, settings, told):
    lines = said(range(30), phases=('balanced',), **settings)
    assert [line for line in lines if line.startswith('warning')] == [
        f'warning: phase balanced uses {used} of 26 training images and leaves out the others in all epochs; '
        f'augment.samples=0 uses all in each epoch, {other} more of them.'
        for used, other in told
    ]


@pytest.mark.parametrize(
    ('fingerprint', 'synthetic', 'changes', 'printed'),
    [
        (bhcnet.FINGERPRINT, False, {}, '100'),
        ('f' * 64, True, {}, '100'),
        ('f' * 64, False, {}, None),
        (bhcnet.FINGERPRINT, False, {'dataset.image_size': 32}, None),
        (bhcnet.FINGERPRINT, False, {'model.filters': (8, 16, 32)}, None),
        ('f' * 64, True, {'augment.samples': 200}, None),
        (bhcnet.FINGERPRINT, False, {'imbalanced.epochs': 13}, None),
        (bhcnet.FINGERPRINT, False, {'phases': ('balanced',), 'imbalanced.positives': 7}, '95'),
    ],
)
def test_the_papers_row_is_for_its_images_and_its_recipe(fingerprint, synthetic, changes, printed):
    labels = np.arange(200) % 2
    config = ConfigDict(trial.set_point(base.get_config().to_dict(), changes))
    this = trial.make(config, labels, splits.split(labels, np.arange(200), 'holdout', 10, 0, 0), fingerprint)
    row = summary.paper_row(this, fingerprint, synthetic)
    assert getattr(row, 'accuracy', None) == printed


@pytest.mark.parametrize(
    ('val_losses', 'expected'),
    [
        ((None, None, None), ['  test accuracy 90.0 %  seed=1', '  test accuracy 80.0 %  seed=0']),
        ((0.5, 0.75, 0.25), ['  validation loss 0.2500, test accuracy 70.0 %  seed=2',
                             '  validation loss 0.5000, test accuracy 80.0 %  seed=0']),
    ],
)  # fmt: skip
def test_the_end_of_a_sweep_names_its_best_trials(tmp_path, capsys, val_losses, expected):
    path = tmp_path / 'a b'
    path.mkdir()
    wanted = [Identity(f'{seed}', 'r', 's', 'b', ('balanced',), (1,), {'seed': seed}) for seed in range(4)]
    with contextlib.closing(Results(path / 'results.sqlite')) as database:
        for each, accuracy, val_loss in zip(wanted, (0.8, 0.9, 0.7), val_losses, strict=False):
            database.begin([{'trial_id': each.trial_id, 'recipe': 'x'}])
            database.finish(each.trial_id, {'accuracy': accuracy, 'val_loss': val_loss})
        summary.print_end(wanted, None, None, database, path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == '4 trials: 3 DONE, 1 PENDING'
    assert lines[2:4] == expected
    assert f"Leaderboard: python -m bhcnet_jax.results '{path}'" in lines


def test_one_epoch_is_not_called_epochs(said):
    lines = said(range(30), phases=('balanced',), balanced__epochs=1)
    assert next(line for line in lines if line.startswith('Phase')).endswith(', 1 epoch')


def test_an_obituary_has_the_line_of_the_error_and_not_the_notes_below_it():
    @jax.jit
    def add(x):
        raise RuntimeError('shapes do not fit:\n  (2,)\n  (3,)')

    try:
        add(1.0)
    except RuntimeError as error:
        error.add_note('--------------------\nFor simplicity, JAX has removed its internal frames.')
        text = ''.join(traceback.format_exception(error))
    row = pd.Series({'trial_id': 'a' * 64, 'seed': 1, 'fold': 2, 'status': 'FAILED', 'error': text})
    who = f'Trial {"a" * 12} (seed 1, fold 2) FAILED: '
    assert summary._obituary(row).startswith(f'{who}RuntimeError: shapes do not fit: The traceback is in')
    assert summary._obituary(row.replace({text: 'too few images'})).startswith(f'{who}too few images The traceback')
