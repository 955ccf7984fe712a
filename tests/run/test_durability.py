"""Sweeps that are killed at any moment, run out of disk, or find a run directory that they must not touch."""

import collections
import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import time

import numpy as np
import pandas as pd
import pytest

from runs import child_environment, flags, fork_server, numbers, recorded_epochs

EPOCHS = 8  # of each of two phases
SWEEP = [
    '--sweep=seed=0:3', '--config.augment.policy=none',
    *(f'--config.{phase}.epochs={EPOCHS}' for phase in ('balanced', 'imbalanced')),
]  # fmt: skip
# Files that are there while a run is in the middle of something, and lie there after a kill.
TRACES = {
    'commit': 'results.sqlite-journal',
    'checkpoint': 'checkpoints/*/*/*.orbax-checkpoint-tmp*',
    'export': '*.csv.partial',
}
MOMENTS = ['start', 'epoch', 'commit', 'checkpoint']  # to kill a run at, beside the export


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
    with contextlib.suppress(FileNotFoundError):  # a folder may go while it is listed
        for path in workdir.glob(TRACES[kind]):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime_ns >= since:
                    return True
    return False


def kill_during(kind, server, arguments, workdir, generator):
    """Starts a run and kills it. Returns the kind of moment that it died in, None if it came to its end before."""
    since, before = time.time_ns() - 10**7, False  # clocks of files tick slowly
    # Which sighting it dies at. The first three commits of a start are of no epoch: opening, entering, claiming.
    times = generator.integers(*{'commit': (1, 9), 'epoch': (4, 6)}.get(kind, (1, 3)))
    child = server.start(arguments)
    if kind == 'start':
        time.sleep(generator.uniform(0, 1))
    while kind != 'start' and times and child.is_alive():
        now = traces(workdir, 'commit' if kind == 'epoch' else kind, since)
        times -= now and not before
        before = now
    if kind == 'epoch':
        time.sleep(generator.uniform(0, 0.15))
        while child.is_alive() and any(traces(workdir, other, since) for other in TRACES):
            pass
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGKILL)
    status, output = child.wait()
    if status == 0:
        return None
    assert status == -signal.SIGKILL, output
    found = [each for each in TRACES if traces(workdir, each, since)]
    if kind in found:  # a checkpoint is written beside the epochs and commits that follow
        return kind
    return found[0] if found else 'epoch' if 'Compiled' in output else 'start'


def kill(kinds, server, arguments, workdir, generator, exports):
    """A kill for each kind of moment, then during the export. -> how often each was hit, None for not at all."""
    hits = collections.Counter()
    for kind in generator.permutation(kinds):
        hits[kill_during(kind, server, arguments, workdir, generator)] += 1
    assert not hits[None], 'it was finished too early'
    for _ in range(2 * (len(kinds) + exports)):
        if hits.total() - hits[None] < len(kinds) + exports or not hits['export']:
            hits[kill_during('export', server, arguments, workdir, generator)] += 1
    print('Killed during', dict(hits))
    return hits


def assert_goes_on(server, arguments, workdir, undisturbed):
    status, output = server.run(arguments)
    assert status == 0 and '3 trials: 3 DONE' in output
    assert_same_rows(workdir, undisturbed)
    assert not [path for pattern in TRACES.values() for path in workdir.glob(pattern)]


@pytest.mark.slow
def test_a_sweep_killed_five_times_ends_with_the_rows_of_an_undisturbed_one(
    server, labelled_folder, undisturbed, tmp_path
):
    arguments = flags(labelled_folder, tmp_path / 'run', *SWEEP)
    hits = kill(MOMENTS, server, arguments, tmp_path / 'run', np.random.default_rng(0), exports=1)
    assert hits.total() - hits[None] >= 5
    assert_goes_on(server, arguments, tmp_path / 'run', undisturbed)


@pytest.mark.slow
def test_a_sweep_killed_twenty_times_at_any_moment_ends_with_the_rows_of_an_undisturbed_one(
    server, labelled_folder, undisturbed, tmp_path
):
    arguments = flags(labelled_folder, tmp_path / 'run', *SWEEP)
    hits = kill(MOMENTS * 4, server, arguments, tmp_path / 'run', np.random.default_rng(0), exports=4)
    assert hits.keys() >= {*MOMENTS, 'export'}
    assert_goes_on(server, arguments, tmp_path / 'run', undisturbed)


