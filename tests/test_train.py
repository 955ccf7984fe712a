"""Whole runs, most of them as real processes that really get killed."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as reference
from tensorboardX.proto import event_pb2

from bhcnet_jax import train
from lanes import small_config

PHASES = {'balanced': 12, 'imbalanced': 12}


def tiny_config(folder):
    config = small_config(
        dataset__name='folder',
        dataset__dir=str(folder),
        imbalanced__positives=30,
        model__filters=(2, 3, 4),
        recipe='tiny',
        **{f'{phase}__epochs': epochs for phase, epochs in PHASES.items()},
    )
    return config


def command(folder, workdir, *more):
    flags = [
        '--config=base', '--config.recipe=tiny', f'--workdir={workdir}',
        '--config.dataset.name=folder', f'--config.dataset.dir={folder}', '--config.dataset.image_size=16',
        '--config.model.filters=(2,3,4)', '--config.model.recurrent_units=8', '--config.batch_size=8',
        '--config.augment.samples=20', '--config.imbalanced.positives=30',
        *(f'--config.{phase}.epochs={epochs}' for phase, epochs in PHASES.items()),
        *more,
    ]  # fmt: skip
    return [sys.executable, '-c', PROGRAM, *flags]


# As `python -m bhcnet_jax.main` typed into a terminal: a background job of a script, as which the tests may run,
# hands down that SIGINT is ignored.
PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from bhcnet_jax import main
main.run()
"""


@pytest.fixture(scope='module')
def environment(tmp_path_factory):
    """Of child processes: one device, as on a user's machine; prepared data and programs are shared."""
    return {
        **os.environ,
        'XLA_FLAGS': '',
        'TFDS_DATA_DIR': str(tmp_path_factory.mktemp('tfds')),
        'JAX_COMPILATION_CACHE_DIR': str(tmp_path_factory.mktemp('compiled')),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }


