"""Kills runs, flips bits in checkpoints and databases, restores older databases: is the result right, or one line?

    python tests/attack_durability.py --out=counts.json [--kills=100] [--checkpoints=500] [--databases=500]

Started by hand; docs/reliability.md has its counts. Each attack is on a run directory of its own, and is drawn from
--seed and its number. What it ended as goes into --out at once; the same command goes on after an interruption. An
attack ends with the numbers of an undisturbed run, with one line, or with anything else, which is a fault.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import shutil
import signal
import sqlite3
import sys
import tempfile
import time

import jax
import numpy as np

from bhcnet_jax import files
from bhcnet_jax.errors import UserError
from bhcnet_jax.records import merge
from bhcnet_jax.run.checkpoints import Checkpoints, read
from runs import child_environment, draw_folder, flags, fork_server, numbers, recorded_epochs

EPOCHS = 4  # of each of two phases
SWEEP = [
    '--sweep=seed=0:2', '--config.augment.policy=none',
    *(f'--config.{phase}.epochs={EPOCHS}' for phase in ('balanced', 'imbalanced')),
]  # fmt: skip


class Attacker:
    """Attacks runs of two trials that train together.

    root: a folder for everything. server: starts the runs.
    """

    def __init__(self, root, server):
        self._root, self._server, self._images = root, server, draw_folder(root / 'images')
        self._finished = root / 'finished'
        self._run_well(self._finished)
        since = time.monotonic()
        self._run_well(root / 'again')  # with everything compiled
        self._seconds = time.monotonic() - since
        self._expected, self._merged = numbers(self._finished), merge.merge([self._finished])
        self._begun = {}
        for epochs in (2, EPOCHS + 1, 2 * EPOCHS - 1):
            self._begun[root / f'begun-{epochs}'] = self._interrupt(root / f'begun-{epochs}', epochs)

    def _arguments(self, workdir):
        return flags(self._images, workdir, *SWEEP)

    def _run_well(self, workdir):
        status, output = self._server.run(self._arguments(workdir))
        assert status == 0, output

    def _interrupt(self, workdir, epochs):
        """Kills a run after some epochs of all trials. Returns copies of its database from before, oldest first."""
        child, copies = self._server.start(self._arguments(workdir)), []
        while recorded_epochs(workdir) < 2 * epochs and child.is_alive():
            done = recorded_epochs(workdir)
            if done and done // 2 > len(copies):
                copies.append(workdir.with_name(f'{workdir.name}-{len(copies)}.sqlite'))
                copy_database(workdir / 'results.sqlite', copies[-1])
            time.sleep(0.001)
        kill(child)
        return copies

    def _begun_copy(self, workdir, generator):
        """A copy of a run that was killed, and the copies of its database."""
        source = list(self._begun)[generator.integers(len(self._begun))]
        return shutil.copytree(source, workdir), self._begun[source]

    def _ending(self, workdir):
        """How the same command ends in a directory that was attacked."""
        status, output = self._server.run(self._arguments(workdir))
        if status == 0:
            found = numbers(workdir)
            same = all(in_order(found[name]).equals(in_order(table)) for name, table in self._expected.items())
            return 'right' if same else f'WRONG rows\n{output}'
        errors = [line for line in output.splitlines() if line.startswith('error: ')]
        one_line = status == 2 and len(errors) == 1 and 'Traceback' not in output
        return 'one line' if one_line else f'WRONG: exit status {status}\n{output}'

    def kills(self, workdir, generator):
        """SIGKILL at a random moment of a run, from its start to its end."""
        while True:
            child = self._server.start(self._arguments(workdir))
            time.sleep(generator.uniform(0, self._seconds))
            if kill(child):
                done = epochs_done(workdir)
                when = 'before' if not done else 'after' if done == 2 * 2 * EPOCHS else 'during'
                return f'{self._ending(workdir)}, killed {when} its epochs'
            shutil.rmtree(workdir)  # it had ended before

    def checkpoints(self, workdir, generator):
        """Flips a bit in a file of the checkpoints of a run that was killed."""
        self._begun_copy(workdir, generator)
        found = [file for file in sorted(workdir.glob('checkpoints/**/*')) if file.is_file() and file.stat().st_size]
        flip(generator.choice(found), generator)
        return self._ending(workdir)

    def restores(self, workdir, generator):
        """Flips a bit in the newest phase's checkpoints of a killed run, then restores in this process as a run does.

        What a run trains on from there is a function of the arrays, so equal arrays give an undisturbed run's result.
        """
        self._begun_copy(workdir, generator)
        (batch,) = workdir.glob('checkpoints/*/batch.json')
        ids = json.loads(batch.read_text())['trials']
        complete = [each for each in batch.parent.glob('*/*') if each.name.isdecimal()]
        phase = max(each.parent for each in complete)  # balanced, then imbalanced
        saved = {int(each.name): read(phase, int(each.name), ids) for each in complete if each.parent == phase}
        found = [file for file in sorted(phase.rglob('*')) if file.is_file() and file.stat().st_size]
        flip(generator.choice(found), generator)
        with contextlib.closing(Checkpoints(phase, ids)) as checkpoints:
            restored = checkpoints.restore(like=saved[max(saved)])
        if restored is None:
            return 'all moved aside'
        epochs, tree = restored
        if not all(jax.tree.leaves(jax.tree.map(np.array_equal, tree, saved[epochs]))):
            return 'WRONG arrays'
        return 'right' if epochs == max(saved) else 'moved aside, right from the one before'

    def databases(self, workdir, generator):
        """Flips a bit in the database of a finished run, then reads it as the leaderboard and the report do."""
        workdir.mkdir()
        shutil.copy(self._finished / 'results.sqlite', workdir)
        flip(workdir / 'results.sqlite', generator)
        try:
            damaged, merged = merge.verify([workdir]).damaged, merge.merge([workdir])
        except UserError:
            return 'one line'
        if damaged:
            return 'left out and named'
        same = merged.trials.drop(columns='file').equals(self._merged.trials.drop(columns='file'))
        return 'right' if same and merged.predictions.equals(self._merged.predictions) else 'WRONG rows'

    def older(self, workdir, generator):
        """Restores an older database of a run that was killed."""
        _, copies = self._begun_copy(workdir, generator)
        (workdir / 'results.sqlite-journal').unlink(missing_ok=True)
        shutil.copy(generator.choice(copies), workdir / 'results.sqlite')
        return self._ending(workdir)


def in_order(table):
    """Rows by what they are of: trials that go on one after the other enter theirs in another order."""
    keys = [name for name in ('trial_id', 'phase', 'epoch', 'image_id') if name in table]
    return table.sort_values(keys, ignore_index=True)


def kill(child):
    """SIGKILL. Returns whether the run was still going on."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGKILL)
    return child.wait()[0] == -signal.SIGKILL


