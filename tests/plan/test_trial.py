import numpy as np
import pytest

from bhcnet_jax import models
from bhcnet_jax.errors import UserError
from bhcnet_jax.plan import phases, splits, trial
from bhcnet_jax.training.lanes import stack
from lanes import small_config

LABELS = (np.arange(40) % 2).astype(np.int32)
UNLABELLED = {'model__name': 'autoencoder', 'phases': ('autoencoder', 'balanced')}


def make(fingerprint='data', **overrides):
    config = small_config(imbalanced__positives=30, **overrides)
    part = config.split
    split = splits.split(LABELS, np.arange(40), part.scheme, part.folds, part.fold, part.seed)
    if part.val_folds:
        split = splits.hold_out_validation(split, LABELS, np.arange(40), part.val_folds, part.seed)
    return trial.make(config, LABELS, split, fingerprint)


def test_equal_trials_have_equal_ids():
    assert make().trial_id == make().trial_id
    assert len(make().trial_id) == 64


@pytest.mark.parametrize(
    'overrides',
    [
        {'optimizer__peak_lr': 2e-3},
        {'model__dropout': 0.4},
        {'imbalanced__epochs': 13},
        {'imbalanced__class_weights': 'computed'},
        {'augment__affine__zoom': 0.1},
        {'augment__frozen': False},
        {'phases': ('balanced',)},
        {'dataset__image_size': 32},
        {'dataset__equalise': True},
        {'model__convs': 2},
        {'model__norm': 'group'},
        {'model__pooling': 'max'},
        {'augment__test_flip': True},
        {'optimizer__ema': 0.9},
        {'optimizer__label_smoothing': 0.1},
        {'split__seed': 1},
    ],
)
def test_what_changes_a_result_changes_trial_and_recipe(overrides):
    assert make(**overrides).trial_id != make().trial_id
    assert make(**overrides).identity.recipe_id != make().identity.recipe_id


@pytest.mark.parametrize('overrides', [{'seed': 1}, {'split__scheme': 'kfold', 'split__fold': 3}])
def test_seed_and_fold_change_the_trial_but_not_the_recipe(overrides):
    base = {key: value for key, value in overrides.items() if key == 'split__scheme'}
    assert make(**overrides).trial_id != make(**base).trial_id
    assert make(**overrides).identity.recipe_id == make(**base).identity.recipe_id


def test_other_data_make_another_trial():
    assert make(fingerprint='other').trial_id != make().trial_id


@pytest.mark.parametrize(
    'overrides',
    [
        {'recipe': 'my label'},
        {'engine__checkpoint_seconds': 5.0},
        {'dataset__dir': '/elsewhere'},
        {'augment__distort__noise': 0.5},  # the policy in use is affine
        {'model__recurrent_units': 7},  # the model in use has none
        {'balanced__optimizer_state': 'carried'},  # nothing comes before the first phase
    ],
)
def test_what_changes_no_result_changes_no_id(overrides):
    assert make(**overrides).trial_id == make().trial_id


