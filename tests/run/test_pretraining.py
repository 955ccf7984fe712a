import contextlib
import sqlite3

import numpy as np
import pandas as pd
import pytest

import simple_heads
from bhcnet_jax import results
from bhcnet_jax.datasets.phantom import heads
from bhcnet_jax.inference import trained
from bhcnet_jax.plan import study
from bhcnet_jax.records import merge
from bhcnet_jax.records.database import Results
from bhcnet_jax.run import train
from bhcnet_jax.run.train import Options
from bhcnet_jax.training.engine import Engine
from lanes import small_config

FOLDS = 'split.fold=0:3'
TIMES = ['train_seconds', 'images_per_second', 'engine', 'digest']


@pytest.fixture(scope='module', autouse=True)
def _simple_heads():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, 'draw', simple_heads.draw)
        yield


class Killed(BaseException):
    """What no handler of errors catches, as of a kill."""


class Runs:
    """Runs of a tiny recipe in this process, on two devices."""

    def __init__(self, folder, images):
        self.folder, self._images = folder, images

    def run(self, name, axes, *, prune='', rerun='', dry_run=False, **overrides):
        """Whether all trials ended well."""
        config = small_config(
            dataset__name='folder', dataset__dir=str(self._images), model__filters=(2, 3), augment__policy='none',
            phantom__epochs=2, phantom__samples=16, balanced__epochs=1, imbalanced__epochs=1, imbalanced__positives=30,
            split__scheme='kfold', phases=('phantom', 'balanced'), **overrides,
        )  # fmt: skip
        options = Options(str(self.folder / name), sweep=axes, prune=prune, rerun=rerun, dry_run=dry_run)
        return train.run(config, options)

    def read(self, name, table='trials'):
        """The rows of trials, without those of pre-trainings and without times."""
        with contextlib.closing(sqlite3.connect(self.folder / name / 'results.sqlite')) as database:
            rows = pd.read_sql_query(f'SELECT * FROM {table} ORDER BY trial_id, rowid', database)
            shared = [row[0] for row in database.execute('SELECT trial_id FROM trials WHERE n_test IS NULL')]
        rows = rows[~rows.trial_id.isin(shared)].drop(columns=[*TIMES, 'seconds'], errors='ignore')
        return rows.reset_index(drop=True)

    def pretrainings(self, name):
        """The rows of pre-trainings."""
        with contextlib.closing(sqlite3.connect(self.folder / name / 'results.sqlite')) as database:
            return pd.read_sql_query('SELECT * FROM trials WHERE n_test IS NULL', database)


@pytest.fixture(scope='module')
def runs(labelled_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp('pretraining')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TFDS_DATA_DIR', str(folder / 'tfds'))
        yield Runs(folder, labelled_folder)


@pytest.fixture(scope='module')
def undisturbed(runs):
    assert runs.run('undisturbed', FOLDS)
    return 'undisturbed'


@pytest.fixture
def epochs(monkeypatch):
    """The phase of each epoch that is trained from here on, and how many lanes train in it."""
    trained, epoch = [], Engine.epoch

    def counting(engine, states, lanes):
        drawn = lanes.sources.shape[1] == 0
        trained.append(('phantom' if drawn else 'real', len(lanes.seed)))
        return epoch(engine, states, lanes)

    monkeypatch.setattr(Engine, 'epoch', counting)
    return trained


def assert_same(runs, name, expected):
    """Bit for bit, but for times and engine settings."""
    for table in ('trials', 'epochs', 'predictions'):
        pd.testing.assert_frame_equal(runs.read(name, table), runs.read(expected, table), check_exact=True)


@pytest.mark.slow
def test_folds_share_a_pretraining_that_is_trained_once(runs, epochs):
    assert runs.run('shared', FOLDS)
    assert epochs == [('phantom', 1)] * 2 + [('real', 2), ('real', 1)]
    curves = runs.read('shared', 'epochs')
    drawn = curves[curves.phase == 'phantom'].pivot(index='trial_id', columns='epoch', values='train_loss')
    assert drawn.shape == (3, 2) and (drawn == drawn.iloc[0]).all(axis=None)
    assert list(runs.pretrainings('shared').status) == ['PRETRAINED']


@pytest.mark.slow
def test_trials_that_differ_in_later_keys_alone_share_a_pretraining_of_an_earlier_call(runs, epochs):
    assert runs.run('later', 'split.fold=0')
    assert runs.run('later', 'split.fold=0:2 split.seed=0,1 balanced.epochs=1,2 optimizer.peak_lr=1e-3,1e-4')
    assert [phase for phase, _ in epochs].count('phantom') == 2
    assert len(runs.read('later')) == 16 and len(runs.pretrainings('later')) == 1


@pytest.mark.slow
def test_more_phases_go_on_from_two_ancestors_to_the_same_numbers(runs, epochs):
    axes = "phases=('phantom','balanced'),('phantom','balanced','imbalanced')"
    assert runs.run('at_once', "phases=('phantom','balanced','imbalanced')")
    assert runs.run('one_by_one', "phases=('phantom','balanced')")
    del epochs[:]
    assert runs.run('one_by_one', axes)
    assert [phase for phase, _ in epochs] == ['real']
    rows = runs.read('one_by_one')
    ids = set(runs.read('at_once').trial_id)
    pd.testing.assert_frame_equal(
        rows[rows.trial_id.isin(ids)].reset_index(drop=True), runs.read('at_once'), check_exact=True
    )


@pytest.mark.parametrize('after', range(1, 5))
@pytest.mark.slow
def test_a_run_killed_after_any_epoch_goes_on_to_the_same_numbers(runs, undisturbed, after, monkeypatch):
    name, epoch, calls = f'killed_{after}', Engine.epoch, []

    def killing(engine, states, lanes):
        if len(calls) == after:
            raise Killed
        calls.append(lanes)
        return epoch(engine, states, lanes)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, 'epoch', killing)
        if after < 4:
            with pytest.raises(Killed):
                runs.run(name, FOLDS)
    assert runs.run(name, FOLDS)
    assert_same(runs, name, undisturbed)