@pytest.mark.parametrize(
    'epoch',
    [EPOCHS + 2, *(pytest.param(epoch, marks=pytest.mark.slow) for epoch in (1, EPOCHS - 1, 2 * EPOCHS + 1))],
)
@pytest.mark.slow
def test_with_an_older_database_restored_a_sweep_ends_with_the_rows_of_an_undisturbed_one(
    server, labelled_folder, undisturbed, tmp_path, epoch
):
    arguments, workdir = flags(labelled_folder, tmp_path / 'run', *SWEEP), tmp_path / 'run'
    child = server.start(arguments)
    # Of two trials that train together. A checkpoint is whole once the next but one has begun to be written.
    for epochs in (2 * epoch, 2 * epoch + 8):
        while recorded_epochs(workdir) < epochs and child.is_alive():
            time.sleep(0.001)
        if not (tmp_path / 'copy').exists():
            files = (workdir / 'results.sqlite', tmp_path / 'copy')
            with contextlib.ExitStack() as opened:
                database, copy = (opened.enter_context(contextlib.closing(sqlite3.connect(file))) for file in files)
                database.backup(copy)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    (workdir / 'results.sqlite-journal').unlink(missing_ok=True)
    shutil.copy(tmp_path / 'copy', workdir / 'results.sqlite')
    status, output = server.run(arguments)
    assert status == 0, output
    assert 'it is older than they are' in output
    assert_same_rows(workdir, undisturbed)


def change_a_finished_trial(workdir):
    with contextlib.closing(sqlite3.connect(workdir / 'results.sqlite')) as database, database:
        database.execute('UPDATE trials SET accuracy = 0.123 WHERE seed = 0')


@pytest.mark.slow
def test_a_finished_trial_that_was_changed_is_trained_again(server, labelled_folder, undisturbed, tmp_path):
    workdir = shutil.copytree(undisturbed, tmp_path / 'run')
    change_a_finished_trial(workdir)
    status, output = server.run(flags(labelled_folder, workdir, *SWEEP, '--dry_run', '--noestimate'))
    assert status == 0 and '3 trials, 1 of them still to train' in output
    status, output = server.run(flags(labelled_folder, workdir, *SWEEP))
    assert status == 0 and 'is not as it was written; it is trained again.' in output, output
    found, expected = rows(workdir), rows(undisturbed)
    for name in expected:
        keys = [key for key in ('trial_id', 'phase', 'epoch', 'image_id') if key in expected[name]]
        ordered = [tables[name].sort_values(keys, ignore_index=True) for tables in (found, expected)]
        pd.testing.assert_frame_equal(*ordered, check_exact=True)


def test_a_finished_trial_that_was_changed_and_is_not_asked_for_is_in_no_export(
    server, labelled_folder, undisturbed, tmp_path
):
    workdir = shutil.copytree(undisturbed, tmp_path / 'run')
    change_a_finished_trial(workdir)
    status, output = server.run(flags(labelled_folder, workdir, *SWEEP, '--sweep=seed=1:3'))
    assert status == 0 and 'is not as it was written; it is left out of the csv files.' in output, output
    for name, table in numbers(workdir).items():
        expected = numbers(undisturbed)[name]
        (changed,) = numbers(undisturbed)['results'].query('seed == 0').trial_id
        assert set(table.trial_id) == set(expected.trial_id) - {changed}


@pytest.fixture
def disk(tmp_path):
    """A file system of 4 MiB."""
    path = tmp_path / 'disk'
    path.mkdir()
    mount = subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', path], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f'no file system of its own for this test: {mount.stderr.strip()}')
    yield path
    subprocess.run(['umount', path], check=True)


