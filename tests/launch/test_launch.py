"""Sweeps in several processes, here and on a real Slurm cluster, with processes and nodes that really die."""

import contextlib
import importlib.util
import os
import pathlib
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time

import pandas as pd
import pytest

import slurm_cluster
from bhcnet_jax.records import merge
from runs import child_environment, recorded_epochs

LAUNCH = pathlib.Path(__file__).parents[2] / 'launch/sweep.py'
SEEDS = 8
TIMES = ['train_seconds', 'images_per_second', 'hardware']  # a shard has fewer cores, and its row says so


@pytest.fixture(scope='module')
def launch():
    """launch/sweep.py, which is in no package."""
    spec = importlib.util.spec_from_file_location('launch_sweep', LAUNCH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def environment(tmp_path_factory):
    """Of child processes: one device, as a shard on one core has; prepared data and programs are shared."""
    return child_environment(tmp_path_factory.mktemp('shared'))


@pytest.fixture(scope='module')
def recipe(labelled_folder):
    """Flags of bhcnet_jax.main: trials of a second or two, most of it the checkpoint of every epoch."""
    return [
        '--config=base', '--config.recipe=tiny',
        '--config.dataset.name=folder', f'--config.dataset.dir={labelled_folder}', '--config.dataset.image_size=16',
        '--config.model.filters=(2,3)', '--config.batch_size=8', '--config.augment.samples=20',
        '--config.augment.policy=none',
        '--config.imbalanced.positives=30', '--config.balanced.epochs=15', '--config.imbalanced.epochs=15',
        '--config.engine.checkpoint_seconds=0',
    ]  # fmt: skip


@pytest.fixture(scope='module')
def single(recipe, environment, tmp_path_factory):
    """A call returns the trials and predictions of the sweep in a single process, which trains beside the tests."""
    workdir = tmp_path_factory.mktemp('single') / 'run'
    flags = [*recipe, f'--sweep=seed=0:{SEEDS}', f'--workdir={workdir}', '--config.engine.checkpoint_seconds=100']
    child = subprocess.Popen(
        [sys.executable, '-m', 'bhcnet_jax.main', *flags], env=environment, stdout=subprocess.DEVNULL
    )

    def wait():
        assert child.wait(timeout=180) == 0
        return rows(workdir)

    yield wait
    child.kill()
    child.wait()


def rows(workdir):
    """All that a sweep computes: trials without the times that they took and where they lie, and predictions."""
    merged = merge.merge([workdir])
    assert merged.warnings == []
    trials = merged.trials.drop(columns=[*TIMES, 'file']).sort_values('trial_id', ignore_index=True)
    of = merged.predictions.trial.map(merged.trials.trial_id)
    predictions = merged.predictions.assign(trial=of).sort_values(['trial', 'image_id'], ignore_index=True)
    return trials, predictions


def assert_same(workdir, expected, seeds):
    trials, predictions = expected
    wanted = trials[trials.seed < seeds]
    found = rows(workdir)
    assert list(found[0].status) == ['DONE'] * seeds
    pd.testing.assert_frame_equal(found[0], wanted.reset_index(drop=True), check_exact=True)
    same = predictions[predictions.trial.isin(wanted.trial_id)].reset_index(drop=True)
    pd.testing.assert_frame_equal(found[1], same, check_exact=True)


def start(environment, workdir, *flags):
    return subprocess.Popen(
        [sys.executable, LAUNCH, f'--workdir={workdir}', *flags], env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0,
    )  # fmt: skip


def finish(environment, workdir, *flags):
    """Exit code and output."""
    child = start(environment, workdir, *flags)
    output, _ = child.communicate(timeout=180)
    return child.returncode, output


def wait_for(condition, what, seconds=180):
    """What the condition returns once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return found


def at_work(workdir, *others):
    """Waits until a shard has recorded some epochs. Returns its directory, which is none of the others."""
    found = []

    def look():
        found[:] = [path for path in workdir.glob('shard-*') if path not in others and recorded_epochs(path) >= 3]
        return found

    return wait_for(look, 'no shard trains')[0]


def index_of(shard):
    return int(shard.name.split('-')[1])


def trainer(shard):
    """The process that trains in a shard's directory."""

    def look():
        with contextlib.closing(sqlite3.connect(f'file:{shard}/results.sqlite?mode=ro', uri=True)) as database:
            return database.execute("SELECT pid FROM trials WHERE status = 'RUNNING'").fetchone()

    return wait_for(look, 'no trial is RUNNING')[0]


@pytest.mark.slow
def test_after_sigkill_and_sigterm_the_same_command_ends_with_the_rows_of_one_process(
    single, recipe, environment, tmp_path
):
    workdir = tmp_path / 'run'
    flags = ['--shards=2', '--sweep=seed=0:6', *recipe]
    child = start(environment, workdir, *flags)
    killed = at_work(workdir)
    cores = os.sched_getaffinity(pid := trainer(killed))
    os.kill(pid, signal.SIGKILL)
    stopped = at_work(workdir, killed)
    if len(os.sched_getaffinity(0)) > 1:
        assert not cores & os.sched_getaffinity(trainer(stopped))
    os.killpg(child.pid, signal.SIGTERM)  # as a terminal or a scheduler does: it must not reach a shard twice
    output, _ = child.communicate(timeout=180)
    assert child.returncode == 128 + signal.SIGTERM, output
    assert f'shard {index_of(killed)}/2: FAILED (killed by SIGKILL); trials: ' in output
    assert f'; {workdir}/logs/{killed.name}.log ends: ' in output
    assert f'shard {index_of(stopped)}/2: stopped' in output
    assert f'Stopped by SIGTERM. To go on: python {LAUNCH} --workdir={workdir} --shards=2' in output
    assert re.search('Stopped by SIGTERM after .* all is saved', (workdir / f'logs/{stopped.name}.log').read_text())
    code, output = finish(environment, workdir, *flags)
    assert code == 0, output
    assert_same(workdir, single(), seeds=6)


def test_a_shard_that_fails_is_told_and_stops_no_other(launch, tmp_path, monkeypatch, capsys):
    programs = {
        1: 'import os; print("last words", flush=True); os.kill(os.getpid(), 9)',
        2: 'print("out of paper\\n"); raise SystemExit(1)',
        3: f'import time; time.sleep(1); open("{tmp_path}/finished", "w")',
    }
    monkeypatch.setattr(launch.Sweep, 'command', lambda self, index: [sys.executable, '-c', programs[index]])
    monkeypatch.setattr(signal, 'signal', lambda *_: None)  # pytest keeps its own
    (tmp_path / 'logs').mkdir()
    assert launch.run_local(launch.Sweep(tmp_path, 3, [], '')) == 1
    output = capsys.readouterr().out
    for index, (reason, end) in {1: ('killed by SIGKILL', 'last words'), 2: ('exit code 1', 'out of paper')}.items():
        log = f'{tmp_path}/logs/shard-{index}-of-3.log'
        assert f'shard {index}/3: FAILED ({reason}); trials: none yet; {log} ends: {end}\n' in output
    assert 'shard 3/3: done; trials: none yet\n' in output
    assert (tmp_path / 'finished').exists()


def test_cores_and_gpus_are_shared_out_evenly(launch):
    assert [place.cores for place in launch.places(3, range(8), [])] == [[0, 1], [2, 3, 4], [5, 6, 7]]
    assert [place.cores for place in launch.places(4, [5, 7], [])] == [[5], [5], [7], [7]]
    alone = launch.places(2, [0, 1], ['0', '1'])
    assert [place.gpu for place in alone] == ['0', '1']
    assert 'XLA_PYTHON_CLIENT_MEM_FRACTION' not in alone[0].environment()
    shared = [place.environment() for place in launch.places(5, [0], ['3', '4'])]
    assert [each['CUDA_VISIBLE_DEVICES'] for each in shared] == ['3', '4', '3', '4', '3']
    fractions = [each['XLA_PYTHON_CLIENT_MEM_FRACTION'] for each in shared]
    assert fractions == ['0.300', '0.450', '0.300', '0.450', '0.300']


def test_gpus_are_those_that_jax_would_see(launch, monkeypatch, tmp_path):
    tool = tmp_path / 'nvidia-smi'
    tool.write_text('#!/bin/sh\necho "GPU 0: H100 (UUID: GPU-a)"\necho "  MIG 1g Device 0: x"\necho "GPU 1: H100"\n')
    tool.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
    assert launch.visible_gpus() == []
    monkeypatch.delenv('JAX_PLATFORMS')
    assert launch.visible_gpus() == ['0', '1']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '5,GPU-7')
    assert launch.visible_gpus() == ['5', 'GPU-7']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '-1')
    assert launch.visible_gpus() == []


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--shards=0', '--config=smoke'], '--shards is 0; expected a whole number from 1'),
        (['--config=smoke'], '--shards is None'),
        (['--shards=two'], "invalid int value: 'two'"),
        (['--shards=2', '--shard=1/2'], '--shard is a flag of bhcnet_jax.main alone'),
        (['--shards=2', '--dry_run'], '--dry_run is a flag of bhcnet_jax.main alone'),
        (['--shards=2', '--engine=cloud'], "invalid choice: 'cloud'"),
        (['--shards=2', '--engine=slurm'], '--time is None; expected minutes'),
        (['--shards=2', '--engine=slurm', '--time=10'], 'no sbatch on this machine'),
        (['--status'], 'no sweep was started here'),
        (['--shards=2', '--engine=slurm', '--time=9', '--sbatch=account=me\n--wrap=x'], 'expected no line break'),
        (['--shards=2', '--workdir=runs/a\nrm -r ~'], "--workdir='runs/a\\nrm -r ~': expected no line break"),
        (['--shards=2', '--partition=a\rb'], '--partition='),
    ],
)
def test_bad_input_is_answered_in_one_line(launch, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.setenv('PATH', '/nowhere')
    assert launch.main([f'--workdir={tmp_path}/run', *flags]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.startswith('error: ') and errors.count('\n') == 1
    assert not (tmp_path / 'run').exists()


def test_a_workdir_that_cannot_be_used_is_refused(launch, tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    assert launch.main([f'--workdir={tmp_path}/file/run', '--shards=2', '--config=smoke']) == 2
    assert 'error: ' in (errors := capsys.readouterr().err) and errors.count('\n') == 1
    assert launch.main(['--shards=2', '--config=smoke']) == 2
    assert 'required: --workdir' in capsys.readouterr().err
    (tmp_path / 'sweep.json').write_text('{"shards": 3}')
    assert launch.main([f'--workdir={tmp_path}', '--shards=2', '--config=smoke']) == 2
    assert 'holds a sweep in 3 shards. Use --shards=3' in capsys.readouterr().err


def test_what_is_wrong_for_every_shard_is_said_once_and_nothing_starts(environment, tmp_path):
    code, output = finish(environment, tmp_path / 'run', '--shards=4', '--config=nonsense', '--sweep=seed=0:4')
    assert code == 2
    assert 'error: --config=nonsense: no such file' in output and output.count('\n') == 1
    assert list((tmp_path / 'run/logs').iterdir()) == []


@pytest.fixture(scope='module')
def cluster(environment):
    """A folder with a running cluster, and the environment of its users."""
    reason = slurm_cluster.missing()
    if reason and 'CI' in os.environ:
        pytest.fail(f'CI must test on Slurm: {reason}')
    if reason:
        pytest.skip(f'no Slurm: {reason}')
    with tempfile.TemporaryDirectory(prefix='slurm', ignore_cleanup_errors=True) as name:
        folder = pathlib.Path(name)
        try:
            slurm_cluster.start(folder)
            yield folder, {**environment, **slurm_cluster.environment(folder)}
        finally:
            slurm_cluster.stop(folder)


def slurm(cluster, *command):
    return subprocess.run(command, env=cluster[1], capture_output=True, text=True, check=True).stdout


def submit(cluster, workdir, *flags):
    """The id of the job."""
    code, output = finish(cluster[1], workdir, '--engine=slurm', *flags)
    assert code == 0, output
    return re.search(r'Submitted job (\d+)', output)[1]


def nodes(cluster, job):
    """Index of each shard whose task runs -> its node."""
    listed = slurm(cluster, 'squeue', '--noheader', '--states=running', f'--jobs={job}', '--format=%K %N').split()
    return {int(task) + 1: node for task, node in zip(listed[::2], listed[1::2], strict=True)}


def restarts(cluster, job, shard):
    return int(re.search(r'Restarts=(\d+)', slurm(cluster, 'scontrol', 'show', 'job', f'{job}_{shard - 1}'))[1])


def ended(cluster, job):
    return not slurm(cluster, 'squeue', '--noheader', f'--jobs={job}')


@pytest.mark.slow
def test_a_sweep_whose_node_is_lost_ends_with_the_rows_of_one_process(single, recipe, cluster, tmp_path):
    folder, environment = cluster
    workdir = tmp_path / 'run'
    flags = ['--shards=4', f'--sweep=seed=0:{SEEDS}', '--time=10', *recipe]
    job = submit(cluster, workdir, *flags)
    killed = at_work(workdir)
    before = nodes(cluster, job)
    lost = before[index_of(killed)]
    slurm_cluster.kill_node(folder, lost)
    epochs = recorded_epochs(killed)
    code, output = finish(environment, workdir, '--engine=slurm', *flags)
    assert code == 2, 'a second job trains in the same directories'
    assert f'error: Job {job} trains in {workdir}. Wait for it, or end it: scancel {job}' in output
    try:
        wait_for(lambda: ended(cluster, job), 'the job does not end')
    finally:
        slurm_cluster.start_node(folder, lost)
    assert epochs < recorded_epochs(killed)
    for shard, node in before.items():
        assert restarts(cluster, job, shard) == (node == lost)
    assert_same(workdir, single(), SEEDS)
    _, output = finish(environment, workdir, '--status')
    assert f'Job {job}: 0 of 4 tasks in the queue' in output
    assert sum(map(int, re.findall(r'(\d+) DONE', output))) == SEEDS
    code, output = finish(environment, workdir, '--collect', f'--csv={tmp_path}/all.csv')
    assert code == 0
    assert f'Trials: {SEEDS} DONE' in output
    assert len(pd.read_csv(tmp_path / 'all.csv')) == SEEDS


@pytest.mark.slow
def test_tasks_that_are_preempted_or_out_of_time_save_and_are_requeued(single, recipe, cluster, tmp_path):
    workdir = tmp_path / 'run'
    job = submit(cluster, workdir, '--shards=2', '--sweep=seed=0:6', '--time=10', '--cpus_per_task=2', *recipe)
    first = at_work(workdir)
    timed_out = index_of(first)
    # What Slurm sends ahead of the time limit; it looks at that only twice a minute.
    slurm(cluster, 'scancel', '--signal=USR2', f'{job}_{timed_out - 1}')
    preempted = index_of(at_work(workdir, first))
    slurm(cluster, 'sbatch', '--partition=high', f'--nodelist={nodes(cluster, job)[preempted]}', '--ntasks=2',
          '--output=/dev/null', '--wrap=true')  # fmt: skip
    wait_for(lambda: ended(cluster, job), 'the job does not end')
    for shard, signal_name in ((preempted, 'SIGTERM'), (timed_out, 'SIGINT')):
        assert restarts(cluster, job, shard) == 1
        log = (workdir / f'logs/{job}_{shard - 1}_0_log.out').read_text()
        assert f'Stopped by {signal_name} after' in log
        assert 'all is saved' in log
    assert_same(workdir, single(), seeds=6)