@pytest.fixture(scope='module')
def undisturbed(labelled_folder, environment, tmp_path_factory):
    """A finished run and what it printed."""
    workdir = tmp_path_factory.mktemp('undisturbed') / 'run'
    child = subprocess.run(
        command(labelled_folder, workdir), env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert child.returncode == 0, child.stderr
    return workdir, child.stdout


def recorded_epochs(workdir, phase):
    try:
        with sqlite3.connect(f'file:{workdir}/results.sqlite?mode=ro', uri=True) as database:
            return database.execute('SELECT count(*) FROM epochs WHERE phase = ?', [phase]).fetchone()[0]
    except sqlite3.OperationalError:  # not there yet
        return 0


def interrupt(arguments, environment, workdir, phase, signum):
    """Starts a run, sends the signal once some epochs of the phase are recorded, returns status and output."""
    before = recorded_epochs(workdir, phase)
    child = subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 120
    while recorded_epochs(workdir, phase) < before + 3:
        assert child.poll() is None, child.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    child.send_signal(signum)
    output, _ = child.communicate(timeout=120)
    return child.returncode, output


def numbers(workdir):
    """All that a run computes, without the times that it took."""
    tables = {name: pd.read_csv(workdir / f'{name}.csv') for name in ('results', 'curves', 'predictions')}
    tables['results'] = tables['results'].drop(columns=['train_seconds', 'images_per_second'])
    tables['curves'] = tables['curves'].drop(columns='seconds')
    return tables


def test_a_run_killed_in_both_phases_ends_with_the_same_numbers(
    labelled_folder, environment, undisturbed, tmp_path
):
    arguments, workdir = command(labelled_folder, tmp_path / 'run'), tmp_path / 'run'
    status, _ = interrupt(arguments, environment, workdir, 'balanced', signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert recorded_epochs(workdir, 'balanced') < PHASES['balanced']
    status, _ = interrupt(arguments, environment, workdir, 'imbalanced', signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert recorded_epochs(workdir, 'imbalanced') < PHASES['imbalanced']
    status, output = interrupt(arguments, environment, workdir, 'imbalanced', signal.SIGTERM)
    assert status == 128 + signal.SIGTERM
    assert 'Stopped by SIGTERM after imbalanced epoch' in output
    assert 'To go on: python -m bhcnet_jax.main --config=base' in output
    subprocess.run(arguments, env=environment, stdout=subprocess.DEVNULL, timeout=120, check=True)
    expected = numbers(undisturbed[0])
    for name, table in numbers(workdir).items():
        pd.testing.assert_frame_equal(table, expected[name], check_exact=True)
    assert len(json.loads((workdir / 'env.json').read_text())) == 4


def test_ctrl_c_finishes_the_epoch_and_says_how_to_go_on(labelled_folder, environment, tmp_path):
    workdir = tmp_path / 'run'
    arguments = command(labelled_folder, workdir, '--config.engine.checkpoint_every=100')
    status, output = interrupt(arguments, environment, workdir, 'balanced', signal.SIGINT)
    assert status == 128 + signal.SIGINT
    assert 'SIGINT: finishing this epoch, then saving. Once more to stop at once.' in output
    assert 'Traceback' not in output
    # Though checkpoints were far apart, the last finished epoch is in one.
    saved = [int(path.name) for path in (workdir / 'checkpoints/balanced').iterdir() if path.name.isdigit()]
    assert saved == [recorded_epochs(workdir, 'balanced')]


def test_ctrl_c_while_the_data_are_prepared_is_one_line(environment, tmp_path):
    arguments = [sys.executable, '-c', PROGRAM, '--config=smoke', f'--workdir={tmp_path}/run']
    child = subprocess.Popen(
        [*arguments, '--config.dataset.name=phantom'], env={**environment, 'TFDS_DATA_DIR': str(tmp_path / 'tfds')},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (tmp_path / 'tfds').exists():  # the phantom takes seconds to draw
        assert child.poll() is None
        time.sleep(0.005)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 128 + signal.SIGINT
    assert 'Interrupted; finished epochs are saved. To go on: python -m bhcnet_jax.main' in errors
    assert 'Traceback' not in errors


def test_an_ignored_ctrl_c_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with train._stop_requests() as requests:
            os.kill(os.getpid(), signal.SIGINT)
        assert requests == []
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_leaves_everything_behind(undisturbed):
    workdir, output = undisturbed
    figures = {f'figures/{name}.png' for name in (
        'curves', 'confusion_matrix', 'image_sizes', 'grey_density', 'predictions', 'features')}  # fmt: skip
    files = {'config.json', 'env.json', 'data.json', 'results.sqlite', 'results.csv', 'curves.csv', 'predictions.csv'}
    assert {file for file in files | figures if not (workdir / file).is_file()} == set()
    assert (workdir / 'checkpoints/balanced/12').is_dir()
    assert (workdir / 'checkpoints/imbalanced/12').is_dir()
    assert not list(workdir.rglob('*.partial'))
    for text in ('confusion matrix', 'sensitivity', '95 % interval', 'parameters', 'Compiled in', '24/24'):
        assert text in output
    assert 'PHANTOM' not in output


def test_the_reported_metrics_are_those_of_the_stored_predictions(undisturbed):
    workdir, _ = undisturbed
    row = pd.read_csv(workdir / 'results.csv').iloc[0]
    predictions = pd.read_csv(workdir / 'predictions.csv', dtype={'image_id': str})
    data = json.loads((workdir / 'data.json').read_text())
    assert list(predictions.image_id) == data['test']  # every test image once
    called = predictions.probability >= 0.5
    assert row.accuracy == reference.accuracy_score(predictions.label, called)
    assert row.auc == pytest.approx(reference.roc_auc_score(predictions.label, predictions.probability))
    assert row.log_loss == pytest.approx(reference.log_loss(predictions.label, predictions.probability))
    assert row.tp + row.tn + row.fp + row.fn == row.n_test == len(predictions)
    curves = pd.read_csv(workdir / 'curves.csv')
    last = curves.iloc[-1]
    assert (last.phase, last.epoch, last.tp, last.tn) == ('imbalanced', 12, row.tp, row.tn)
    assert last.test_loss == pytest.approx(row.log_loss)
    assert row.images_per_second == pytest.approx(curves.images.sum() / curves.seconds.sum())


def test_tensorboard_has_every_epoch_once(undisturbed):
    workdir, _ = undisturbed
    (file,) = (workdir / 'tensorboard').rglob('events*')
    data, steps = file.read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], 'little')
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        steps += [event.step for value in event.summary.value if value.tag == 'test_loss']
        data = data[16 + length :]
    assert steps == list(range(1, 25))


def test_phase_two_starts_from_the_weights_and_class_weights_on_disk(labelled_folder, environment, undisturbed):
    from bhcnet_jax.checkpoint import Checkpoints  # after the flags of absl are parsed

    workdir, _ = undisturbed
    checkpoints = Checkpoints(workdir / 'checkpoints/balanced')
    like = checkpoints._manager.restore(12)
    assert set(like) == {'state', 'class_weights'}
    np.testing.assert_array_equal(like['class_weights'], [[1, 1]])  # 18 + 18 images
    checkpoints.close()
    checkpoints = Checkpoints(workdir / 'checkpoints/imbalanced')
    np.testing.assert_array_equal(checkpoints._manager.restore(12)['class_weights'], [[1, 1]])  # not of 18 + 30
    checkpoints.close()


def test_a_finished_run_is_shown_again_and_not_trained_again(labelled_folder, environment, undisturbed):
    workdir, output = undisturbed
    before = (workdir / 'results.csv').read_bytes()
    again = subprocess.run(
        command(labelled_folder, workdir), env=environment, capture_output=True, text=True, timeout=120, check=True
    ).stdout
    assert 'This run is finished' in again
    assert 'Compiled' not in again
    assert (workdir / 'results.csv').read_bytes() == before
    table = output[output.index('Test part: confusion matrix') :]
    assert table in again


def test_another_seed_in_the_same_directory_is_refused(labelled_folder, environment, undisturbed):
    child = subprocess.run(
        command(labelled_folder, undisturbed[0], '--config.seed=1'),
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert child.returncode == 2
    assert 'seed is 0 there, 1 here' in child.stderr
    assert child.stderr.count('\n') == 1


def test_a_run_on_the_phantom_says_so_in_everything_it_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    monkeypatch.delenv('HEAD_CT_DIR', raising=False)
    monkeypatch.chdir(tmp_path)
    config = small_config(phases=('balanced',), balanced__epochs=1, model__filters=(2, 3, 4), recipe='tiny')
    train.run(config)
    output = capsys.readouterr().out
    workdir = tmp_path / 'runs/tiny-PHANTOM'
    assert 'Data: PHANTOM' in output
    assert output.count('PHANTOM (synthetic images): ') == 2
    for name in ('config.json', 'data.json', 'results.csv', 'curves.csv', 'predictions.csv', 'results.sqlite'):
        assert b'PHANTOM' in (workdir / name).read_bytes(), name
    for figure in (workdir / 'figures').iterdir():
        assert b'PHANTOM: synthetic images' in figure.read_bytes(), figure
    assert b'PHANTOM' in next((workdir / 'tensorboard').rglob('events*')).read_bytes()
    metadata = [file.read_text() for file in (workdir / 'checkpoints/balanced/metadata').rglob('*') if file.is_file()]
    assert 'PHANTOM' in ''.join(metadata)


def test_training_that_diverges_says_when(labelled_folder, tmp_path, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    config = tiny_config(labelled_folder)
    config.model.dropout = 0.0
    monkeypatch.setattr('bhcnet_jax.optim.learning_rates', lambda *_: np.full((12, 3), np.inf, np.float32))
    with pytest.raises(train.Diverged, match='not finite after balanced epoch 1'):
        train.run(config, str(tmp_path / 'run'))
    with sqlite3.connect(tmp_path / 'run/results.sqlite') as database:
        assert database.execute('SELECT count(*) FROM epochs').fetchone() == (0,)


def test_more_folds_than_images_end_in_one_line(labelled_folder, tmp_path, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    config = tiny_config(labelled_folder)
    config.split.folds = 30
    with pytest.raises(train.ConfigError, match=r'split.folds is 30: a class has only'):
        train.run(config, str(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()


@pytest.mark.skipif('HEAD_CT_DIR' not in os.environ, reason='HEAD_CT_DIR is not set: no real images')
def test_the_real_images_train_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    config = small_config(balanced__epochs=1, imbalanced__epochs=1)
    train.run(config, str(tmp_path / 'run'))
    assert 'training part 90 normal + 90 hemorrhage, test part 10 + 10' in capsys.readouterr().out
    data = json.loads((tmp_path / 'run/data.json').read_text())
    assert data['dataset'] == 'head_ct'
    assert any({'188', '189'} <= set(group) for group in data['groups'])
    for group in data['groups']:
        assert set(group) <= set(data['train']) or set(group) <= set(data['test'])
