"""One program of two real processes, and what happens to one when the other is killed."""

import contextlib
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time

import pandas as pd
import pytest

from bhcnet_jax.run import train
from lanes import small_config
from runs import xla_flags

EPOCHS = 12
ENDS_WITHIN = 60  # seconds after the other process; mostly far less, but the machine may be busy


def config_of(folder, spread):
    return small_config(
        recipe='tiny',
        dataset__name='folder',
        dataset__dir=str(folder),
        model__filters=(2, 3),
        augment__policy='none',
        phases=('balanced',),
        balanced__epochs=EPOCHS,
        engine__spread=spread,
    )


@pytest.fixture(scope='module')
def environment(tmp_path_factory):
    """Of processes with a device each; prepared data and programs are shared."""
    return {
        **os.environ,
        'XLA_FLAGS': xla_flags(devices=1),
        'TFDS_DATA_DIR': str(tmp_path_factory.mktemp('tfds')),
    }


def free_port():
    with socket.socket() as free:
        free.bind(('localhost', 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def two_processes(folder, environment, workdir, spread, sweep):
    """Starts them, and sees to it that none is left. -> leader, follower."""
    flags = [
        '--config=base', '--config.recipe=tiny', f'--workdir={workdir}', f'--config.engine.spread={spread}',
        '--config.dataset.name=folder', f'--config.dataset.dir={folder}', '--config.dataset.image_size=16',
        '--config.model.filters=(2,3)', '--config.model.recurrent_units=8', '--config.batch_size=8',
        '--config.augment.samples=20', '--config.augment.policy=none', '--config.engine.checkpoint_seconds=0',
        '--config.phases=("balanced",)', f'--config.balanced.epochs={EPOCHS}', f'--sweep={sweep}',
        '--distributed', f'--coordinator=localhost:{free_port()}', '--processes=2',
    ]  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, '-m', 'bhcnet_jax.main', *flags, f'--process={process}'],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for process in range(2)
    ]  # fmt: skip
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def recorded_epochs(workdir):
    try:
        with contextlib.closing(sqlite3.connect(f'file:{workdir}/results.sqlite?mode=ro', uri=True)) as database:
            return database.execute('SELECT count(DISTINCT epoch) FROM epochs').fetchone()[0]
    except sqlite3.OperationalError:  # not there yet
        return 0


def wait_for_epochs(count, workdir, processes):
    deadline = time.monotonic() + 120
    while recorded_epochs(workdir) < count:
        assert all(process.poll() is None for process in processes), [each.communicate() for each in processes]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def numbers(workdir):
    """All that a run computes, without the times that it took and the machine that it says."""
    tables = {name: pd.read_csv(workdir / f'{name}.csv') for name in ('results', 'curves', 'predictions')}
    tables['results'] = tables['results'].drop(columns=['train_seconds', 'images_per_second', 'hardware'])
    tables['curves'] = tables['curves'].drop(columns='seconds')
    return tables


@pytest.fixture
def in_one_process(labelled_folder, tmp_path, monkeypatch):
    """Trains to the end in this process, on two devices. -> what was computed."""
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))

    def run(workdir, spread, sweep):
        assert train.run(config_of(labelled_folder, spread), train.Options(workdir=str(workdir), sweep=sweep))
        return numbers(workdir)

    return run


def assert_equal(tables, others):
    for name, table in tables.items():  # another way to compute it: equal up to rounding
        pd.testing.assert_frame_equal(table, others[name], rtol=1e-5)


