"""How long it takes until something happens: imports, the first training step, the preparation of the images.

Run by itself, it prepares and audits the 200 images in a process of its own and prints the seconds as JSON.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from typing import Any

from contest import spread
from ml_collections import ConfigDict

PROGRAM = [sys.executable, '-m', 'bhcnet_jax.main']
# One epoch of one step of the paper's network.
FIRST_STEP = ('--config=balanced', '--config.dataset.name=phantom', '--config.augment.samples=32',
              '--config.balanced.epochs=1')  # fmt: skip


def measure_startup(folder: pathlib.Path, rounds: int) -> dict[str, Any]:
    """Seconds of each part of a start, in turn, `rounds` times; median, lowest and highest.

    Cold: nothing that JAX compiled is kept. Images: of HEAD_CT_DIR, or the phantom's, prepared from the files, and then
    read again as they were kept.
    """
    environment = _own_folders(folder)
    of_images = {**environment, 'TFDS_DATA_DIR': str(folder / 'images')}
    parts = []
    for number in range(-1, rounds):  # round -1 prepares the phantom and fills the caches of Python and matplotlib
        shutil.rmtree(folder / 'cache', ignore_errors=True)
        shutil.rmtree(folder / 'images', ignore_errors=True)
        name, first = _images(of_images)
        _, again = _images(of_images)
        parts.append({
            'python': _python('', environment),
            'import bhcnet_jax.main': _python('import bhcnet_jax.main', environment),
            'import bhcnet_jax.run.train': _python('import bhcnet_jax.run.train', environment),
            **_first_step(folder / f'{number}-cold', environment, 'cold'),
            **_first_step(folder / f'{number}-warm', environment, 'warm'),
            **{f'images, first time: {key}': value for key, value in first.items()},
            **{f'images, again: {key}': value for key, value in again.items()},
        })  # fmt: skip
    return {'images of': name, 'seconds': {key: spread([each[key] for each in parts[1:]]) for key in parts[0]}}


def _first_step(workdir: pathlib.Path, environment: dict[str, str], how: str) -> dict[str, float]:
    """Seconds from the start of a run to its compiled program, to its first epoch, and to its end."""
    moments = {'compiled': 'Compiled in ', 'first step': '1/1 '}
    seconds = _watch([*PROGRAM, *FIRST_STEP, f'--workdir={workdir}'], environment, moments)
    return {f'start to {moment}, {how}': passed for moment, passed in seconds.items()}


def _watch(command: list[str], environment: dict[str, str], moments: dict[str, str]) -> dict[str, float]:
    """Seconds from the start of a command to the first line that matches each regular expression, and to its end."""
    seconds, start = {}, time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as run:
        for line in run.stdout:
            for moment, pattern in moments.items():
                if moment not in seconds and re.match(pattern, line):
                    seconds[moment] = time.perf_counter() - start
    seconds['end'] = time.perf_counter() - start
    if run.returncode:
        raise subprocess.CalledProcessError(run.returncode, command)
    return seconds


MOMENTS = {
    'data line': 'Data: ',
    'first epoch': r'\d+/\d+ ',
    'answer': r'Test part: metrics|\d+ trials: ',
}
OF_A_CPU = {'balanced': ('--config=balanced',)}
OF_A_GPU = {
    **OF_A_CPU,
    '64 seeds, bfloat16': ('--config=balanced', '--config.model.dtype=bfloat16', '--sweep=seed=0:64'),
    '1000 seeds, bfloat16': ('--config=balanced', '--config.model.dtype=bfloat16', '--sweep=seed=0:1000'),
}


def measure_commands(folder: pathlib.Path, commands: dict[str, tuple[str, ...]] | None = None) -> dict[str, Any]:
    """Seconds of whole commands from their start, each twice: cold, with nothing kept, and warm, in another folder.

    Images: of HEAD_CT_DIR, or the phantom's, whose banner the first run then prints. commands: OF_A_GPU where JAX has
    one, else OF_A_CPU. Training: the seconds of the epochs, as the trials record them.
    """
    backend = subprocess.run(
        [sys.executable, '-c', 'import jax; print(jax.default_backend())'], capture_output=True, text=True, check=True
    ).stdout.strip()
    commands = commands or (OF_A_CPU if backend == 'cpu' else OF_A_GPU)
    measured = {}
    for number, (name, flags) in enumerate(commands.items()):
        environment = _own_folders(folder / str(number))
        for how in ('cold', 'warm'):
            workdir = folder / str(number) / how
            seconds = _watch([*PROGRAM, *flags, f'--workdir={workdir}'], environment, MOMENTS)
            with contextlib.closing(sqlite3.connect(workdir / 'results.sqlite')) as database:
                (training,) = database.execute('SELECT sum(train_seconds) FROM trials').fetchone()
            measured[f'{name}, {how}'] = {**seconds, 'training': training}
    return {'backend': backend, 'seconds from the start': measured}


def _own_folders(folder: pathlib.Path) -> dict[str, str]:
    """An environment in which nothing of earlier runs is kept, but what runs in it keep for each other is."""
    kept = {key: value for key, value in os.environ.items() if key != 'JAX_COMPILATION_CACHE_DIR'}
    return kept | {
        'XDG_CACHE_HOME': str(folder / 'cache'),  # of the program
        'TFDS_DATA_DIR': str(folder / 'prepared'),
        'MPLCONFIGDIR': str(folder / 'matplotlib'),
        'PYTHONUNBUFFERED': '1',
    }


def _python(program: str, environment: dict[str, str]) -> float:
    """Seconds of a process that runs a line of Python."""
    start = time.perf_counter()
    subprocess.run([sys.executable, '-c', program], env=environment, check=True)
    return time.perf_counter() - start


def _images(environment: dict[str, str]) -> tuple[str, dict[str, float]]:
    """Runs this file; the name of the data set, and seconds by part."""
    start = time.perf_counter()
    output = subprocess.run([sys.executable, __file__], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    whole = time.perf_counter() - start
    name, seconds = json.loads(output.stdout.splitlines()[-1])
    return name, {**seconds, 'whole process': whole}


def _prepare_images() -> None:
    """Prints the name of the data set and the seconds to load its images, to find groups and to audit them."""
    from bhcnet_jax import audit
    from bhcnet_jax.datasets import input_pipeline
    from bhcnet_jax.plan import groups

    times = [time.perf_counter()]
    name = 'head_ct' if os.environ.get('HEAD_CT_DIR') else 'phantom'
    image_set = input_pipeline.load(ConfigDict({'name': name, 'dir': '', 'image_size': 128}))
    times.append(time.perf_counter())
    grouping = groups.find_groups(image_set)
    times.append(time.perf_counter())
    audit.audit(image_set, grouping)
    times.append(time.perf_counter())
    parts = ('load (read, decode, resize)', 'find groups', 'audit')
    seconds = {part: end - start for part, start, end in zip(parts, times, times[1:], strict=False)}
    print(json.dumps([name, seconds]))


if __name__ == '__main__':
    _prepare_images()
