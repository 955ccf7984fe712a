"""Trains a config: one trial, or all trials of a sweep. The same command goes on with what is missing.

    python -m bhcnet_jax.main --config=imbalanced --config.dataset.dir=DIR
    python -m bhcnet_jax.main --config=balanced --config.split.scheme=kfold --sweep='seed=0:5 split.fold=0:10'
"""

import os
import pathlib
import re
import shlex
import signal
import sys
import warnings
from typing import Any, NoReturn

from absl import app, flags, logging

from bhcnet_jax import command_line, machine
from bhcnet_jax.errors import UserError, fail

flags.adopt_module_key_flags(command_line)  # so that --help lists them
_SHARD = flags.DEFINE_string('shard', '', 'i/n: train the i-th of n disjoint shares of the trials.')
_PRUNE = flags.DEFINE_string(
    'prune', '', "Stop what does worse on validation images, as in 'rungs=4,8,16 keep=1/3'; see run/pruning.py."
)
_RERUN = flags.DEFINE_string('rerun', '', 'Train again: failed, diverged, all, or the beginning of a trial id.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Say what would be trained, and stop.')
_ESTIMATE = flags.DEFINE_bool('estimate', True, 'With --dry_run: measure how long it would take and how much memory.')
_FAIL_FAST = flags.DEFINE_bool('fail_fast', False, 'Stop at the first trial that fails or diverges.')
_DISTRIBUTED = flags.DEFINE_bool(
    'distributed', False, 'Train in several processes, started with the same command. Slurm tells them the rest.'
)
_COORDINATOR = flags.DEFINE_string('coordinator', '', 'host:port of process 0, with --distributed but without Slurm.')
_PROCESSES = flags.DEFINE_integer('processes', 0, 'The number of processes that train together.', lower_bound=0)
_PROCESS = flags.DEFINE_integer('process', -1, 'The number of this process, from 0.')


def _keep_compiled_programs() -> None:
    """Makes JAX keep compiled programs in the user's cache directory, for the next process.

    JAX_COMPILATION_CACHE_DIR, which JAX reads itself, names another folder, or none if empty. JAX runs what is in the
    folder, so nobody else may write there.
    """
    import jax

    if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
        return
    folder = pathlib.Path('~/.cache')
    try:
        folder = machine.cache_folder() / 'compiled'
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        if folder.stat().st_uid != os.getuid() or not os.access(folder, os.W_OK):
            raise PermissionError(0, 'not your own, or not writable')
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
        reason = getattr(error, 'strerror', None) or error
        print(f'warning: {folder}: {reason}; compiled programs are not kept for the next run.', file=sys.stderr)
        return
    jax.config.update('jax_compilation_cache_dir', str(folder))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)  # dozens of small programs take a second too
    _replace_unreadable(folder)


def _replace_unreadable(folder: pathlib.Path) -> None:
    """Deletes kept programs that JAX warns it cannot read: it compiles them anew, but overwrites no file.

    JAX writes them in place, so a full disk or a kill may cut one short.
    """
    show = warnings.showwarning

    def delete_and_show(message: Warning | str, *where: Any) -> None:
        unreadable = re.search(r"Error reading persistent compilation cache entry for '(\w+)'", str(message))
        for file in folder.glob(f'{unreadable[1]}-*-cache') if unreadable else ():
            file.unlink(missing_ok=True)
        show(message, *where)

    warnings.showwarning = delete_and_show


def main(argv: list[str]) -> None:
    """Runs the config in --config. argv: what is left beside the flags."""
    del argv
    try:
        machine.set_up_jax()
    except UserError as error:
        fail(error)
    _keep_compiled_programs()
    if not flags.FLAGS['verbosity'].present:
        logging.set_verbosity(logging.WARNING)  # orbax tells thirty lines about every checkpoint
    command = shlex.join(['python', '-m', 'bhcnet_jax.main', *sys.argv[1:]])
    # Imported here so that a wrong flag is answered at once.
    from bhcnet_jax.training import engine, hosts

    try:
        if not _DISTRIBUTED.value:
            machine.make_every_core_a_device()
            _train(command)
        elif _join_others() == 0:
            _train(command)
        else:
            engine.follow()
    except hosts.ProcessLost as error:
        _leave(f'error: {error} What is in a checkpoint is saved. To go on: {command}', 1)


def _train(command: str) -> NoReturn:
    """Trains in the process that decides, and ends it. command: what the user typed."""
    from bhcnet_jax.run import train
    from bhcnet_jax.run.lane_batch import Stopped
    from bhcnet_jax.training import hosts

    options = train.Options(
        workdir=command_line.WORKDIR.value,
        command=command,
        sweep=command_line.SWEEP.value,
        shard=_SHARD.value,
        prune=_PRUNE.value,
        rerun=_RERUN.value,
        dry_run=_DRY_RUN.value,
        estimate=_ESTIMATE.value,
        fail_fast=_FAIL_FAST.value,
    )
    try:
        well = train.run(command_line.CONFIG.value, options)
    except UserError as error:
        fail(error)
    except Stopped as stop:
        print(f'Stopped by {signal.Signals(stop.signum).name} after {stop}; all is saved. To go on: {command}')
        sys.exit(128 + stop.signum)
    except KeyboardInterrupt:  # before the first epoch, or for the second time
        message = f'\nInterrupted; what is in a checkpoint is saved. To go on: {command}'
        if _DISTRIBUTED.value:  # perhaps in the midst of a call that the others are still in
            _leave(message, 128 + signal.SIGINT)
        print(message, file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    finally:
        if _DISTRIBUTED.value:
            hosts.dismiss()
    sys.exit(0 if well else 1)


def _join_others() -> int:
    """Joins the processes that train together. Returns the number of this one."""
    import jax

    from bhcnet_jax.training import hosts

    try:
        hosts.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    except (ValueError, RuntimeError) as error:
        fail(f'--distributed: {error} Without Slurm say --coordinator, --processes and --process.')
    return jax.process_index()


def _leave(message: str, code: int) -> NoReturn:
    """Ends at once. At a usual end JAX would wait for the other processes."""
    print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run() -> None:
    """The console script `bhcnet-jax`."""
    app.run(main, flags_parser=command_line.parse)


if __name__ == '__main__':
    run()