@pytest.mark.slow
def test_lanes_over_two_processes_survive_a_killed_leader_and_a_stop(
    labelled_folder, environment, tmp_path, in_one_process
):
    workdir, arguments = tmp_path / 'two', ('lanes', 'seed=0:2')
    with two_processes(labelled_folder, environment, workdir, *arguments) as (leader, follower):
        wait_for_epochs(3, workdir, (leader, follower))
        leader.kill()
        leader.wait()
        _, errors = follower.communicate(timeout=ENDS_WITHIN)
        assert follower.returncode != 0
        assert 'another one is gone' in errors or 'another task died' in errors  # JAX may be faster, in its words
        assert 'Traceback' not in errors
    done = recorded_epochs(workdir)
    with two_processes(labelled_folder, environment, workdir, *arguments) as (leader, follower):
        wait_for_epochs(done + 2, workdir, (leader, follower))
        for process in (follower, leader):  # as Slurm does
            process.terminate()
        output, _ = leader.communicate(timeout=ENDS_WITHIN)
        assert leader.returncode == 128 + signal.SIGTERM
        assert 'Stopped by SIGTERM after balanced epoch' in output
        trained, epoch = map(int, re.search(rf'(\d+)/{2 * EPOCHS} epochs  balanced epoch (\d+) ', output).groups())
        # The last recorded epoch may be in no checkpoint yet, and that of the one before may not have been written out.
        assert trained == 2 * epoch and epoch in (done - 1, done, done + 1)
        assert follower.wait(ENDS_WITHIN) == 0
    assert done + 2 <= recorded_epochs(workdir) < EPOCHS
    # The same directory goes on in one process; its first rows are those of two.
    assert_equal(in_one_process(workdir, *arguments), in_one_process(tmp_path / 'one', *arguments))


@pytest.mark.slow
def test_a_batch_over_two_processes_survives_a_lost_follower(labelled_folder, environment, tmp_path, in_one_process):
    workdir, arguments = tmp_path / 'two', ('batch', 'seed=0:1')
    with two_processes(labelled_folder, environment, workdir, *arguments) as (leader, follower):
        wait_for_epochs(3, workdir, (leader, follower))
        follower.kill()
        _, errors = leader.communicate(timeout=ENDS_WITHIN)
        assert leader.returncode == 1
        assert 'error: process 0 of 2 ends, since another one is gone (' in errors
        assert ' What is in a checkpoint is saved. To go on: ' in errors
        assert 'Traceback' not in errors
    assert 3 <= recorded_epochs(workdir) < EPOCHS
    with two_processes(labelled_folder, environment, workdir, *arguments) as (leader, follower):
        _, errors = leader.communicate(timeout=120)
        assert leader.returncode == 0, errors
        assert follower.wait(ENDS_WITHIN) == 0
    assert_equal(numbers(workdir), in_one_process(tmp_path / 'one', *arguments))


# What process 0 tells in several pieces, and an error that only process 1 has; each process prints what it got.
TALK = """
import sys
import numpy as np
from bhcnet_jax.training import hosts
hosts.join('localhost:' + sys.argv[1], 2, int(sys.argv[2]))
hosts.PIECE, message = 1000, {'texts': ['a', ''], 'images': np.arange(1303, dtype=np.float64).reshape(1, 1303)}
hosts.tell(message)
heard = message if sys.argv[2] == '0' else hosts.listen()
print(heard['texts'], heard['images'].dtype, heard['images'].shape, heard['images'].sum())
try:
    with hosts.together():
        if sys.argv[2] == '1':
            raise ValueError('RESOURCE_EXHAUSTED: by one')
except Exception as error:
    print(type(error).__name__, error)
with hosts.together():
    print('goes on')
"""


def test_all_processes_hear_the_same_and_fail_together(environment):
    port = str(free_port())
    processes = [
        subprocess.Popen([sys.executable, '-c', TALK, port, each], env=environment, stdout=subprocess.PIPE, text=True)
        for each in '01'
    ]
    try:
        outputs = [process.communicate(timeout=120)[0].splitlines()[-3:] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    heard = f"['a', ''] float64 (1, 1303) {1302 * 1303 / 2}"
    assert outputs[0] == [heard, 'JaxRuntimeError process 1: ValueError: RESOURCE_EXHAUSTED: by one', 'goes on']
    assert outputs[1] == [heard, 'ValueError RESOURCE_EXHAUSTED: by one', 'goes on']


def test_a_program_of_several_processes_that_nobody_describes_is_refused_in_one_line(environment):
    child = subprocess.run(
        [sys.executable, '-m', 'bhcnet_jax.main', '--config=smoke', '--distributed'],
        env={name: value for name, value in environment.items() if not name.startswith(('SLURM_', 'OMPI_'))},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert child.returncode == 2
    assert child.stderr.count('\n') == 1, child.stderr
    assert 'Without Slurm say --coordinator, --processes and --process.' in child.stderr
