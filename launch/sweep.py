"""Trains a sweep as several processes at once: on this machine, or as a job array of a Slurm cluster.

    python launch/sweep.py --engine=local --shards=8 --workdir=runs/study --config=imbalanced --sweep='seed=0:1000'
    python launch/sweep.py --engine=slurm --time=240 --shards=64 ... and the rest as above
    python launch/sweep.py --workdir=runs/study --status
    python launch/sweep.py --workdir=runs/study --collect [--csv=FILE] [--parquet=FILE] [--sort=COLUMN]

A shard is a process `python -m bhcnet_jax.main ... --shard=i/n`, and trains its own share of the trials in
<workdir>/shard-i-of-n. Flags that are not known here are handed on to it. The same command goes on with what
is missing. docs/cluster.md says how to use this, and what to do when something fails.
"""

import argparse
import contextlib
import io
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

STATUS_SECONDS = 60  # between two lines about a shard that runs
MAX_TIMEOUTS = 100  # requeues of a task that ran out of time; a shard that gets nowhere must not go on for ever
GPU_MEMORY = 0.9  # share of a GPU's memory for all shards on it together
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class LaunchError(ValueError):
    """Nothing was started; one line that says why and what to do."""


class Sweep(NamedTuple):
    """What all shards have in common. flags: of bhcnet_jax.main. rerun: its --rerun, '' for none."""

    workdir: pathlib.Path
    shards: int
    flags: list[str]
    rerun: str

    def command(self, index: int, *more: str) -> list[str]:
        """The command of a shard. index: from 1."""
        shard = f'--shard={index}/{self.shards}'
        return [sys.executable, '-m', 'bhcnet_jax.main', *self.flags, f'--workdir={self.workdir}', shard, *more]

    def name(self, index: int) -> str:
        return f'shard-{index}-of-{self.shards}'


def prepare(sweep: Sweep) -> None:
    """Makes the directory, or takes up one with as many shards, where no job of an earlier call is in the queue."""
    known = _recall(sweep.workdir)
    if known.get('shards', sweep.shards) != sweep.shards:
        raise LaunchError(
            f'{sweep.workdir} holds a sweep in {known["shards"]} shards. Use --shards={known["shards"]}, or another '
            '--workdir: a trial would be in another shard and trained twice.'
        )
    job = known.get('job', '')
    if queue(job):
        raise LaunchError(f'Job {job} trains in {sweep.workdir}. Wait for it, or end it: scancel {job}')
    _remember(sweep.workdir, {'shards': sweep.shards, **known})