@pytest.mark.slow
def test_a_sweep_without_inodes_stops_with_a_line_and_goes_on_once_there_are_some(
    server, labelled_folder, undisturbed, disk
):
    workdir = disk / 'run'
    arguments = flags(labelled_folder, workdir, *SWEEP)
    for inodes in (9, 40, 110):  # enough for nothing; for all but a checkpoint; for some checkpoints
        subprocess.run(['mount', '-o', f'remount,nr_inodes={inodes}', disk], check=True)
        status, output = server.run(arguments)
        assert_stopped_in_a_line(status, output, 'unable to open database file', 'df -i', 'No space left on device')
        assert 'Traceback' not in output
    assert recorded_epochs(workdir) > 2
    subprocess.run(['mount', '-o', 'remount,nr_inodes=10000', disk], check=True)
    status, output = server.run(arguments)
    assert status == 0, output
    assert_same_rows(workdir, undisturbed)


@pytest.mark.parametrize('epochs', [0, 1, 5, 2 * EPOCHS])
def test_a_run_whose_directory_is_deleted_stops_with_a_line_and_can_be_started_again(
    server, labelled_folder, tmp_path, epochs
):
    workdir, arguments = tmp_path / 'run', flags(labelled_folder, tmp_path / 'run', *SWEEP)
    child = server.start(arguments)
    while not (workdir / 'data.json').exists() or recorded_epochs(workdir) < epochs:
        assert child.is_alive()
        time.sleep(0.002)
    shutil.rmtree(workdir, ignore_errors=True)  # in which the run may make another folder
    status, output = child.wait()
    assert_stopped_in_a_line(status, output, f'{workdir} was deleted while this process wrote to it. Start again.')
    assert 'Traceback' not in output
    assert not workdir.exists()


def fill(path, but=0):
    """Fills the disk of a file, but for some bytes."""
    left = shutil.disk_usage(path.parent).free - but
    with contextlib.suppress(OSError), path.open('ab', buffering=0) as file:  # the run takes some, too
        for size in (left, 4096, 1):
            while left > 0:
                left -= file.write(bytes(min(size, left)))


def assert_stopped_in_a_line(status, output, *found):
    assert status == 2, output
    (line,) = [line for line in output.splitlines() if line.startswith('error: ')]
    assert any(reason in line for reason in found), output


@pytest.mark.slow
def test_a_sweep_whose_disk_is_full_stops_with_a_line_and_goes_on_once_there_is_room(
    server, labelled_folder, undisturbed, disk
):
    workdir, filler = disk / 'run', disk / 'filler'
    arguments = flags(labelled_folder, workdir, *SWEEP)
    for left in (0, 500_000):  # bytes: enough for nothing; for all but a checkpoint
        fill(filler, but=left)
        status, output = server.run(arguments)
        assert_stopped_in_a_line(status, output, 'No space left on device', 'disk is full')
        assert 'Traceback' not in output
        filler.unlink()
    for more in (1, 5):  # epochs, then in the middle of whatever comes next, where threads of orbax may print, too
        child, before = server.start(arguments), recorded_epochs(workdir)
        while recorded_epochs(workdir) < before + more:
            assert child.is_alive()
            time.sleep(0.005)
        fill(filler)
        assert_stopped_in_a_line(*child.wait(), 'No space left on device', 'disk is full')
        filler.unlink()
    with contextlib.closing(sqlite3.connect(workdir / 'results.sqlite')) as database:
        assert database.execute("SELECT count(*) FROM trials WHERE status = 'FAILED'").fetchone() == (0,)
    status, output = server.run(arguments)
    assert status == 0, output
    assert_same_rows(workdir, undisturbed)


@pytest.mark.slow
def test_a_sweep_whose_database_may_not_grow_stops_with_a_line_and_goes_on(
    server, labelled_folder, undisturbed, tmp_path
):
    workdir = tmp_path / 'run'
    arguments = flags(labelled_folder, workdir, *SWEEP)
    limit = (undisturbed / 'results.sqlite').stat().st_size - 4096  # a page
    assert_stopped_in_a_line(*server.run(arguments, file_limit=limit), 'results.sqlite: ')
    assert recorded_epochs(workdir) > 0
    status, output = server.run(arguments)
    assert status == 0, output
    assert_same_rows(workdir, undisturbed)


def damage(workdir):
    file = workdir / 'results.sqlite'
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = np.random.default_rng(0).bytes(4096)
    file.write_bytes(content)


def write_newer_schema(workdir):
    with contextlib.closing(sqlite3.connect(workdir / 'results.sqlite')) as database:
        database.execute('PRAGMA user_version = 99')


