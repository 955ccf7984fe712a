"""Whole runs, most of them as real processes that really get killed."""

import contextlib
import json
import os
import pathlib
import re
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

from bhcnet_jax.display import summary
from bhcnet_jax.errors import UserError
from bhcnet_jax.plan import phases
from bhcnet_jax.records.database import Results
from bhcnet_jax.run import lane_batch, train
from bhcnet_jax.run.checkpoints import Checkpoints
from bhcnet_jax.run.train import Options
from bhcnet_jax.training import optim
from bhcnet_jax.training.engine import Engine
from lanes import small_config
from runs import PHASES, child_environment, flags, fork_server, numbers, recorded_epochs


def tiny_config(folder):
    config = small_config(
        dataset__name='folder',
        dataset__dir=str(folder),
        imbalanced__positives=30,
        model__filters=(2, 3),
        recipe='tiny',
        **{f'{phase}__epochs': epochs for phase, epochs in PHASES.items()},
    )
    return config


@pytest.fixture(scope='module')
def environment(tmp_path_factory):
    """Of child processes: one device, as on a user's machine; prepared data and programs are shared."""
    return child_environment(tmp_path_factory.mktemp('shared'))


@pytest.fixture(scope='module')
def server(environment, tmp_path_factory):
    """Starts runs as processes of their own."""
    with fork_server(environment, tmp_path_factory.mktemp('server') / 'output') as started:
        yield started


@pytest.fixture(scope='module')
def undisturbed(labelled_folder, server, tmp_path_factory):
    """A finished run and what it printed."""
    workdir = tmp_path_factory.mktemp('undisturbed') / 'run'
    status, output = server.run(flags(labelled_folder, workdir))
    assert status == 0, output
    return workdir, output


def interrupt(server, arguments, workdir, phase, signum):
    """Starts a run, sends the signal once some epochs of the phase are recorded, returns status and output."""
    before = recorded_epochs(workdir, phase)
    child = server.start(arguments)
    while recorded_epochs(workdir, phase) < before + 3:
        assert child.is_alive(), child.wait()
        time.sleep(0.005)
    os.kill(child.pid, signum)
    return child.wait()


