"""Trains a config: `python -m bhcnet_jax.main --config=imbalanced`. The only module of a run that defines flags."""

import os
import pathlib
import re
import shlex
import signal
import sys
import warnings
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from bhcnet_jax import configs

_CONFIG = config_flags.DEFINE_config_file(
    'config',
    None,
    'A config: the name of one that comes with the package, or the path of a .py file. Keys are overridden like '
    '--config.balanced.epochs=4.',
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string('workdir', '', 'Run directory; default: runs/<recipe>-<data set>.')
_SWEEP = flags.DEFINE_string('sweep', '', "Axes over keys, as in 'seed=0:10 split.fold=0:10'; see bhcnet_jax/sweep.py.")
_SHARD = flags.DEFINE_string('shard', '', 'i/n: train the i-th of n disjoint shares of the trials.')
_PRUNE = flags.DEFINE_string(
    'prune', '', "Stop what does worse on validation images, as in 'rungs=4,8,16 keep=1/3'; see bhcnet_jax/pruning.py."
)
_RERUN = flags.DEFINE_string('rerun', '', 'Train again what has failed, diverged, all, or trials whose id begins so.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Say what would be trained, and stop.')
_ESTIMATE = flags.DEFINE_bool('estimate', True, 'With --dry_run: measure how long it would take and how much memory.')
_FAIL_FAST = flags.DEFINE_bool('fail_fast', False, 'Stop at the first trial that fails or diverges.')
_DISTRIBUTED = flags.DEFINE_bool(
    'distributed', False, 'Several processes train together; all have the same command. Slurm tells them the rest.'
)
_COORDINATOR = flags.DEFINE_string('coordinator', '', 'host:port of process 0, with --distributed but without Slurm.')
_PROCESSES = flags.DEFINE_integer('processes', 0, 'How many processes train together.', lower_bound=0)
_PROCESS = flags.DEFINE_integer('process', -1, 'Which of them this one is, from 0 on.')


def _available() -> list[str]:
    return sorted(path.stem for path in pathlib.Path(configs.__path__[0]).glob('*.py') if path.stem != '__init__')


def _find_config(value: str) -> str:
    """The path of a config from its path or name; 'imbalanced' and 'configs/imbalanced.py' work from any folder."""
    path = pathlib.Path(value)
    if path.is_file():
        return value
    shipped = pathlib.Path(configs.__path__[0]) / f'{path.stem}.py'
    if path.parent in (pathlib.Path('.'), pathlib.Path('configs')) and shipped.is_file():
        return str(shipped)
    _fail(f'--config={value}: no such file, and no config of that name; expected a path or one of '
          f'{", ".join(_available())}.')  # fmt: skip


def _fail(message: str) -> None:
    print(f'error: {" ".join(message.split())}', file=sys.stderr)
    sys.exit(2)


def _culprit(argv: list[str], message: str) -> str:
    """The argument whose key the config library complains of; it names the last part only."""
    named = re.search(r"\w+", message)
    keys = [argument.partition('=')[0] for argument in argv]
    return next((key for key in keys if named and named[0] in key.split('.')), '--config')


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; what is wrong with them is said in one line."""
    argv = list(argv)
    for place, argument in enumerate(argv):
        name, equals, value = argument.partition('=')
        if name in ('--config', '-config') and equals:
            argv[place] = f'{name}={_find_config(value)}'
        elif name in ('--config', '-config') and place + 1 < len(argv):
            argv[place + 1] = _find_config(argv[place + 1])
    try:
        rest = flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:
        _fail(f'{_culprit(argv, str(error))}: no such key. {error} Every key is in configs/base.py.')
    except (flags.Error, TypeError, ValueError) as error:
        _fail(str(error))
    if len(rest) > 1:
        _fail(f'{rest[1]}: unexpected argument; keys are set like --config.seed=1.')
    if _CONFIG.value is None:
        _fail(f'--config is missing; expected a path or one of {", ".join(_available())}.')
    return rest


def _keep_compiled_programs() -> None:
    """Has JAX keep what it compiles in the user's cache directory, so that the next process does not compile it again.

    JAX_COMPILATION_CACHE_DIR, which JAX reads itself, names another folder, or none if empty. What is in the folder is
    run as it is, so nobody else may write there.
    """
    import jax

    if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
        return
    folder = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'bhcnet_jax/compiled'
    try:
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
    _keep_compiled_programs()
    if not flags.FLAGS['verbosity'].present:
        logging.set_verbosity(logging.WARNING)  # orbax tells thirty lines about every checkpoint
    command = shlex.join(['python', '-m', 'bhcnet_jax.main', *sys.argv[1:]])
    if _DISTRIBUTED.value and not _join_others():
        return
    # Imported here so that a wrong flag is answered at once.
    from bhcnet_jax import engine, train
    from bhcnet_jax.batch import Stopped
    from bhcnet_jax.datasets import DatasetError
    from bhcnet_jax.engine import ProcessLost
    from bhcnet_jax.results import ResultsError
    from bhcnet_jax.run_dir import RunDirError
    from bhcnet_jax.trial import ConfigError

    options = train.Options(
        workdir=_WORKDIR.value,
        command=command,
        sweep=_SWEEP.value,
        shard=_SHARD.value,
        prune=_PRUNE.value,
        rerun=_RERUN.value,
        dry_run=_DRY_RUN.value,
        estimate=_ESTIMATE.value,
        fail_fast=_FAIL_FAST.value,
    )
    try:
        well = train.run(_CONFIG.value, options)
    except (ConfigError, DatasetError, ResultsError, RunDirError) as error:
        _fail(str(error))
    except ProcessLost as error:
        _leave(f'{error} Finished epochs are saved. To go on: {command}')
    except Stopped as stop:
        print(f'Stopped by {signal.Signals(stop.signum).name} after {stop}; all is saved. To go on: {command}')
        sys.exit(128 + stop.signum)
    except KeyboardInterrupt:  # before the first epoch, or for the second time
        print(f'\nInterrupted; finished epochs are saved. To go on: {command}', file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    finally:
        engine.dismiss()
    sys.exit(0 if well else 1)


def _join_others() -> bool:
    """Joins the processes that train together. Returns whether this one leads; the others return when all is done."""
    from bhcnet_jax import engine

    try:
        leads = engine.start(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    except (ValueError, RuntimeError) as error:
        _fail(f'--distributed: {error} Without Slurm say --coordinator, --processes and --process.')
    except engine.ProcessLost as error:
        _leave(str(error))
    if not leads:
        try:
            engine.follow()
        except engine.ProcessLost as error:
            _leave(str(error))
    return leads


def _leave(message: str) -> None:
    """Ends at once. At a usual end JAX would wait for the process that is gone."""
    print(f'error: {message}', file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def run() -> None:
    """The console script `bhcnet-jax`."""
    app.run(main, flags_parser=_parse)


if __name__ == '__main__':
    run()