def cut_config(workdir):
    text = (workdir / 'config.json').read_text()
    (workdir / 'config.json').write_text(text[: len(text) // 2])


def lose_database(workdir):
    (workdir / 'results.sqlite').unlink()


def empty_database(workdir):
    (workdir / 'results.sqlite').write_bytes(b'')


def lose_database_and_weights(workdir):
    lose_database(workdir)
    shutil.rmtree(workdir / 'checkpoints')


def a_folder(path):
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.mkdir()


def a_file(path):
    if path.is_dir():
        shutil.rmtree(path)
    path.write_text('not a folder')


def text(content):
    return lambda path: path.write_text(content)


DAMAGES = [
    *(('lanes.json', how) for how in (text('['), text('{"x": 1}'), text('[' * 10**5), text('\x00'), a_folder)),
    *(('env.json', how) for how in (text('{}'), text('[1]'), text(''), a_folder)),
    *(('config.json', how) for how in (text('{"identity": [["a"]], "swept": []}'), text('[]'), a_folder)),
    *(('checkpoints/*/batch.json', how) for how in (text('{"trials": [[]], "phases": []}'), a_folder)),
    *((name, a_file) for name in ('checkpoints/*/balanced', 'checkpoints', 'tensorboard')),
    *((name, a_folder) for name in ('results.sqlite', 'results.csv', 'data.json', 'config.json')),
]


@pytest.mark.parametrize(('name', 'how'), DAMAGES)
def test_a_damaged_file_beside_the_database_is_named_in_one_line(
    server, labelled_folder, undisturbed, tmp_path, name, how
):
    workdir = shutil.copytree(undisturbed, tmp_path / 'run')
    damaged = next(workdir.glob(name))
    how(damaged)
    status, output = server.run(flags(labelled_folder, workdir, *SWEEP, '--sweep=seed=0:4'))
    assert_stopped_in_a_line(status, output, damaged.name)
    assert 'Traceback' not in output


def content(workdir):
    return {path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()}


@pytest.mark.parametrize(
    ('spoil', 'found'),
    [
        (damage, 'Restore it from a copy'),
        (write_newer_schema, 'schema 99'),
        (cut_config, 'config.json cannot be read'),
        (lose_database, 'results.sqlite is missing or empty'),
        (empty_database, 'results.sqlite is missing or empty'),
        (lose_database_and_weights, 'has results.csv, but its database'),
    ],
)
def test_a_spoilt_run_directory_is_refused_with_a_line_and_left_as_it_is(
    server, labelled_folder, undisturbed, tmp_path, spoil, found
):
    workdir = shutil.copytree(undisturbed, tmp_path / 'run')
    spoil(workdir)
    before = content(workdir)
    status, output = server.run(flags(labelled_folder, workdir, *SWEEP, '--sweep=seed=0:4'))
    assert_stopped_in_a_line(status, output, found)
    assert output.count('\n') == 1
    assert content(workdir) == before


def test_a_run_directory_of_other_images_is_refused_with_a_line_and_left_as_it_is(
    server, labelled_folder, undisturbed, tmp_path
):
    other = shutil.copytree(labelled_folder, tmp_path / 'other')
    shutil.copy(other / '01.png', other / '03.png')
    before = content(undisturbed)
    status, output = server.run(flags(other, undisturbed, *SWEEP, '--sweep=seed=0:4'))
    assert_stopped_in_a_line(status, output, 'holds another run (data fingerprint is ')
    assert output.count('\n') == 1
    assert content(undisturbed) == before


def test_a_run_directory_that_may_only_be_read_is_refused_with_a_line(server, labelled_folder, undisturbed, disk):
    workdir = shutil.copytree(undisturbed, disk / 'run')
    before = content(workdir)
    subprocess.run(['mount', '-o', 'remount,ro', disk], check=True)  # permissions do not bind root
    for sweep in ('seed=0:4', 'seed=0:4 batch_size=4,8'):
        status, output = server.run(flags(labelled_folder, workdir, *SWEEP, f'--sweep={sweep}'))
        assert_stopped_in_a_line(status, output, 'readonly database', 'Read-only file system')
        assert output.count('\n') == 1
    assert content(workdir) == before
