"""Runs of a tiny recipe as real processes, and what they leave behind."""

import contextlib
import json
import os
import pathlib
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from PIL import Image

PHASES = {'balanced': 12, 'imbalanced': 12}
# Imports all once, then is forked for every run: a run is a process of its own, without the seconds of the imports.
# A line with its arguments and its output file comes in; its process id goes out, and its status when it ended.
FORK_SERVER = """
import json, os, resource, signal, sys, warnings
# As in a terminal: a background job of a script, as which the tests may run, hands down that SIGINT is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from bhcnet_jax import main
from bhcnet_jax.run import checkpoints, train
import grain, pandas, sklearn.metrics, statsmodels.stats.proportion, tensorboardX, tensorflow_datasets
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()  # whose threads would be missing after the fork
warnings.filterwarnings('ignore', message='.*fork', category=DeprecationWarning)
for line in sys.stdin:
    run = json.loads(line)
    child = os.fork()
    if not child:
        os.dup2(os.open(run['output'], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        if run['file_limit']:
            resource.setrlimit(resource.RLIMIT_FSIZE, (run['file_limit'], resource.RLIM_INFINITY))
        sys.argv = ['main', *run['arguments']]
        main.run()
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def draw_folder(folder: pathlib.Path) -> pathlib.Path:
    """Makes a folder with labels.csv and 40 images of noise, with a bright square on those labelled 1."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    rows = ['file,label']
    for number in range(40):
        pixels = generator.integers(0, 120, (24, 20), dtype=np.uint8)
        if number % 2:
            pixels[8:16, 6:14] = 230
        Image.fromarray(pixels).save(folder / f'{number:02}.png')
        rows.append(f'{number:02}.png,{number % 2}')
    (folder / 'labels.csv').write_text('\n'.join(rows) + '\n')
    return folder


def xla_flags(devices: int) -> str:
    """Few optimisations, as most programs here run once; CI compiles as for a user. devices: of the CPU."""
    quick = '' if 'CI' in os.environ else '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true '
    return f'{quick}--xla_force_host_platform_device_count={devices}'


def flags(folder: pathlib.Path, workdir: pathlib.Path, *more: str) -> list[str]:
    """Of a recipe whose epochs take milliseconds, on the images of a labelled folder."""
    return [
        '--config=base', '--config.recipe=tiny', f'--workdir={workdir}',
        '--config.dataset.name=folder', f'--config.dataset.dir={folder}', '--config.dataset.image_size=16',
        '--config.model.filters=(2,3)', '--config.model.recurrent_units=8', '--config.batch_size=8',
        '--config.augment.samples=20', '--config.imbalanced.positives=30', '--config.engine.checkpoint_seconds=0',
        *(f'--config.{phase}.epochs={epochs}' for phase, epochs in PHASES.items()),
        *more,
    ]  # fmt: skip


def child_environment(folder: pathlib.Path, devices: int = 1) -> dict[str, str]:
    """Of processes that share the prepared data in a folder. devices: of the CPU."""
    return {
        **os.environ,
        'XLA_FLAGS': xla_flags(devices),
        'TFDS_DATA_DIR': str(folder / 'tfds'),
    }


class Child:
    """A run in the making."""

    def __init__(self, server: subprocess.Popen, output: pathlib.Path):
        self._server, self._output = server, output
        self.pid = int(server.stdout.readline())

    def is_alive(self) -> bool:
        """False once it has ended, before anybody has asked how."""
        return pathlib.Path(f'/proc/{self.pid}').exists()

    def wait(self) -> tuple[int, str]:
        """Its exit status, as of subprocess, and all that it printed."""
        return int(self._server.stdout.readline()), self._output.read_text()


class Server:
    """Starts runs in processes forked from one that has imported everything."""

    def __init__(self, process: subprocess.Popen, output: pathlib.Path):
        self._process, self._output = process, output

    def start(self, arguments: Sequence[str], file_limit: int = 0) -> Child:
        """One at a time. file_limit: bytes that no file may exceed, 0 for none."""
        run = {'arguments': arguments, 'output': str(self._output), 'file_limit': file_limit}
        self._process.stdin.write(json.dumps(run) + '\n')
        self._process.stdin.flush()
        return Child(self._process, self._output)

    def run(self, arguments: Sequence[str], file_limit: int = 0) -> tuple[int, str]:
        """Starts and waits."""
        return self.start(arguments, file_limit).wait()


@contextlib.contextmanager
def fork_server(environment: dict[str, str], output: pathlib.Path, before: str = '') -> Iterator[Server]:
    """output: a file for what a run prints. before: what the server executes before it imports the rest."""
    with subprocess.Popen(
        [sys.executable, '-c', before + FORK_SERVER],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        yield Server(process, output)


def numbers(workdir: pathlib.Path) -> dict[str, pd.DataFrame]:
    """All that a run computes, without the times that it took."""
    tables = {name: pd.read_csv(workdir / f'{name}.csv') for name in ('results', 'curves', 'predictions')}
    tables['results'] = tables['results'].drop(columns=['train_seconds', 'images_per_second'])
    tables['curves'] = tables['curves'].drop(columns='seconds')
    return tables


def recorded_epochs(workdir: pathlib.Path, phase: str = '%') -> int:
    """Rows in the database, of all trials and a phase or all; 0 where there is no database yet."""
    try:
        uri = f'file:{workdir}/results.sqlite?mode=ro'
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as database:
            return database.execute('SELECT count(*) FROM epochs WHERE phase LIKE ?', [phase]).fetchone()[0]
    except sqlite3.OperationalError:  # not there yet
        return 0