@pytest.mark.slow
def test_a_run_killed_in_both_phases_ends_with_the_same_numbers(labelled_folder, server, undisturbed, tmp_path):
    arguments, workdir = flags(labelled_folder, tmp_path / 'run'), tmp_path / 'run'
    status, _ = interrupt(server, arguments, workdir, 'balanced', signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert recorded_epochs(workdir, 'balanced') < PHASES['balanced']
    status, _ = interrupt(server, arguments, workdir, 'imbalanced', signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert recorded_epochs(workdir, 'imbalanced') < PHASES['imbalanced']
    status, output = interrupt(server, arguments, workdir, 'imbalanced', signal.SIGTERM)
    assert status == 128 + signal.SIGTERM
    assert 'Stopped by SIGTERM after imbalanced epoch' in output
    assert 'To go on: python -m bhcnet_jax.main --config=base' in output
    stopped_after = PHASES['balanced'] + recorded_epochs(workdir, 'imbalanced')
    status, output = server.run(arguments)
    assert status == 0, output
    assert f'Going on: {stopped_after} of 24 epochs are saved.' in output
    assert output.index('Compiling for') < output.index('Compiled in')
    first_epoch = next(line for line in output.splitlines() if line.endswith('images/s'))
    assert first_epoch.startswith(f'{stopped_after + 1}/24')  # nothing was trained twice
    expected = numbers(undisturbed[0])
    for name, table in numbers(workdir).items():
        pd.testing.assert_frame_equal(table, expected[name], check_exact=True)
    assert len(json.loads((workdir / 'env.json').read_text())) == 4


@pytest.mark.slow
def test_ctrl_c_finishes_the_epoch_and_says_how_to_go_on(labelled_folder, server, tmp_path):
    workdir = tmp_path / 'run'
    longer = ('--config.engine.checkpoint_seconds=1000', '--config.balanced.epochs=20000')
    arguments = flags(labelled_folder, workdir, *longer)
    status, output = interrupt(server, arguments, workdir, 'balanced', signal.SIGINT)
    assert status == 128 + signal.SIGINT
    assert 'SIGINT: finishing this epoch, then saving. Once more to stop at once.' in output
    assert 'Traceback' not in output
    # Though checkpoints were far apart, the last finished epoch is in one.
    saved = [int(path.name) for path in (workdir / 'checkpoints').glob('*/balanced/*') if path.name.isdigit()]
    assert saved == [recorded_epochs(workdir, 'balanced')]


def test_ctrl_c_while_the_data_are_prepared_is_one_line(server, environment, tmp_path):
    child = server.start(['--config=smoke', f'--workdir={tmp_path}/run', '--config.dataset.name=phantom'])
    while not list(pathlib.Path(environment['TFDS_DATA_DIR']).glob('*phantom*')):  # it takes seconds to draw
        assert child.is_alive(), child.wait()
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGINT)
    status, output = child.wait()
    assert status == 128 + signal.SIGINT
    assert 'Interrupted; what is in a checkpoint is saved. To go on: python -m bhcnet_jax.main' in output
    assert 'Traceback' not in output


def test_an_ignored_ctrl_c_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with lane_batch.stop_requests() as requests:
            os.kill(os.getpid(), signal.SIGINT)
        assert requests == []
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_a_pytorch_that_imports_slowly_disturbs_nothing(labelled_folder, environment, tmp_path):
    # The writer of TensorBoard imports it, and SciPy fails where it is half imported.
    (tmp_path / 'torch.py').write_text('import time\ntime.sleep(5)\nclass Tensor: pass\n')
    command = [sys.executable, '-m', 'bhcnet_jax.main', *flags(labelled_folder, tmp_path / 'run')]
    ended = subprocess.run(command, env={**environment, 'PYTHONPATH': str(tmp_path)}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert 'Traceback' not in ended.stderr


def test_a_run_leaves_everything_behind(undisturbed):
    workdir, output = undisturbed
    figures = {f'figures/{name}.png' for name in (
        'curves', 'confusion_matrix', 'image_sizes', 'grey_density', 'predictions', 'features')}  # fmt: skip
    files = {'config.json', 'env.json', 'data.json', 'results.sqlite', 'results.csv', 'curves.csv', 'predictions.csv'}
    assert {file for file in files | figures if not (workdir / file).is_file()} == set()
    assert len(list((workdir / 'checkpoints').glob('*/balanced/12'))) == 1
    assert len(list((workdir / 'checkpoints').glob('*/imbalanced/12'))) == 1
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


def test_phase_two_starts_from_the_weights_and_class_weights_on_disk(undisturbed):
    workdir, _ = undisturbed
    saved = {}
    for phase in ('balanced', 'imbalanced'):
        (directory,) = (workdir / 'checkpoints').glob(f'*/{phase}')
        checkpoints = Checkpoints(directory, 'a')
        saved[phase] = checkpoints._manager.restore(12)
        checkpoints.close()
    assert set(saved['balanced']) == {'state', 'class_weights'}
    np.testing.assert_array_equal(saved['balanced']['class_weights'], [[1, 1]])  # 18 + 18 images
    np.testing.assert_array_equal(saved['imbalanced']['class_weights'], [[1, 1]])  # not those of 18 + 30


def test_a_finished_run_is_shown_again_and_not_trained_again(labelled_folder, server, undisturbed):
    workdir, output = undisturbed
    before = (workdir / 'results.csv').read_bytes()
    status, again = server.run(flags(labelled_folder, workdir))
    assert status == 0
    assert 'This run is finished' in again
    assert 'Compiled' not in again
    assert (workdir / 'results.csv').read_bytes() == before
    table = output[output.index('Test part: confusion matrix') :]
    assert table in again


def test_another_seed_in_the_same_directory_is_refused(labelled_folder, server, undisturbed):
    status, output = server.run(flags(labelled_folder, undisturbed[0], '--config.seed=1'))
    assert status == 2
    assert 'seed is 0 there, 1 here' in output
    assert output.count('\n') == 1


@pytest.mark.slow
def test_a_run_on_the_phantom_says_so_in_everything_it_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    monkeypatch.delenv('HEAD_CT_DIR', raising=False)
    monkeypatch.chdir(tmp_path)
    config = small_config(phases=('balanced',), balanced__epochs=1, model__filters=(2, 3), recipe='tiny')
    train.run(config, Options())
    output = capsys.readouterr().out
    workdir = tmp_path / 'runs/tiny-PHANTOM'
    assert 'Data: PHANTOM' in output
    assert output.count('PHANTOM (synthetic images): ') == 2
    for name in ('config.json', 'data.json', 'results.csv', 'curves.csv', 'predictions.csv', 'results.sqlite'):
        assert b'PHANTOM' in (workdir / name).read_bytes(), name
    for figure in (workdir / 'figures').iterdir():
        assert b'PHANTOM: synthetic images' in figure.read_bytes(), figure
    assert b'PHANTOM' in next((workdir / 'tensorboard').rglob('events*')).read_bytes()
    metadata = [file.read_text() for file in (workdir / 'checkpoints').glob('*/balanced/metadata/*')]
    assert 'PHANTOM' in ''.join(metadata)


@pytest.mark.parametrize(('seconds', 'saves'), [(0.0, 24), (1e6, 2)])
@pytest.mark.slow
def test_checkpoints_and_transactions_come_by_time_and_lose_no_epoch(
    labelled_folder, tmp_path, monkeypatch, seconds, saves
):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    monkeypatch.setattr(lane_batch, 'COMMIT_SECONDS', 1e6)
    calls = {Checkpoints.save: 0, Results.record_epoch: 0}
    for function in list(calls):

        def counted(*arguments, function=function):
            calls[function] += 1
            return function(*arguments)

        monkeypatch.setattr({Checkpoints.save: Checkpoints}.get(function, Results), function.__name__, counted)
    config = tiny_config(labelled_folder)
    config.engine.checkpoint_seconds = seconds
    assert train.run(config, Options(workdir=str(tmp_path / 'run')))
    assert list(calls.values()) == [saves, saves]
    with contextlib.closing(sqlite3.connect(tmp_path / 'run/results.sqlite')) as database:
        rows = database.execute('SELECT phase, epoch FROM epochs ORDER BY rowid').fetchall()
    assert rows == [(phase, epoch) for phase, count in PHASES.items() for epoch in range(1, count + 1)]
    found = [int(path.name) for path in (tmp_path / 'run/checkpoints').glob('*/*/*') if path.name.isdigit()]
    assert sorted(found) == ([11, 11, 12, 12] if seconds == 0 else [12, 12])


@pytest.mark.slow
def test_the_result_is_told_before_figures_are_drawn_and_again_by_the_next_start(
    labelled_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    config, workdir, told = tiny_config(labelled_folder), tmp_path / 'run', []
    draw = summary.draw

    def interrupted(*arguments):
        told.append(capsys.readouterr().out)
        raise KeyboardInterrupt

    monkeypatch.setattr(summary, 'draw', interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.run(config, Options(workdir=str(workdir)))
    monkeypatch.setattr(summary, 'draw', draw)
    assert train.run(config, Options(workdir=str(workdir)))
    told.append(capsys.readouterr().out)
    for output in told:
        assert output.count('Test part: confusion matrix') == output.count('Trained in') == 1
    assert 'Compiling' in told[0] and 'Compiling' not in told[1]  # nothing is trained again
    assert (workdir / 'figures/features.png').exists()
    assert train.run(config, Options(workdir=str(workdir)))
    assert capsys.readouterr().out.count('Test part: confusion matrix') == 1


def test_training_that_diverges_says_when(labelled_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    config = tiny_config(labelled_folder)
    config.model.dropout = 0.0
    monkeypatch.setattr('bhcnet_jax.training.optim.learning_rates', lambda *_: np.full((12, 3), np.inf, np.float32))
    assert not train.run(config, Options(workdir=str(tmp_path / 'run')))
    assert 'DIVERGED: its loss is not finite after balanced epoch 1' in capsys.readouterr().out
    with contextlib.closing(sqlite3.connect(tmp_path / 'run/results.sqlite')) as database:
        assert database.execute('SELECT count(*) FROM epochs').fetchone() == (0,)
        row = database.execute('SELECT status, diverged_phase, diverged_epoch FROM trials').fetchone()
    assert row == ('DIVERGED', 'balanced', 1)


@pytest.mark.slow
def test_fresh_augmentation_trains_on_every_training_image(labelled_folder, tmp_path, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    used, epoch = [], Engine.epoch

    def noted(engine, states, lanes):
        used.append(np.array(lanes.sources[0]))
        return epoch(engine, states, lanes)

    monkeypatch.setattr(Engine, 'epoch', noted)
    config = tiny_config(labelled_folder)
    config.phases, config.balanced.epochs, config.augment.frozen = ('balanced',), 2, False
    assert train.run(config, Options(workdir=str(tmp_path / 'run')))
    assert [len(sources) for sources in used] == [20, 20]
    assert len(set(np.concatenate(used))) == 36  # of 40 images 4 are for testing


def test_more_folds_than_images_end_in_one_line(labelled_folder, tmp_path, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    config = tiny_config(labelled_folder)
    config.split.folds = 30
    with pytest.raises(UserError, match=r'split.folds is 30: class 1 has only 18 groups of images'):
        train.run(config, Options(workdir=str(tmp_path / 'run')))
    assert not (tmp_path / 'run').exists()


def test_a_call_that_failed_leaves_its_directory_to_the_corrected_one(labelled_folder, tmp_path, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    config, options = tiny_config(labelled_folder), Options(workdir=str(tmp_path / 'run'))
    config.phases = ('balanced',)
    config.balanced.epochs = 1
    config.imbalanced.positives = 5
    config.phases = ('imbalanced',)
    config.imbalanced.class_weights = 'computed'
    with pytest.raises(UserError, match='positives'):
        train.run(config, options)
    config.imbalanced.positives, config.imbalanced.epochs = 30, 1
    assert train.run(config, options)


def test_more_phases_go_on_from_trials_of_a_call_that_had_fewer(labelled_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    config = tiny_config(labelled_folder)
    config.augment.policy = 'none'
    config.balanced.epochs = config.imbalanced.epochs = 1
    first = config.copy_and_resolve_references()
    first.phases = ('balanced',)
    run = Options(workdir=str(tmp_path / 'run'), sweep='seed=0:3', estimate=False)
    assert train.run(first, run)
    both = run._replace(sweep="phases=('balanced',),('balanced','imbalanced') seed=0:3")
    for options in (both._replace(dry_run=True), both):
        capsys.readouterr()
        assert train.run(config, options)
        assert 'Trials: 3 finished, 3 new' in capsys.readouterr().out
    for options in (run._replace(sweep='', dry_run=True), run._replace(sweep='')):
        config.optimizer.peak_lr = 0.1
        with pytest.raises(UserError, match=r'optimizer.peak_lr is'):
            train.run(config, options)


@pytest.fixture
def sweep_of(labelled_folder, environment, tmp_path, monkeypatch, capsys):
    """Runs a sweep in this process, on two devices. -> whether it went well, rows by trial, what it printed."""
    monkeypatch.setenv('TFDS_DATA_DIR', environment['TFDS_DATA_DIR'])
    config = tiny_config(labelled_folder)
    config.augment.policy = 'none'
    config.balanced.epochs = config.imbalanced.epochs = 1

    def run(axes, **options):
        well = train.run(config, Options(workdir=str(tmp_path / 'run'), sweep=axes, **options))
        if not (tmp_path / 'run').exists():
            return well, None, capsys.readouterr().out
        with contextlib.closing(sqlite3.connect(tmp_path / 'run/results.sqlite')) as database:
            rows = pd.read_sql_query('SELECT * FROM trials', database)
        return well, rows, capsys.readouterr().out

    return run


def test_a_sweep_over_traced_values_compiles_once(sweep_of):
    well, rows, output = sweep_of('seed=0:2 optimizer.peak_lr=1e-3,1e-4 model.dropout=0,0.5 balanced.epochs=1,2')
    assert well
    assert list(rows.status) == ['DONE'] * 16
    assert output.count('Compiled in') == 1


@pytest.mark.slow
def test_a_dry_run_says_what_would_be_trained_and_trains_nothing(sweep_of):
    _, rows, output = sweep_of('seed=0:2 model.name=cnn,cnn_gru', dry_run=True, estimate=False)
    assert '4 trials, 4 of them still to train, with 2 programs to compile' in output
    assert rows is None  # not even a directory
    _, before, _ = sweep_of('seed=0:1')
    _, rows, output = sweep_of('seed=0:3', dry_run=True)
    assert 'Trials: 1 finished, 2 new' in output
    hours, megabytes = re.search(r'about ([0-9:]+) of training with compilation, ([0-9.]+) MB', output).groups()
    assert hours.startswith('0:') and 0 < float(megabytes) < 1
    _, rows, output = sweep_of('seed=0:2', dry_run=True, rerun='all', estimate=False)
    assert '2 trials, 2 of them still to train' in output
    pd.testing.assert_frame_equal(rows, before)


def test_a_diverging_trial_does_not_take_its_neighbour_with_it(sweep_of, monkeypatch):
    rates = optim.learning_rates
    broken = [True]

    def some_infinite(config, *shape):
        return rates(config, *shape) * (np.inf if broken[0] and config.peak_lr > 1 else 1)

    monkeypatch.setattr('bhcnet_jax.training.optim.learning_rates', some_infinite)
    axes = 'optimizer.peak_lr=1e-3,2'
    well, rows, output = sweep_of(axes)
    assert not well
    assert sorted(rows.status) == ['DIVERGED', 'DONE']
    assert '1 DONE' in output and '1 DIVERGED' in output
    expected = rows[rows.status == 'DONE'].log_loss.item()
    well, rows, output = sweep_of(axes)  # nothing is missing, and what ended badly still counts
    assert not well and 'Compiled' not in output
    broken[0] = False
    well, rows, _ = sweep_of(axes, rerun='diverged')
    assert well and list(rows.status) == ['DONE'] * 2
    assert expected in list(rows.log_loss)


def test_failing_lanes_are_recorded_with_their_traceback_and_the_next_go_on(sweep_of, monkeypatch):
    begin = phases.begin

    def failing(config, *rest):
        if config.batch_size == 4:
            raise RuntimeError('out of paper')
        return begin(config, *rest)

    monkeypatch.setattr('bhcnet_jax.plan.phases.begin', failing)
    well, rows, output = sweep_of('batch_size=4,8')
    assert not well
    assert sorted(rows.status) == ['DONE', 'FAILED']
    error = rows[rows.status == 'FAILED'].error.item()
    assert 'Traceback' in error and 'out of paper' in error
    assert 'FAILED: RuntimeError: out of paper' in output
    monkeypatch.setattr('bhcnet_jax.plan.phases.begin', begin)
    well, rows, _ = sweep_of('batch_size=4,8', rerun='failed')
    assert well and list(rows.status) == ['DONE'] * 2


def test_fail_fast_stops_at_the_first_failure(sweep_of, monkeypatch):
    monkeypatch.setattr('bhcnet_jax.plan.phases.begin', None)  # not callable: every trial fails in its second phase
    well, rows, _ = sweep_of('batch_size=4,8', fail_fast=True)
    assert not well
    assert list(rows.status) == ['FAILED']


def test_an_axis_that_changes_nothing_is_refused(sweep_of):
    with pytest.raises(UserError, match='2 points, but only 1 different trials'):
        sweep_of('augment.distort.noise=0,0.1')  # of another policy than the one in use


@pytest.mark.parametrize('axes', ['', 'seed=0:2'])
def test_a_run_leaves_its_config_as_it_was(axes, labelled_folder, environment, tmp_path, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', environment['TFDS_DATA_DIR'])
    config = tiny_config(labelled_folder)
    before = config.to_dict()
    train.run(config, Options(workdir=str(tmp_path / 'run'), sweep=axes, dry_run=True, estimate=False))
    assert config.to_dict() == before


def test_an_unknown_rerun_is_refused(sweep_of):
    with pytest.raises(UserError, match=r'--rerun=xyz: no trial here .* expected failed, diverged or all'):
        sweep_of('seed=0:2', rerun='xyz')


def test_weights_are_dropped_when_asked(labelled_folder, tmp_path, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    config = tiny_config(labelled_folder)
    config.phases, config.balanced.epochs, config.engine.keep_weights = ('balanced',), 1, 'none'
    assert train.run(config, Options(workdir=str(tmp_path / 'run')))
    assert list((tmp_path / 'run/checkpoints').iterdir()) == []
    assert train.run(config, Options(workdir=str(tmp_path / 'run')))  # its row is enough to call it finished


@pytest.mark.skipif('HEAD_CT_DIR' not in os.environ, reason='HEAD_CT_DIR is not set: no real images')
@pytest.mark.slow
def test_the_real_images_train_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    config = small_config(balanced__epochs=1, imbalanced__epochs=1)
    train.run(config, Options(workdir=str(tmp_path / 'run')))
    assert 'Training part 90 normal + 90 hemorrhage, test part 10 + 10' in capsys.readouterr().out
    data = json.loads((tmp_path / 'run/data.json').read_text())
    assert data['dataset'] == 'head_ct'
    assert any({'188', '189'} <= set(group) for group in data['groups'])
    for group in data['groups']:
        assert set(group) <= set(data['train']) or set(group) <= set(data['test'])