def epochs_done(workdir):
    """Rows of epochs of a run that was killed, maybe in a commit."""
    try:
        with merge.reading(workdir / 'results.sqlite') as database:
            return database.execute('SELECT count(*) FROM epochs').fetchone()[0]
    except UserError:  # killed before there were tables
        return 0


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


# Methods of Attacker, and how often.
ATTACKS = {'kills': 100, 'databases': 500, 'checkpoints': 500, 'older': 20, 'restores': 500}


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=pathlib.Path, required=True)
    for name, count in {**ATTACKS, 'seed': 0}.items():
        parser.add_argument(f'--{name}', type=int, default=count)
    asked = parser.parse_args()
    endings = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    with contextlib.ExitStack() as opened:
        root = pathlib.Path(opened.enter_context(tempfile.TemporaryDirectory()))
        environment = {**child_environment(root, devices=2), 'JAX_COMPILATION_CACHE_DIR': str(root / 'compiled')}
        attacker = Attacker(root, opened.enter_context(fork_server(environment, root / 'output')))
        for place, name in enumerate(ATTACKS):
            endings.setdefault(name, [])
            for number in range(len(endings[name]), getattr(asked, name)):
                generator = np.random.default_rng([asked.seed, place, number])
                endings[name].append(getattr(attacker, name)(root / 'attacked', generator))
                shutil.rmtree(root / 'attacked')
                files.write_json(asked.out, endings)
            counts = collections.Counter(endings[name]).most_common()
            print(f'{name}: {len(endings[name])}:', ', '.join(f'{count} {how}' for how, count in counts), flush=True)
    sys.exit(any(how.startswith('WRONG') for each in endings.values() for how in each))


if __name__ == '__main__':
    main()