def test_a_section_that_is_not_in_use_does_not_count():
    balanced = {'phases': ('balanced',)}
    assert make(**balanced, imbalanced__epochs=3).trial_id == make(**balanced).trial_id
    assert make(**balanced, autoencoder__epochs=3).trial_id == make(**balanced).trial_id
    assert make(**UNLABELLED, autoencoder__epochs=3).trial_id != make(**UNLABELLED).trial_id


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        ({'optimizer__peak_lr': -1e-3}, r'optimizer.peak_lr is -0.001; expected 0.0 to 10.0'),
        ({'optimizer__peak_lr': float('nan')}, r'optimizer.peak_lr is nan'),
        ({'split__fold': 12, 'split__scheme': 'kfold'}, r"split.fold is 12; .*'kfold' of 10 folds allows 0 to 9"),
        ({'split__fold': 1}, r"'holdout' of 10 folds allows 0 to 0"),
        ({'model__name': 'resnet'}, r"model.name is 'resnet'; expected one of cnn, cnn_lstm, cnn_gru"),
        ({'dataset__name': 'mnist'}, r"dataset.name is 'mnist'; expected one of auto, head_ct"),
        ({'augment__policy': 'mixup'}, r'expected one of affine, distort, none'),
        ({'augment__samples': -1}, r'augment.samples is -1; expected 0 to'),
        ({'augment__samples': 1}, r'augment.samples is 1, but each phase needs both classes'),
        ({'augment__distort__optical': 0.34}, r'augment.distort.optical is 0.34; expected 0.0 to 0.33'),
        ({'imbalanced__positives': 2**31 - 1}, r'imbalanced.positives is 2147483647; expected 1 to 1000000'),
        ({'balanced__epochs': 0}, r'balanced.epochs is 0; expected 1 to'),
        ({'model__dropout': 1.0}, r'model.dropout is 1.0; expected 0.0 to 0.99'),
        ({'model__filters': (32, 0)}, r'model.filters is \(32, 0\)'),
        ({'model__filters': ()}, r'model.filters is \(\)'),
        ({'model__filters': (1,) * 5, 'dataset__image_size': 8}, r'image_size is 8; 5 blocks halve it 4 times'),
        ({'phases': ()}, r'phases is \(\); expected some of phantom, balanced, imbalanced, autoencoder, each once'),
        ({'phases': ('balanced', 'balanced')}, r'each once'),
        ({'phases': ('warmup',)}, r'expected some of phantom, balanced, imbalanced, autoencoder, each once'),
        ({'phases': ('imbalanced',)}, r'no phase comes before imbalanced'),
        ({'phases': ('autoencoder',)}, r'autoencoder only as the first of several'),
        ({'phases': ('balanced', 'autoencoder')}, r'autoencoder only as the first of several'),
        ({'phases': ('phantom', 'autoencoder', 'balanced')}, r'autoencoder only as the first of several'),
        ({'phases': ('autoencoder', 'balanced')}, r'^phases has autoencoder, but cnn has no layers that learn by'),
        ({**UNLABELLED, 'autoencoder__epochs': 2}, r'^autoencoder.epochs is 2, but 3 layers .* expected 3 or more\.$'),
        ({'split__val_folds': 1}, r'split.val_folds is 1, which leaves nothing to train on; expected 0'),
        ({'seed': -1}, r'seed is -1; expected 0 to 2147483647'),
        ({'engine__spread': 'rows'}, r'expected one of auto, lanes, batch'),
        ({'engine__lanes': '0'}, r"engine.lanes is '0'; expected 'auto' or a whole number from 1"),
        ({'engine__lanes': 'two'}, r"engine.lanes is 'two'; expected 'auto'"),
    ],
)
def test_an_impossible_value_is_refused_with_what_is_allowed(overrides, message):
    with pytest.raises(UserError, match=message) as refusal:
        trial.check(small_config(**overrides))
    assert '\n' not in str(refusal.value)


def test_lanes_carry_each_trials_own_values():
    trials = [make(seed=3), make(seed=5, optimizer__weight_decay=0.1, model__dropout=0.2, augment__affine__zoom=0.3)]
    lanes = stack(trials, 1)
    np.testing.assert_array_equal(lanes.seed, [3, 5])
    np.testing.assert_allclose(lanes.values['optimizer.weight_decay'], [0, 0.1])
    np.testing.assert_allclose(lanes.values['model.dropout'], [0.5, 0.2])
    np.testing.assert_allclose(lanes.values['augment.affine.zoom'], [0.05, 0.3])
    np.testing.assert_array_equal(lanes.sources[1], trials[1].phases[1].sources)
    np.testing.assert_array_equal(lanes.scored[0][: len(trials[0].split.test)], trials[0].split.test)
    whole_numbers = (lanes.seed, lanes.phase, lanes.epoch, lanes.sources, lanes.scored)
    assert {leaf.dtype.name for leaf in whole_numbers} == {'int32'}


def test_the_validation_part_is_scored_after_the_test_part():
    this = make(split__val_folds=4)
    scored = stack([this], 0).scored[0]
    assert len(scored) == trial.scored_count(this.split)
    both = np.concatenate([this.split.test, this.split.val])
    np.testing.assert_array_equal(scored[: len(both)], both)
    assert not set(this.phases[0].sources) & set(both)


