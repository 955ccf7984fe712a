"""What a run says before it trains."""

import traceback

import jax
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bhcnet_jax.display import summary
from bhcnet_jax.plan import sweep
from bhcnet_jax.plan.study import Study
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
    assert 'Test parts of 10 folds: 3 images, 1 to 2 of them hemorrhage' in lines
    assert not [line for line in lines if line.startswith('warning')]


def test_folds_of_which_one_is_more_than_twice_another_are_warned_of(said):
    lines = said([0] * 20 + list(range(1, 13)), split__scheme='kfold', split__folds=4, augment__samples=0)
    assert 'Test parts of 4 folds: 4 to 20 images, 2 to 10 of them hemorrhage' in lines
    assert [line[:59] for line in lines if line.startswith('warning')] == [
        'warning: the largest fold has 20 images, the smallest 4, si',
        'warning: the largest fold has 10 hemorrhages, the smallest ',
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
