"""Trials whose layers learn without labels first, as whole runs."""

import contextlib
import sqlite3

import jax
import numpy as np
import pandas as pd
import pytest

from bhcnet_jax.run import train
from bhcnet_jax.run.train import Options
from bhcnet_jax.training import optim
from bhcnet_jax.training.engine import Engine
from lanes import tiny_config

PARTS = (2, 1, 1)  # epochs of each layer
TIMES = ['train_seconds', 'images_per_second', 'engine', 'digest', 'seconds']


class Killed(BaseException):
    """What no handler of errors catches, as of a kill."""


class Runs:
    """Runs of a tiny recipe in this process."""

    def __init__(self, folder, images):
        self.folder, self._images = folder, images

    def run(self, name, axes='', prune='', **overrides):
        """Whether all trials ended well."""
        config = tiny_config(
            'autoencoder', phases=('autoencoder', 'balanced'), autoencoder__epochs=sum(PARTS), balanced__epochs=2,
            dataset__name='folder', dataset__dir=str(self._images), augment__policy='none', **overrides,
        )  # fmt: skip
        return train.run(config, Options(str(self.folder / name), sweep=axes, prune=prune))

    def read(self, name, table):
        """The rows of a table, without times."""
        with contextlib.closing(sqlite3.connect(self.folder / name / 'results.sqlite')) as database:
            rows = pd.read_sql_query(f'SELECT * FROM {table} ORDER BY trial_id, rowid', database)
        return rows.drop(columns=TIMES, errors='ignore')


@pytest.fixture(scope='module')
def runs(labelled_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp('unlabelled')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TFDS_DATA_DIR', str(folder / 'tfds'))
        yield Runs(folder, labelled_folder)


@pytest.fixture(scope='module')
def undisturbed(runs):
    """A finished run, and what went into and came out of each of its epochs."""
    seen, epoch = [], Engine.epoch

    def recording(engine, states, lanes):
        before = jax.device_get(states)
        states, result = epoch(engine, states, lanes)
        seen.append((before, lanes, jax.device_get(states)))
        return states, result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, 'epoch', recording)
        assert runs.run('undisturbed')
    return 'undisturbed', seen


@pytest.mark.slow
def test_the_phase_records_its_loss_and_no_scores(runs, undisturbed):
    name, _ = undisturbed
    (row,) = runs.read(name, 'trials').itertuples()
    assert (row.status, row.phases, row.phase) == ('DONE', 'autoencoder+balanced', 'balanced')
    epochs = runs.read(name, 'epochs').set_index('phase')
    without, labelled = epochs.loc['autoencoder'], epochs.loc['balanced']
    assert list(without.epoch) == [1, 2, 3, 4] and without.train_loss.notna().all()
    assert without[['train_accuracy', 'test_loss', 'test_accuracy', 'tp', 'val_loss']].isna().all(axis=None)
    assert labelled[['train_accuracy', 'test_loss', 'test_accuracy', 'tp']].notna().all(axis=None)


def test_each_layer_learns_in_its_share_at_rates_of_its_own(undisturbed):
    _, seen = undisturbed
    assert [int(lanes.layer[0]) for _, lanes, _ in seen] == [1, 1, 2, 3, 0, 0]
    steps = seen[0][1].learning_rates.shape[1]
    expected = np.concatenate([optim.learning_rates(tiny_config('autoencoder').optimizer, part, steps)
                               for part in PARTS])  # fmt: skip
    np.testing.assert_array_equal([lanes.learning_rates[0] for _, lanes, _ in seen[:4]], expected)
    for before, lanes, after in seen:
        learning = {part for part, weights in after.params.items()
                    if not all(map(np.array_equal, *map(jax.tree.leaves, (before.params[part], weights))))}  # fmt: skip
        layer = int(lanes.layer[0])
        assert learning == ({f'layer{layer}'} if layer else {'layer1', 'layer2', 'layer3', 'head'})


def test_the_classifier_starts_from_the_weights_that_learnt_without_labels(undisturbed):
    _, seen = undisturbed
    start, learnt, classifier = seen[0][0].params, seen[3][2].params, seen[4][0]
    assert int(seen[4][1].layer[0]) == 0
    jax.tree.map(np.testing.assert_array_equal, learnt, classifier.params)
    for layer in ('layer1', 'layer2', 'layer3'):
        assert not np.array_equal(start[layer]['kernel'], learnt[layer]['kernel'])
    assert not any(map(np.any, jax.tree.leaves(classifier.opt_state)))  # Adam is fresh


@pytest.mark.parametrize('after', [1, 2, 3, 4, 5])
def test_a_run_killed_after_any_epoch_goes_on_to_the_same_numbers(runs, undisturbed, after, monkeypatch):
    name, epoch, calls = f'killed_{after}', Engine.epoch, []

    def killing(engine, states, lanes):
        if len(calls) == after:
            raise Killed
        calls.append(lanes)
        return epoch(engine, states, lanes)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, 'epoch', killing)
        with pytest.raises(Killed):
            runs.run(name)
    assert runs.run(name)
    for table in ('trials', 'epochs', 'predictions'):
        pd.testing.assert_frame_equal(runs.read(name, table), runs.read(undisturbed[0], table), check_exact=True)


@pytest.mark.slow
def test_a_sweep_prunes_by_what_the_classifiers_do(runs):
    rates = 'seed=0:2 optimizer.peak_lr=1e-3,3e-3'
    assert runs.run('sweep', rates, prune='rungs=2,5 keep=1/2', split__val_folds=5)
    trials = runs.read('sweep', 'trials')
    assert sorted(trials.status) == ['DONE', 'DONE', 'PRUNED', 'PRUNED']
    done = runs.read('sweep', 'epochs').groupby('trial_id').size()
    assert sorted(done) == [5, 5, 6, 6]
