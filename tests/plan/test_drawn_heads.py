import inspect

import numpy as np
import pytest

from bhcnet_jax.datasets.phantom import heads, version
from bhcnet_jax.errors import UserError
from bhcnet_jax.plan import phases, splits, trial
from bhcnet_jax.training.lanes import stack
from lanes import small_config

LABELS = (np.arange(40) % 2).astype(np.int32)


def make(fingerprint='data', **overrides):
    """A trial that begins on drawn heads, on 40 images."""
    config = small_config(imbalanced__positives=30, **{'phases': ('phantom', 'balanced'), **overrides})
    part = config.split
    split = splits.split(LABELS, np.arange(40), part.scheme, part.folds, part.fold, part.seed)
    if part.val_folds:
        split = splits.hold_out_validation(split, LABELS, np.arange(40), part.val_folds, part.seed)
    return trial.make(config, LABELS, split, fingerprint)


def began(**overrides):
    return make(**overrides).identity


@pytest.mark.parametrize(
    'overrides',
    [
        {'split__scheme': 'kfold', 'split__fold': 3},
        {'split__seed': 1},
        {'split__val_folds': 4},
        {'fingerprint': 'other'},
        {'phases': ('phantom',)},
        {'phases': ('phantom', 'balanced', 'imbalanced')},
        {'balanced__epochs': 3},
        {'optimizer__peak_lr': 2e-3},
        {'augment__policy': 'none'},
        {'augment__policy': 'distort'},
        {'augment__affine__zoom': 0.1},
        {'augment__samples': 40},
        {'augment__frozen': False},
    ],
)
def test_what_drawn_heads_do_not_depend_on_shares_the_pretraining(overrides):
    assert began(**overrides).starts_from == began().starts_from
    assert began(**overrides).trial_id != began().trial_id


@pytest.mark.parametrize(
    'overrides',
    [
        {'seed': 1},
        {'batch_size': 16},
        {'dataset__image_size': 32},
        {'phantom__epochs': 3},
        {'phantom__samples': 30},
        {'phantom__peak_lr': 2e-3},
        {'model__mask_head': True},
        {'model__mask_head': True, 'phantom__mask': 0.5},
        {'model__norm': 'group'},
        {'model__dropout': 0.1},
        {'augment__policy': 'affine+intensity'},
        {'optimizer__label_smoothing': 0.1},
        {'optimizer__ema': 0.9},
    ],
)
def test_what_drawn_heads_depend_on_needs_another_pretraining(overrides):
    assert began(**overrides).starts_from != began().starts_from
    assert began(**overrides).trial_id != began().trial_id


def test_strengths_of_intensity_count_where_it_is_in_use():
    plain, strong = ({'augment__intensity__gamma': gamma} for gamma in (0.4, 0.5))
    assert began(**plain).starts_from == began(**strong).starts_from
    both = {'augment__policy': 'affine+intensity'}
    assert began(**plain, **both).starts_from != began(**strong, **both).starts_from


def test_every_edit_of_the_drawing_makes_another_trial_and_pretraining(monkeypatch):
    before, source = began(), inspect.getsource
    phases.drawing_version.cache_clear()
    monkeypatch.setattr(inspect, 'getsource', lambda module: source(module) + '# edited')
    after = began()
    phases.drawing_version.cache_clear()
    assert after.starts_from != before.starts_from and after.trial_id != before.trial_id
    assert after.recipe_id == before.recipe_id


def test_the_drawings_version_covers_what_it_imports_from_its_folder(monkeypatch):
    folder = 'bhcnet_jax.datasets.phantom'
    sources = {
        'heads': f'from bhcnet_jax import errors\nfrom {folder} import shortcuts',
        'shortcuts': f'import jax\nfrom {folder}.drawing import SEED',
        'drawing': '',
    }
    monkeypatch.setattr(inspect, 'getsource', lambda module: sources[module.__name__.rpartition('.')[2]])
    assert version._sources(heads.__name__) == {f'{folder}.{name}': source for name, source in sources.items()}


def test_a_pretraining_shares_no_program_with_trials():
    of_trial, alone, without = began(), began(phases=('phantom',)), began(phases=('balanced',))
    config = small_config(phases=('phantom', 'balanced'))
    pretraining = trial.pretraining(config)
    assert pretraining.trial_id == of_trial.starts_from
    signatures = {each.signature for each in (of_trial, alone, without, pretraining)}
    assert len(signatures) == 4
    assert trial.pretraining(small_config(phases=('phantom',), phantom__samples=30)).signature not in signatures


def test_trials_without_drawn_heads_start_from_nothing_and_do_not_know_the_section():
    assert began(phases=('balanced',)).starts_from == ''
    assert began(phases=('balanced',), phantom__samples=99).trial_id == began(phases=('balanced',)).trial_id


def test_the_phase_of_drawn_heads_has_no_image_of_the_set():
    planned = make(phantom__samples=30)
    drawn, balanced = planned.phases
    assert (drawn.index, balanced.index, drawn.samples) == (0, 1, 30)
    assert drawn.used == 0 and not len(drawn.sources)
    np.testing.assert_array_equal(phases.class_weights(drawn.counts), [1, 1])
    assert stack([planned], 1).sources.shape == (1, 20)


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        ({'phases': ('balanced', 'phantom')}, 'phases is .*; expected some of phantom, .*, phantom only as the first'),
        ({'phases': ('phantom',), 'phantom__mask': 1.0}, 'phantom.mask is 1.0, but the model has no mask head; set'),
        ({'phantom__samples': 1}, 'phantom.samples is 1; expected 2 to'),
    ],
)
def test_an_impossible_value_is_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        trial.check(small_config(**overrides))


def test_balanced_can_carry_the_class_weights_of_drawn_heads():
    trial.check(small_config(phases=('phantom', 'balanced'), balanced__class_weights='carried'))