def test_a_key_at_its_neutral_value_is_no_part_of_an_identity():
    config = small_config().to_dict()
    for name, neutral in trial.NEUTRAL.items():
        section, key = name.split('.')
        having = [family for family, each in models.FAMILIES.items() if name in {key.name for key in each.keys}]
        config['model']['name'] = having[0] if having else 'cnn'
        config[section][key] = neutral
        assert key not in trial.resolve(config)[section]
        config[section][key] = 'another'
        assert trial.resolve(config)[section][key] == 'another'


def test_what_a_recipe_has_come_to_mean_changes_the_trial_alone():
    """So that a trial from before is not taken for a finished one: its recipe says the same of other images."""
    split, fresh = make().split, {'augment.frozen': False, 'augment.samples': 20}
    for changed, settings in (({'sources': 'fresh'}, fresh), ({'positives': 31}, {'imbalanced.positives': 153})):
        config = small_config(imbalanced__positives=30).to_dict()
        config = trial.set_point(config, settings)
        assert phases.changes(config, LABELS, split.train) == changed
        before, now = (trial.identify(config, split, 'data', labels=labels) for labels in (None, LABELS))
        assert before.trial_id != now.trial_id
        assert before[1:] == now[1:]


def test_a_running_mean_is_another_trial_than_before_its_start_was_corrected():
    def as_before(this):
        parts = {**trial.resolve(this.config), 'seed': 0, 'data': 'data', 'split': this.split.digest}
        return trial._digest({key: trial._encode(value) for key, value in parts.items()})

    assert make().trial_id == as_before(make())
    assert make(optimizer__ema=0.9).trial_id != as_before(make(optimizer__ema=0.9))


def test_zero_samples_are_resolved_in_the_planned_trial_but_not_in_its_recipe():
    this = make(augment__samples=0)
    assert this.config.augment.samples == this.phases[0].samples == 48  # 18 + 30
    assert this.phases[0].sources.shape == stack([this], 0).sources[0].shape
    assert make(augment__samples=48).identity.recipe_id != this.identity.recipe_id


def test_a_dict_and_a_config_are_the_same_trial():
    config = small_config(imbalanced__positives=30)
    split = make().split
    assert trial.identify(config.to_dict(), split, 'data') == trial.identify(config, split, 'data')


def test_only_the_changed_keys_of_a_point_are_looked_at():
    settings = trial.set_point(small_config().to_dict(), {'optimizer.peak_lr': -1.0})
    trial.check(settings, changed=('seed',))
    with pytest.raises(UserError, match='peak_lr is -1'):
        trial.check(settings, changed=('optimizer.peak_lr',))


@pytest.mark.parametrize(
    ('overrides', 'same_program', 'same_batch'),
    [
        ({'seed': 4, 'optimizer__peak_lr': 0.1, 'model__dropout': 0.1, 'augment__affine__zoom': 0.2}, True, True),
        ({'balanced__epochs': 3}, True, False),
        ({'imbalanced__class_weights': 'computed'}, True, False),
        ({'phases': ('balanced',)}, True, False),
        ({'model__name': 'cnn_gru'}, False, False),
        ({'model__dtype': 'bfloat16'}, False, False),
        ({'augment__frozen': False}, False, False),
        ({'augment__policy': 'distort'}, False, False),
        ({'batch_size': 4}, False, False),
        ({'dataset__image_size': 32}, False, False),
        ({'split__folds': 5}, True, True),  # sizes of the test part up to 32 share a program
    ],
)
def test_traced_values_share_a_program_and_trials_in_step_a_batch(overrides, same_program, same_batch):
    assert (make(**overrides).identity.signature == make().identity.signature) == same_program
    assert (make(**overrides).identity.batch_key == make().identity.batch_key) == same_batch


def test_the_id_of_a_known_trial_does_not_change():
    # Rows that users have are found by this id. A new key has a `neutral` value in its table, which stands for what
    # the code did before; if the id has to change all the same, say so in the release notes.
    assert make(model__filters=(4, 6, 8)).trial_id == 'f908fb50cfc7dd783f543a405e89a5242cde733a826523f1386461e122552047'