@pytest.mark.parametrize('method', ['end_pretraining', 'inherit', 'finish_many'])
def test_a_run_killed_between_phases_goes_on_to_the_same_numbers(runs, undisturbed, method, monkeypatch):
    def killing(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Results, method, killing)
        with pytest.raises(Killed):
            runs.run(f'killed_at_{method}', FOLDS)
    assert runs.run(f'killed_at_{method}', FOLDS)
    assert_same(runs, f'killed_at_{method}', undisturbed)


def test_a_damaged_last_checkpoint_of_a_pretraining_is_trained_again(runs, undisturbed, epochs, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Results, 'inherit', lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            runs.run('damaged', FOLDS, engine__checkpoint_seconds=0.0)  # so that there is an earlier one
    (last,) = (runs.folder / 'damaged' / 'checkpoints').glob('*/phantom/2')
    for file in last.rglob('*'):
        if file.is_file():
            file.write_bytes(b'damaged')
    del epochs[:]
    assert runs.run('damaged', FOLDS, engine__checkpoint_seconds=0.0)
    assert epochs == [('phantom', 1), ('real', 2), ('real', 1)]
    assert_same(runs, 'damaged', undisturbed)


@pytest.mark.slow
def test_a_trial_is_the_same_whatever_trains_beside_it(runs):
    assert runs.run('alone', 'seed=1:2')
    assert runs.run('among', 'seed=0:3 phantom.samples=16,24')
    rows, alone = runs.read('among'), runs.read('alone')
    same = rows[rows.trial_id.isin(alone.trial_id)].reset_index(drop=True)
    pd.testing.assert_frame_equal(same, alone, check_exact=True, check_dtype=False)
    assert len(rows) == 6 and len(runs.pretrainings('among')) == 6


def test_two_seeds_are_pretrained_on_other_heads(runs):
    assert runs.run('seeds', "seed=0:2 phases=('phantom',)")
    curves = runs.read('seeds', 'epochs')
    assert curves.train_loss.nunique() == len(curves) == 4


@pytest.mark.slow
def test_a_sweep_over_the_number_of_heads_pretrains_on_as_many(runs):
    assert runs.run('samples', 'phantom.samples=16,20,40')
    curves = runs.read('samples', 'epochs')
    assert set(curves[curves.phase == 'phantom'].images) == {16, 20, 40}
    assert set(curves[curves.phase == 'balanced'].images) == {20}


@pytest.fixture(scope='module')
def drawn_alone(runs):
    assert runs.run('drawn', "split.fold=0:10 phases=('phantom',)")
    return 'drawn'


def test_drawn_heads_alone_predict_every_real_image_once_over_the_folds(runs, drawn_alone):
    rows, predictions = runs.read(drawn_alone), runs.read(drawn_alone, 'predictions')
    assert list(rows.status) == ['DONE'] * 10 and set(rows.phases) == {'phantom'}
    assert sorted(predictions.image_id) == sorted(set(predictions.image_id)) and len(predictions) == 40
    assert rows.auc.notna().all()
    epochs = runs.read(drawn_alone, 'epochs')
    assert epochs[epochs.epoch == 1].test_loss.isna().all() and epochs[epochs.epoch == 2].test_loss.notna().all()


def test_the_weights_of_drawn_heads_alone_predict_in_use_what_was_recorded(runs, drawn_alone):
    path = runs.folder / drawn_alone
    rows = merge.merge([path])
    first = rows.trials[rows.trials.fold == 0]
    model = trained.read(path, rows._replace(trials=first))
    mine = rows.predictions[rows.predictions.trial == first.index[0]]
    image_set = study.Study(small_config(**{'dataset__name': 'folder', 'dataset__dir': str(runs._images)})).image_set
    images = image_set.images[[image_set.ids.index(image_id) for image_id in mine.image_id]]
    np.testing.assert_allclose(model.predict(images), mine.probability, atol=1e-6)


@pytest.mark.slow
def test_a_pretraining_that_diverges_ends_its_trials_and_no_others(runs, monkeypatch, capsys):
    epoch = Engine.epoch

    def diverging(engine, states, lanes):
        states, result = epoch(engine, states, lanes)
        drawn = lanes.sources.shape[1] == 0
        wrong = (lanes.seed == 1) & drawn & (lanes.epoch == 1)
        return states, result._replace(sums=result.sums._replace(loss=np.where(wrong, np.nan, result.sums.loss)))

    with monkeypatch.context() as patch:
        patch.setattr(Engine, 'epoch', diverging)
        assert not runs.run('diverged', f'seed=0:3 {FOLDS}')
    rows = runs.read('diverged')
    assert rows.groupby('seed').status.unique().map(list).to_dict() == {0: ['DONE'], 1: ['DIVERGED'], 2: ['DONE']}
    assert 'its loss is not finite after phantom epoch 2. Lower phantom.peak_lr.' in capsys.readouterr().out
    assert runs.run('diverged', f'seed=0:3 {FOLDS}', rerun='diverged')
    assert set(runs.read('diverged').status) == {'DONE'}


@pytest.mark.slow
def test_a_pretraining_that_fails_fails_its_trials_with_its_error(runs, monkeypatch, capsys):
    epoch = Engine.epoch

    def failing(engine, states, lanes):
        if 1 in lanes.seed and lanes.sources.shape[1] == 0:
            raise RuntimeError('seed 1 does not work')
        return epoch(engine, states, lanes)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, 'epoch', failing)
        assert not runs.run('failed', 'seed=0:2')
    assert runs.read('failed').set_index('seed').status.to_dict() == {0: 'DONE', 1: 'FAILED'}
    assert 'FAILED: RuntimeError: seed 1 does not work' in capsys.readouterr().out
    assert runs.run('failed', 'seed=0:2', rerun='failed')


