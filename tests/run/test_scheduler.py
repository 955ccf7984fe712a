import contextlib
import json
import sqlite3
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pandas as pd
import pytest
from ml_collections import ConfigDict

from bhcnet_jax import machine
from bhcnet_jax.configs import base
from bhcnet_jax.errors import UserError
from bhcnet_jax.plan import phases, trial
from bhcnet_jax.records.database import Results
from bhcnet_jax.run import train
from bhcnet_jax.run.train import Options
from bhcnet_jax.training.engine import Engine
from lanes import small_config

TIMES = ['train_seconds', 'images_per_second', 'engine', 'digest']


@pytest.fixture(scope='module')
def sweep_of(labelled_folder, tmp_path_factory):
    """Runs a sweep in this process, on two devices. -> whether it went well, trials by id without their times."""
    folder = tmp_path_factory.mktemp('sweeps')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TFDS_DATA_DIR', str(folder / 'tfds'))

        def run(name, axes, **overrides):
            config = small_config(
                dataset__name='folder', dataset__dir=str(labelled_folder), imbalanced__positives=30,
                model__filters=(2, 3), augment__policy='none', balanced__epochs=2, imbalanced__epochs=1, **overrides,
            )  # fmt: skip
            well = train.run(config, Options(workdir=str(folder / name), sweep=axes))
            with contextlib.closing(sqlite3.connect(folder / name / 'results.sqlite')) as database:
                return well, pd.read_sql_query('SELECT * FROM trials ORDER BY trial_id', database)

        yield run


class SplitOf(NamedTuple):
    """What an identity needs of a split."""

    digest: str
    test: tuple = ()
    val: tuple = ()


AXES = 'seed=0:4'


@pytest.fixture(scope='module')
def undisturbed(sweep_of):
    well, rows = sweep_of('undisturbed', AXES)
    assert well
    return rows


def assert_same(rows, expected):
    """Bit for bit, but for times and engine settings."""
    rows, expected = (each.drop(columns=TIMES).reset_index(drop=True) for each in (rows, expected))
    pd.testing.assert_frame_equal(rows, expected, check_exact=True, check_dtype=False)


def test_of_trials_that_train_together_only_the_one_that_raises_is_failed(sweep_of, undisturbed, monkeypatch):
    epoch, calls = Engine.epoch, []

    def failing(engine, states, lanes):
        calls.append(len(lanes.seed))
        if 2 in lanes.seed and lanes.phase[0] == 1:
            raise RuntimeError('seed 2 does not work')
        return epoch(engine, states, lanes)

    monkeypatch.setattr(Engine, 'epoch', failing)
    well, rows = sweep_of('failing', AXES)
    assert not well
    assert calls[:2] == [2, 2]  # two devices, a trial on each
    failed = rows[rows.status == 'FAILED']
    assert list(failed.seed) == [2]
    assert 'seed 2 does not work' in failed.error.item() and 'Traceback' in failed.error.item()
    assert_same(rows[rows.seed != 2], undisturbed[undisturbed.seed != 2])


@pytest.mark.parametrize('impossible', [0, 1])
def test_a_trial_that_its_images_do_not_allow_is_failed_alone(sweep_of, monkeypatch, impossible):
    plan = phases.plan

    def refusing(config, *rest):
        if config.seed == impossible:
            raise ValueError('too few images')
        return plan(config, *rest)

    monkeypatch.setattr(phases, 'plan', refusing)
    well, rows = sweep_of(f'refused {impossible}', 'seed=0:2')
    assert not well
    assert rows.set_index('seed').status.to_dict() == {1 - impossible: 'DONE', impossible: 'FAILED'}
    assert rows[rows.seed == impossible].error.item() == 'too few images'


@pytest.mark.slow
def test_lanes_that_do_not_fit_into_memory_are_halved_and_the_sweep_goes_on(sweep_of, monkeypatch, capsys):
    epoch = Engine.epoch

    def too_large(engine, states, lanes):
        if engine.lanes > 1 and lanes.phase[0] == 1:
            jax.block_until_ready(jnp.zeros(2**55, jnp.uint8))  # no machine has it
        return epoch(engine, states, lanes)

    expected = sweep_of('two_lanes', AXES, engine__lanes='2')[1]
    monkeypatch.setattr(Engine, 'epoch', too_large)
    well, rows = sweep_of('exhausted', AXES, engine__lanes='2')
    assert well
    assert 'Out of memory: from here on each device trains at a time: 1' in capsys.readouterr().out
    flags = machine.compiler_flags()
    settings = [', '.join(filter(None, ('devices 2', f'lanes {lanes}', 'spread lanes', flags))) for lanes in (2, 1)]
    assert set(rows.engine) == {'; '.join(settings)}
    for name in ('log_loss', 'auc'):  # other lanes, other rounding
        pd.testing.assert_series_equal(rows[name], expected[name], rtol=1e-3)


def test_each_trial_can_be_rebuilt_from_the_database(sweep_of):
    _, rows = sweep_of('rebuilt', "seed=3 phases=('balanced',),('balanced','imbalanced') optimizer.peak_lr=1e-3,1e-4")
    for row in rows.itertuples():
        settings = json.loads(row.settings)
        config = trial.set_point(base.get_config().to_dict(), {'dataset.dir': 'elsewhere'})
        for name, part in settings.items():
            config[name] = {**config[name], **part} if isinstance(part, dict) else part
        config['phases'] = tuple(config['phases'])
        trial.check(ConfigDict(config))
        assert trial.identify(config, SplitOf(row.split_digest), row.data_fingerprint).recipe_id == row.recipe_id
        assert (settings['seed'], settings['split']['fold']) == (row.seed, row.fold)
        assert 'dir' not in settings['dataset']


def test_an_extended_sweep_computes_what_one_at_once_does(sweep_of, undisturbed):
    sweep_of('extended', 'seed=0:2')
    well, rows = sweep_of('extended', AXES)
    assert well
    assert_same(rows, undisturbed)


def test_a_trial_that_was_killed_between_its_last_epoch_and_its_row_only_gets_its_row(
    sweep_of, undisturbed, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(Results, 'finish_many', lambda *_: (_ for _ in ()).throw(UserError('the disk is full')))
        with pytest.raises(UserError):
            sweep_of('unfinished', 'seed=0:2')
    monkeypatch.setattr(Engine, 'epoch', None)  # not callable: nothing is left to train
    well, rows = sweep_of('unfinished', 'seed=0:2')
    assert well
    assert_same(rows, undisturbed[undisturbed.seed < 2])


def test_the_choice_of_lanes_is_kept_for_a_resumed_sweep(sweep_of, monkeypatch):
    sweep_of('chosen', 'seed=0:1')
    # Not callable: it would be an error to choose again.
    monkeypatch.setattr('bhcnet_jax.run.scheduler.choose_lanes', None)
    well, _ = sweep_of('chosen', 'seed=0:2')
    assert well


def test_a_finished_trial_goes_on_with_another_phase_and_ends_like_one_trained_at_once(sweep_of, undisturbed):
    trained = []
    epoch = Engine.epoch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, 'epoch', lambda *args: trained.append(args[2].phase[0]) or epoch(*args))
        sweep_of('by_phase', "seed=0:4 phases=('balanced',)")
        well, rows = sweep_of('by_phase', "seed=0:4 phases=('balanced',),('balanced','imbalanced')")
    assert well
    assert trained == [0, 0] * 2 + [1] * 2  # two batches of two trials, and no epoch twice
    assert_same(rows[rows.phases == 'balanced+imbalanced'], undisturbed)