def _recall(workdir: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads((workdir / 'sweep.json').read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise LaunchError(f'{workdir}/sweep.json cannot be read ({error}). Use another --workdir.') from error


def _remember(workdir: pathlib.Path, known: dict[str, Any]) -> None:
    try:
        (workdir / 'logs').mkdir(parents=True, exist_ok=True)
        (workdir / 'sweep.json').write_text(json.dumps(known) + '\n')
    except OSError as error:
        raise LaunchError(f'{workdir} cannot be written: {error.strerror}. Use another --workdir.') from error


def check(sweep: Sweep) -> int:
    """Has bhcnet_jax.main check its flags and prepare the data, once for all shards. Returns its exit code."""
    ran = subprocess.run(sweep.command(1, '--dry_run', '--noestimate'), capture_output=True, text=True, check=False)
    if ran.returncode:
        sys.stderr.write(ran.stderr)
    return ran.returncode


class Place(NamedTuple):
    """Where a shard runs on this machine. gpu: its CUDA_VISIBLE_DEVICES, None without one; memory: its share of it."""

    cores: list[int]
    gpu: str | None = None
    memory: float = 1.0

    def environment(self) -> dict[str, str]:
        if self.gpu is None:
            return dict(os.environ)
        mine = {'CUDA_VISIBLE_DEVICES': self.gpu, 'XLA_PYTHON_CLIENT_MEM_FRACTION': f'{self.memory:.3f}'}
        return {**os.environ, **mine} if self.memory < GPU_MEMORY else {**os.environ, 'CUDA_VISIBLE_DEVICES': self.gpu}

    def __str__(self) -> str:
        cores = f'cores {",".join(map(str, self.cores))}' if self.cores else 'all cores'
        return cores if self.gpu is None else f'{cores}, GPU {self.gpu}'


def places(shards: int, cores: Sequence[int], gpus: Sequence[str]) -> list[Place]:
    """Shares cores, and GPUs if there are any, among the shards as evenly as can be; they are shared if too few."""
    found = []
    for index in range(shards):
        first, end = (len(cores) * number // shards for number in (index, index + 1))
        mine = list(cores[first : max(end, first + 1)])
        if not gpus:
            found.append(Place(mine))
            continue
        gpu = index % len(gpus)
        found.append(Place(mine, gpus[gpu], GPU_MEMORY / len(range(gpu, shards, len(gpus)))))
    return found


def visible_gpus() -> list[str]:
    """NVIDIA GPUs that JAX would use, each by its name in CUDA_VISIBLE_DEVICES."""
    if os.environ.get('JAX_PLATFORMS') == 'cpu':
        return []
    if 'CUDA_VISIBLE_DEVICES' in os.environ:
        return [name for name in os.environ['CUDA_VISIBLE_DEVICES'].split(',') if name and name != '-1']
    if not shutil.which('nvidia-smi'):
        return []
    listed = subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True, check=False).stdout
    return re.findall(r'^GPU (\d+):', listed, re.MULTILINE)


class LocalShard:
    """A shard that runs on this machine. index: from 1."""

    def __init__(self, sweep: Sweep, index: int, place: Place):
        self.title = f'shard {index}/{sweep.shards}'
        self.log = sweep.workdir / 'logs' / f'{sweep.name(index)}.log'
        self._directory = sweep.workdir / sweep.name(index)
        more = [f'--rerun={sweep.rerun}'] if sweep.rerun else []
        # In a process group of its own: Ctrl-C must not reach it twice, from the terminal and from here.
        with self.log.open('ab') as output, _on_cores(place.cores):
            self.process = subprocess.Popen(
                sweep.command(index, *more), env=place.environment(), process_group=0,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        print(f'{self.title}: process {self.process.pid}, {place}, log {self.log}', flush=True)

    def last_line(self) -> str:
        """The end of its log."""
        with self.log.open('rb') as log:
            log.seek(max(0, self.log.stat().st_size - 4096))
            lines = log.read().decode(errors='replace').split('\n')
        return next((line.strip() for line in reversed(lines) if line.strip()), 'nothing')

    def report(self, stopped_by: Sequence[int]) -> bool:
        """Prints how it ended. Returns whether that was well, or as asked."""
        code = self.process.returncode
        asked = code in {128 + signum for signum in stopped_by} | {-signum for signum in stopped_by}
        how = 'done' if code == 0 else 'stopped' if asked else f'FAILED ({_cause(code)})'
        ending = '' if code == 0 or asked else f'; {self.log} ends: {self.last_line()}'
        print(f'{self.title}: {how}; trials: {_progress(self._directory)[0]}{ending}', flush=True)
        return code == 0 or asked


def _cause(code: int) -> str:
    return f'exit code {code}' if code > 0 else f'killed by {signal.Signals(-code).name}'


@contextlib.contextmanager
def _on_cores(cores: Sequence[int]):
    """Processes started inside run on these cores only, so that XLA makes no more threads than that; Linux only."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def run_local(sweep: Sweep) -> int:
    """Runs all shards at once and waits for them. Returns the exit code: 0 if all ended well."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []
    received: list[int] = []
    heeded = [signum for signum in PASSED_ON if signal.getsignal(signum) != signal.SIG_IGN]
    for signum in heeded:
        signal.signal(signum, lambda signum, frame: received.append(signum))
    shards = []
    for index, place in enumerate(places(sweep.shards, cores, visible_gpus()), 1):
        if not received:
            shards.append(LocalShard(sweep, index, place))
    well = _wait(shards, received)
    if received:
        print(f'Stopped by {signal.Signals(received[0]).name}. To go on: {_this_command()}')
        return 128 + received[0]
    print(f'Leaderboard: python launch/sweep.py --workdir={sweep.workdir} --collect')
    return 0 if well else 1


def _wait(shards: Sequence[LocalShard], received: Sequence[int]) -> bool:
    """Until all have ended; passes on the signals that come in meanwhile. Returns whether all ended well."""
    running, well, passed_on, shown = list(shards), True, 0, time.monotonic()
    while running:
        for signum in received[passed_on:]:
            passed_on += 1
            for each in running:
                each.process.send_signal(signum)
        for each in [each for each in running if each.process.poll() is not None]:
            running.remove(each)
            well = each.report(received) and well
        if time.monotonic() - shown > STATUS_SECONDS:
            shown = time.monotonic()
            for each in running:
                print(f'{each.title}: {each.last_line()}', flush=True)
        time.sleep(0.1)
    return well


class SlurmShard:
    """What a task of the job array runs, called by submitit on the node; it starts the shard and waits for it.

    Signals come in two ways. SIGUSR2, some time before the time limit (and before preemption where Slurm is set up
    so), goes to submitit, which calls `checkpoint`, then requeues the task. SIGTERM comes before preemption, a requeue
    or a cancellation, and Slurm sends it to the shard as well.
    """

    def __init__(self, command: list[str], rerun: str):
        self._command = command
        self._rerun = rerun
        self._pid: int | None = None

    def __call__(self) -> None:
        """Runs the shard; ends the task with the shard's exit code."""
        requeued = os.environ.get('SLURM_RESTART_COUNT', '0') != '0'
        # What was to be trained again was begun by the first start; a second time would undo that.
        more = [f'--rerun={self._rerun}'] if self._rerun and not requeued else []
        terminated: list[int] = []
        signal.signal(signal.SIGTERM, lambda signum, frame: terminated.append(signum))
        self._pid = os.posix_spawn(
            sys.executable, [*self._command, *more], os.environ,
            setsigmask=[signal.SIGUSR2],  # Slurm sends it to every process of the task; the shard would die of it
            setsigdef=[signal.SIGINT],
        )  # fmt: skip
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        while code and terminated:  # Slurm requeues a preempted task that it has to kill, not one that ends by itself
            signal.pause()
        if code:
            sys.exit(code if code > 0 else 128 - code)

    def checkpoint(self) -> Any:
        """Has the shard finish its epoch and save. Returns what the requeued task runs."""
        from submitit.core.utils import DelayedSubmission

        with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it has just ended
            if self._pid:
                os.kill(self._pid, signal.SIGINT)  # not SIGTERM: of two, Slurm's being one, it would die unsaved
                os.waitpid(self._pid, 0)
        return DelayedSubmission(SlurmShard(self._command, self._rerun))


def need_slurm() -> None:
    """LaunchError if jobs cannot be submitted from here."""
    if not shutil.which('sbatch'):
        raise LaunchError('--engine=slurm: no sbatch on this machine; expected a login node of a Slurm cluster.')
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise LaunchError("--engine=slurm needs submitit: pip install 'bhcnet_jax[slurm]'") from None


def submit(sweep: Sweep, flags: argparse.Namespace) -> str:
    """Submits a job array with a task per shard. Returns the job's id. LaunchError if Slurm refuses it."""
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    cores = [f'--cpus-per-task={flags.cpus_per_task}'] if flags.cpus_per_task else []
    parameters = {
        'job_name': f'sweep-{sweep.workdir.name}',
        'partition': flags.partition or None,
        'time': flags.time,
        'cpus_per_task': flags.cpus_per_task,
        'gpus_per_task': flags.gpus_per_task,
        'ntasks_per_node': 1,
        'stderr_to_stdout': True,
        'additional_parameters': {'requeue': True, 'ntasks': 1, **dict(flags.sbatch)},
        # A requeued task must not overwrite its log. Since Slurm 22.05 srun does not take over the cores from sbatch.
        'srun_args': ['--open-mode=append', *cores],
    }
    executor = submitit.SlurmExecutor(sweep.workdir / 'logs', MAX_TIMEOUTS)
    executor.update_parameters(**{name: value for name, value in parameters.items() if value is not None})
    try:
        with contextlib.redirect_stderr(io.StringIO()), executor.batch():  # what sbatch says comes with the error
            jobs = [
                executor.submit(SlurmShard(sweep.command(index), sweep.rerun)) for index in range(1, sweep.shards + 1)
            ]
    except (FailedJobError, FailedSubmissionError) as error:
        raise LaunchError(f'Slurm refuses the job: {" ".join(str(error).split())}') from error
    return jobs[0].job_id.partition('_')[0]


def queue(job: str) -> dict[int, str]:
    """Index of a shard -> its task's state in Slurm's queue, as in 'RUNNING n1'; none for those that have ended."""
    if not job or not shutil.which('squeue'):
        return {}
    command = ['squeue', '--noheader', '--array', f'--jobs={job}', '--format=%K %T %R']
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode and 'Invalid job id' not in ran.stderr:  # so it calls one that has left the queue
        raise LaunchError(f'squeue: {" ".join(ran.stderr.split())}')
    tasks = [line.split(maxsplit=1) for line in ran.stdout.splitlines()]
    return {1 + (int(task) if task.isdigit() else 0): state for task, state in tasks}  # N/A: no array, a single shard


def run_slurm(sweep: Sweep, flags: argparse.Namespace) -> int:
    """Submits the sweep and returns at once."""
    job = submit(sweep, flags)
    _remember(sweep.workdir, {'shards': sweep.shards, 'job': job})
    print(f'Submitted job {job}: {sweep.shards} tasks, logs in {sweep.workdir}/logs')
    print(f'How far it is: python launch/sweep.py --workdir={sweep.workdir} --status')
    print(f'Its results: python launch/sweep.py --workdir={sweep.workdir} --collect')
    return 0


def show_status(workdir: pathlib.Path) -> int:
    """Prints a line per shard: its state in Slurm's queue or of its process, and how many trials have which status."""
    known = _recall(workdir)
    if not known:
        raise LaunchError(f'{workdir}: no sweep was started here; expected the --workdir of an earlier call.')
    tasks = queue(known.get('job', ''))
    if known.get('job'):
        print(f'Job {known["job"]}: {len(tasks)} of {known["shards"]} tasks in the queue')
    for index in range(1, known['shards'] + 1):
        counts, process = _progress(workdir / f'shard-{index}-of-{known["shards"]}')
        print(f'shard {index}/{known["shards"]}: {tasks.get(index, process)}; trials: {counts}')
    return 0


def _progress(directory: pathlib.Path) -> tuple[str, str]:
    """How many trials of a shard have which status, and whether a process trains one, from its database."""
    from bhcnet_jax.errors import UserError
    from bhcnet_jax.records import merge

    try:
        trials = merge.merge([directory]).trials
    except UserError:
        return 'none yet', 'not running'
    running = trials.loc[trials.status == 'RUNNING', ['host', 'pid', 'heartbeat']].to_dict('records')
    alive = any(not merge.is_abandoned(**each) for each in running)
    counts = ', '.join(f'{count} {status}' for status, count in trials.status.value_counts().items())
    return counts or 'none yet', 'running' if alive else 'not running'


def collect(workdir: pathlib.Path, flags: list[str]) -> int:
    """Prints the leaderboard of all shards. flags: of python -m bhcnet_jax.results."""
    from bhcnet_jax import results

    results.main([str(workdir), *flags])
    return 0


def _this_command() -> str:
    return shlex.join(['python', *sys.argv])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LaunchError(f'{message}.')


def _sbatch(text: str) -> tuple[str, str | bool]:
    name, equals, value = text.partition('=')
    return name.lstrip('-'), value if equals else True


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The flags of this program, and those to be handed on."""
    parser = _Parser(
        prog='python launch/sweep.py', allow_abbrev=False, description=__doc__.splitlines()[0],
        epilog="Example: python launch/sweep.py --shards=8 --workdir=runs/study --config=balanced --sweep='seed=0:99'",
    )  # fmt: skip
    parser.add_argument('--engine', choices=('local', 'slurm'), default='local', help='default: local')
    parser.add_argument('--workdir', type=pathlib.Path, required=True, help='where all shards and logs go')
    parser.add_argument('--shards', type=int, help='how many processes')
    parser.add_argument('--rerun', default='', help='as of bhcnet_jax.main: failed, diverged, or all')
    parser.add_argument('--status', action='store_true', help='say how far the shards are')
    parser.add_argument('--collect', action='store_true', help='leaderboard; takes the flags of bhcnet_jax.results')
    slurm = parser.add_argument_group('with --engine=slurm')
    slurm.add_argument('--time', type=int, help='minutes after which a task saves and is requeued')
    slurm.add_argument('--partition', default='')
    slurm.add_argument('--cpus_per_task', type=int)
    slurm.add_argument('--gpus_per_task', type=int)
    slurm.add_argument('--sbatch', type=_sbatch, action='append', default=[], metavar='NAME=VALUE',
                       help='any other option of sbatch, repeatable: --sbatch=account=me')  # fmt: skip
    flags, rest = parser.parse_known_args(arguments)
    _refuse_control('--workdir', str(flags.workdir))
    if not (flags.status or flags.collect):
        _check_start(flags, rest)
    return flags, rest


def _check_start(flags: argparse.Namespace, rest: Sequence[str]) -> None:
    _refuse_control('--partition', flags.partition)
    for name, value in flags.sbatch:
        _refuse_control('--sbatch', f'{name}={value}')
    if not 1 <= (flags.shards or 0) < 10**5:
        raise LaunchError(f'--shards is {flags.shards}; expected a whole number from 1, as in --shards=8.')
    for name in ('--shard', '--dry_run'):
        if any(re.fullmatch(f'-?{name}(=.*)?', argument) for argument in rest):
            raise LaunchError(f'{name} is a flag of bhcnet_jax.main alone; this program sets it for each shard.')
    if flags.engine == 'slurm' and (flags.time or 0) < 1:
        raise LaunchError(f'--time is {flags.time}; expected minutes after which a task saves and is requeued.')


def _refuse_control(flag: str, value: str) -> None:
    """LaunchError for a line break or the like, after which the batch script would go on with a line of its own."""
    if any(unicodedata.category(char) in ('Cc', 'Zl', 'Zp') for char in value):
        raise LaunchError(f'{flag}={value!r}: expected no line break and no other control character.')


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, 1 if a shard did not end well, 2 if nothing was started."""
    try:
        flags, rest = parse(arguments)
        if flags.status:
            return show_status(flags.workdir)
        if flags.collect:
            return collect(flags.workdir, rest)
        if flags.engine == 'slurm':
            need_slurm()
        sweep = Sweep(flags.workdir, flags.shards, rest, flags.rerun)
        prepare(sweep)
        code = check(sweep)
        if code:
            return code
        return run_slurm(sweep, flags) if flags.engine == 'slurm' else run_local(sweep)
    except LaunchError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('\nInterrupted before anything was started.', file=sys.stderr)
        return 128 + signal.SIGINT


if __name__ == '__main__':
    sys.exit(main())