@pytest.mark.slow
def test_rerun_of_all_trains_the_pretraining_again(runs, epochs):
    assert runs.run('again', 'split.fold=0')
    assert runs.run('again', 'split.fold=0', rerun='all')
    assert [phase for phase, _ in epochs] == ['phantom', 'phantom', 'real'] * 2


@pytest.mark.slow
def test_a_rung_prunes_by_real_images_only(runs):
    assert runs.run('pruned', 'seed=0:4 balanced.epochs=3', prune='rungs=1,3 keep=1/2', split__val_folds=5)
    assert sorted(runs.read('pruned').status) == ['DONE', 'DONE', 'PRUNED', 'PRUNED']


def test_weights_that_nobody_needs_are_dropped_with_those_of_the_pretraining(runs):
    assert runs.run('dropped', FOLDS, engine__keep_weights='none')
    assert not list((runs.folder / 'dropped' / 'checkpoints').iterdir())


def test_a_recipe_without_drawn_heads_lies_beside_one_with_them(runs, epochs):
    assert runs.run('beside', "phases=('balanced',),('phantom','balanced')")
    assert [phase for phase, _ in epochs].count('phantom') == 2
    assert set(runs.read('beside').phases) == {'balanced', 'phantom+balanced'}


def test_readers_see_trials_alone_and_how_they_began(runs, undisturbed, capsys):
    path = runs.folder / undisturbed
    assert len(merge.merge([path]).trials) == 3
    assert set(pd.read_csv(path / 'curves.csv').trial_id) == set(runs.read(undisturbed).trial_id)
    results.main([str(path)])
    shown = capsys.readouterr().out
    assert 'Trials: 3 DONE' in shown and 'Pre-trained on drawn heads: base.' in shown


def test_a_dry_run_counts_the_pretraining_once(runs, undisturbed, capsys):
    assert runs.run(undisturbed, 'split.fold=0:5', dry_run=True)
    shown = capsys.readouterr().out
    assert '1 pre-training on drawn heads, each shared by the trials that go on from it; 0 still to train' in shown
    assert runs.run('nowhere', 'split.fold=0:5', dry_run=True)
    shown = capsys.readouterr().out
    assert '1 pre-training on drawn heads' in shown and 'with 2 programs to compile' in shown
    assert 'Estimate from a short measurement: about' in shown
