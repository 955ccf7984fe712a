"""Flips bits in checkpoints and databases, and restores older databases: is the result right, or said to be wrong?

    python tests/attack_durability.py --checkpoints=40 --databases=400 --older=12

Started by hand; docs/reliability.md has its counts. Each attack is on a copy of a run directory of its own. What it
ended as is counted: the rows of an undisturbed run, one line, or anything else, which is a fault.
"""

import argparse
import collections
import contextlib
import os
import pathlib
import shutil
import signal
import sqlite3
import sys
import tempfile
import time

import numpy as np

from bhcnet_jax.errors import UserError
from bhcnet_jax.records import merge
from runs import child_environment, draw_folder, flags, fork_server, numbers, recorded_epochs

EPOCHS = 4  # of each of two phases
SWEEP = [
    '--sweep=seed=0:2', '--config.augment.policy=none',
    *(f'--config.{phase}.epochs={EPOCHS}' for phase in ('balanced', 'imbalanced')),
]  # fmt: skip


def flip(path, generator):
    """Flips one bit of a file."""
    data = bytearray(path.read_bytes())
    bit = int(generator.integers(8 * len(data)))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def copy_database(source, target):
    """As it is between two commits."""
    with contextlib.closing(sqlite3.connect(source)) as database, contextlib.closing(sqlite3.connect(target)) as copy:
        database.backup(copy)


def interrupt(server, arguments, workdir, epochs):
    """Kills a run after some epochs of all trials. Returns copies of its database from before, oldest first."""
    child, copies = server.start(arguments), []
    while recorded_epochs(workdir) < 2 * epochs and child.is_alive():
        done = recorded_epochs(workdir)
        if done and done // 2 > len(copies):
            copies.append(workdir.with_name(f'{workdir.name}-{len(copies)}.sqlite'))
            copy_database(workdir / 'results.sqlite', copies[-1])
        time.sleep(0.001)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGKILL)
    child.wait()
    return copies


def ending(server, arguments, workdir, expected):
    """How the same command ends in a directory that was attacked."""
    status, output = server.run(arguments)
    if status == 0:
        found = numbers(workdir)
        return 'right' if all(found[name].equals(expected[name]) for name in expected) else f'WRONG rows\n{output}'
    errors = [line for line in output.splitlines() if line.startswith('error: ')]
    one_line = status == 2 and len(errors) == 1 and 'Traceback' not in output
    return 'one line' if one_line else f'WRONG: exit status {status}\n{output}'


def reading(directory, expected):
    """How reading a database that was attacked ends."""
    try:
        found = merge.verify([directory])
        merged = merge.merge([directory])
    except UserError:
        return 'one line'
    if found.damaged:
        return 'left out and named'
    same = merged.trials.drop(columns='file').equals(expected.trials.drop(columns='file'))
    return 'right' if same and merged.predictions.equals(expected.predictions) else 'WRONG rows'


def attack_databases(count, finished, root, generator):
    """Flips bits in the database of a finished run."""
    expected, endings = merge.merge([finished]), collections.Counter()
    for _ in range(count):
        directory = root / 'flipped'
        directory.mkdir()
        shutil.copy(finished / 'results.sqlite', directory)
        flip(directory / 'results.sqlite', generator)
        endings[reading(directory, expected)] += 1
        shutil.rmtree(directory)
    return endings


def show(name, endings):
    """Prints how often attacks of one kind ended how."""
    counts = ', '.join(f'{count} {how}' for how, count in endings.most_common())
    print(f'{name}: {endings.total()}: {counts}', flush=True)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, count in (('checkpoints', 60), ('databases', 500), ('older', 20), ('seed', 0)):
        parser.add_argument(f'--{name}', type=int, default=count)
    asked = parser.parse_args()
    generator = np.random.default_rng(asked.seed)
    with contextlib.ExitStack() as opened:
        root = pathlib.Path(opened.enter_context(tempfile.TemporaryDirectory()))
        images = draw_folder(root / 'images')
        server = opened.enter_context(fork_server(child_environment(root, devices=2), root / 'output'))

        def arguments(workdir):
            return flags(images, workdir, *SWEEP)

        status, output = server.run(arguments(root / 'finished'))
        assert status == 0, output
        expected = numbers(root / 'finished')
        begun = {}
        for epochs in (2, EPOCHS + 1, 2 * EPOCHS - 1):
            workdir = root / f'begun-{epochs}'
            begun[workdir] = interrupt(server, arguments(workdir), workdir, epochs)
        flipped = attack_databases(asked.databases, root / 'finished', root, generator)
        counts = {'bits flipped in a database': flipped}
        show('bits flipped in a database', flipped)
        for name, count in (('bits flipped in checkpoints', asked.checkpoints), ('older databases', asked.older)):
            endings = counts[name] = collections.Counter()
            for number in range(count):
                source = list(begun)[number % len(begun)]
                workdir = shutil.copytree(source, root / 'attacked')
                if name == 'older databases':
                    (workdir / 'results.sqlite-journal').unlink(missing_ok=True)
                    shutil.copy(generator.choice(begun[source]), workdir / 'results.sqlite')
                else:
                    files = [file for file in sorted(workdir.glob('checkpoints/**/*')) if file.is_file()]
                    flip(generator.choice([file for file in files if file.stat().st_size]), generator)
                endings[ending(server, arguments(workdir), workdir, expected)] += 1
                shutil.rmtree(workdir)
            show(name, endings)
    sys.exit(any(how.startswith('WRONG') for endings in counts.values() for how in endings))


if __name__ == '__main__':
    main()
