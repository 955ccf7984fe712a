import gc
import tracemalloc

import numpy as np
import pytest

from bhcnet_jax.errors import UserError
from bhcnet_jax.plan import sweep, trial
from bhcnet_jax.plan.study import Study
from lanes import small_config

EVERY = sweep.parse_shard('1/1')


@pytest.fixture(scope='module')
def study_of(labelled_folder, tmp_path_factory):
    """Makes the study of a config with some keys set, over axes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TFDS_DATA_DIR', str(tmp_path_factory.mktemp('tfds')))

        def make(axes='', **overrides):
            folder = {'dataset__name': 'folder', 'dataset__dir': str(labelled_folder), 'imbalanced__positives': 30}
            return Study(small_config(**folder, **overrides), axes)

        yield make


def points(study):
    return [dict(each.point) for each in study.trials(EVERY)]


def test_a_config_without_a_sweep_is_one_trial(study_of):
    study = study_of()
    (only,) = study.trials(EVERY)
    assert only.point == {}
    assert only == trial.identify(study.config, study.split_of(study.config), study.image_set.fingerprint)


def test_a_trial_is_planned_with_its_own_values(study_of):
    study = study_of('seed=3,5 split.fold=1,2 balanced.epochs=4', split__scheme='kfold')
    planned = [study.plan(each) for each in study.trials(EVERY)]
    assert [(each.config.seed, each.config.split.fold) for each in planned] == [(3, 1), (3, 2), (5, 1), (5, 2)]
    assert {each.phases[0].epochs for each in planned} == {4}
    np.testing.assert_array_equal(planned[0].split.test, planned[2].split.test)
    assert not set(planned[0].split.test) & set(planned[1].split.test)
    assert study.config.seed == 0


def test_a_trial_that_is_asked_for_again_is_not_planned_again(study_of, monkeypatch):
    plan, calls = trial.plan, []
    monkeypatch.setattr(trial, 'plan', lambda *arguments: calls.append(1) or plan(*arguments))
    study = study_of('seed=0:3')
    first = [study.plan(each) for each in study.trials(EVERY)]
    again = [study.plan(each) for each in study.trials(EVERY)]
    assert len(calls) == 3
    assert all(one is other for one, other in zip(first, again, strict=True))


def test_only_the_last_planned_trials_are_remembered(study_of, monkeypatch):
    monkeypatch.setattr('bhcnet_jax.plan.study.REMEMBERED', 2)
    study = study_of('seed=0:3')
    trials = study.trials(EVERY)
    first, *_, last = [study.plan(each) for each in trials]
    assert study.plan(trials[-1]) is last
    assert study.plan(trials[0]) is not first


def test_no_config_of_a_study_can_be_written_to(study_of):
    study = study_of('seed=0:2')
    for config in (study.config, study.plan(study.trials(EVERY)[1]).config):
        with pytest.raises(AttributeError, match='immutable'):
            config.seed = 7
        with pytest.raises(AttributeError, match='immutable'):
            config.engine.spread = 'batch'


def test_folds_share_one_program_though_their_sizes_differ(study_of):
    study = study_of('split.fold=0:7', split__scheme='kfold', split__folds=7)
    trials = study.trials(EVERY)
    assert len({len(study.plan(each).split.test) for each in trials}) > 1
    assert len({each.signature for each in trials}) == 1


def test_listed_trials_are_multiplied_by_the_axes(study_of):
    listed = ({'optimizer.peak_lr': 1e-3, 'model.dropout': 0.2}, {'optimizer.peak_lr': 1e-4})
    study = study_of('seed=0:2', trials=listed)
    assert points(study) == [{**point, 'seed': seed} for point in listed for seed in (0, 1)]
    assert study.swept == ['model.dropout', 'optimizer.peak_lr', 'seed']
    assert points(study_of(trials=listed)) == list(listed)


@pytest.mark.parametrize(
    ('listed', 'message'),
    [
        (({'seed': 1}, {'seed': 1}), r'config.trials\[1\]: the same as config.trials\[0\]; remove one'),
        (({'sead': 1},), r"config.trials\[0\]: no key 'sead'; did you mean seed"),
        (({'seed': 'one'},), r"config.trials\[0\]: seed is 'one'; expected a whole number"),
        (({'model.dropout': 2.0},), r'model.dropout is 2.0; expected 0.0 to 0.99'),
        (({'split.fold': 3},), r"split.fold is 3; split.scheme 'holdout'"),
        ((3,), r'config.trials\[0\]: found 3; expected a dict'),
    ],
)
def test_an_impossible_list_is_refused_in_one_line(study_of, listed, message):
    with pytest.raises(UserError, match=message) as refusal:
        study_of(trials=listed).trials(EVERY)
    assert '\n' not in str(refusal.value)


def test_a_key_in_the_list_and_in_an_axis_is_refused(study_of):
    with pytest.raises(UserError, match=r'seed is in the sweep and in config.trials'):
        study_of('seed=0:2', trials=({'seed': 1},))


def test_shards_are_disjoint_and_complete(study_of):
    study = study_of('seed=0:20')
    shards = [{each.trial_id for each in study.trials(sweep.parse_shard(f'{index}/3'))} for index in (1, 2, 3)]
    assert sum(map(len, shards)) == len(set().union(*shards)) == 20


def test_ten_thousand_trials_take_little_memory(study_of):
    study = study_of('seed=0:10000')
    gc.collect()
    tracemalloc.start()
    trials = study.trials(EVERY)
    size, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(trials) == 10_000
    assert peak < 100e6  # a hundred thousand in a gigabyte
    assert size < 30e6


def test_listed_points_count_with_the_axes_that_multiply_them(study_of):
    with pytest.raises(UserError, match='2,000,000 points; expected at most 1,000,000'):
        study_of('split.seed=0:1000000', trials=({'seed': 0}, {'seed': 1}))
