"""Sweeps that are killed at any moment, run out of disk, or find a run directory that they must not touch."""

import collections
import contextlib
import os
import signal
import sqlite3
import time

import numpy as np
import pandas as pd
import pytest

from runs import child_environment, flags, fork_server, numbers

EPOCHS = 8  # of each of two phases
SWEEP = ['--sweep=seed=0:3', *(f'--config.{phase}.epochs={EPOCHS}' for phase in ('balanced', 'imbalanced'))]
# Files that are there while a run is in the middle of something, and lie there after a kill.
TRACES = {
    'commit': 'results.sqlite-journal',
    'checkpoint': 'checkpoints/*/*/*.orbax-checkpoint-tmp*',
    'export': '*.csv.partial',
}
KILLS = 20


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    """Starts sweeps on two devices: two of the three trials train together, then the third."""
    folder = tmp_path_factory.mktemp('shared')
    with fork_server(child_environment(folder, devices=2), folder / 'output') as started:
        yield started


@pytest.fixture(scope='module')
def undisturbed(server, labelled_folder, tmp_path_factory):
    """The run directory of a sweep that nobody disturbed."""
    workdir = tmp_path_factory.mktemp('undisturbed') / 'run'
    status, output = server.run(flags(labelled_folder, workdir, *SWEEP))
    assert status == 0, output
    return workdir


def rows(workdir):
    """All that a finished sweep computes; the database must be sound and agree with what was exported."""
    tables = numbers(workdir)
    with contextlib.closing(sqlite3.connect(workdir / 'results.sqlite')) as database:
        assert database.execute('PRAGMA integrity_check').fetchall() == [('ok',)]
        assert database.execute('SELECT status, count(*) FROM trials GROUP BY status').fetchall() == [('DONE', 3)]
        counts = [database.execute(f'SELECT count(*) FROM {name}').fetchone()[0] for name in ('epochs', 'predictions')]
    assert counts == [len(tables['curves']), len(tables['predictions'])] == [3 * 2 * EPOCHS, 3 * 4]
    assert not tables['curves'].duplicated(['trial_id', 'phase', 'epoch']).any()
    return tables


def assert_same_rows(workdir, undisturbed):
    expected = rows(undisturbed)
    for name, table in rows(workdir).items():
        pd.testing.assert_frame_equal(table, expected[name], check_exact=True)


def traces(workdir, kind, since):
    """Whether a run that began then (Unix nanoseconds) is in the middle of something, or was when it died."""
    for path in workdir.glob(TRACES[kind]):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime_ns >= since:
                return True
    return False


def kill_during(kind, server, arguments, workdir, generator):
    """Starts a run and kills it. Returns the kind of moment that it died in, None if it came to its end before."""
    since, times, before = time.time_ns() - 10**7, generator.integers(1, 3), False  # clocks of files tick slowly
    child = server.start(arguments)
    if kind == 'start':
        time.sleep(generator.uniform(0, 1))
    while kind != 'start' and times and child.is_alive():  # the first or the second time
        now = traces(workdir, 'commit' if kind == 'epoch' else kind, since)
        times -= now and not before
        before = now
    if kind == 'epoch':
        time.sleep(generator.uniform(0, 0.15))
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGKILL)
    status, output = child.wait()
    if status == 0:
        return None
    assert status == -signal.SIGKILL, output
    found = [kind for kind in TRACES if traces(workdir, kind, since)]
    return found[0] if found else 'epoch' if 'Compiled' in output else 'start'


def test_a_sweep_killed_twenty_times_at_any_moment_ends_with_the_rows_of_an_undisturbed_one(
    server, labelled_folder, undisturbed, tmp_path
):
    workdir, generator = tmp_path / 'run', np.random.default_rng(0)
    arguments = flags(labelled_folder, workdir, *SWEEP)
    hits = collections.Counter()
    for kind in generator.permutation(['start', 'epoch', 'commit', 'checkpoint'] * 4):
        hits[kill_during(kind, server, arguments, workdir, generator)] += 1
    assert not hits[None], 'it was finished too early'
    for _ in range(2 * KILLS):
        if hits.total() - hits[None] < KILLS or not hits['export']:
            hits[kill_during('export', server, arguments, workdir, generator)] += 1
    print('Killed during', dict(hits))
    assert hits.keys() >= {'start', 'epoch', 'commit', 'checkpoint', 'export'}
    status, output = server.run(arguments)
    assert status == 0 and '3 trials: 3 DONE' in output
    assert_same_rows(workdir, undisturbed)
    assert not [path for pattern in TRACES.values() for path in workdir.glob(pattern)]
