"""Reads any number of results databases as one, also while processes train; writes to none."""

import contextlib
import os
import pathlib
import shutil
import socket
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from bhcnet_jax.errors import UserError
from bhcnet_jax.records.schema import (
    SCHEMA_VERSION,
    STATUSES,
    TRIAL_COLUMNS,
    WAIT_SECONDS,
    migrate,
    refuse_newer,
    refuse_strangers,
    unusable,
    version,
)

STALE_SECONDS = 600  # without a heartbeat for this long, a process on another host counts as gone
_STARTED = time.time()


def is_abandoned(host: str | None, pid: int | None, heartbeat: float | None) -> bool:
    """Whether the process that trained a RUNNING trial is gone, so that the trial is to be picked up again.

    On this host it is gone if no process has its id, or if this process has the id but started later (in containers
    ids begin at 1 again). On another host it is gone after STALE_SECONDS without a heartbeat. host None: no process
    ever said that it trains the trial.
    """
    if host is None:
        return True
    if host != socket.gethostname():
        return time.time() - heartbeat > STALE_SECONDS
    if pid == os.getpid():
        return heartbeat < _STARTED
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's
        return False
    return False


class Merged(NamedTuple):
    """Several databases as one.

    Attributes:
      trials: a row per trial_id with TRIAL_COLUMNS and `file`, the database that it is from; missing: NA or nan.
      predictions: of the DONE trials: trial (index into trials), image_id, label, probability.
      warnings: a line each.
    """

    trials: pd.DataFrame
    predictions: pd.DataFrame
    warnings: list[str]


def merge(directories: Iterable[pathlib.Path]) -> Merged:
    """Reads every *.sqlite of run directories and of the shards in them (shard-*/), whose processes may go on training.

    Nothing is written. If a trial occurs twice, the earlier status in STATUSES wins, then the row read first; two DONE
    rows that disagree on a prediction give a warning. UserError: a directory without a database, or a database that is
    damaged, of a newer schema, or held by another process for longer than WAIT_SECONDS.
    """
    parts = [_read(path) for path in _find(directories)]
    starts = np.cumsum([0] + [len(trials) for trials, _ in parts])
    trials = pd.concat([trials for trials, _ in parts], ignore_index=True)
    predictions = pd.concat(
        [part.assign(trial=part.trial + start) for (_, part), start in zip(parts, starts, strict=False)],
        ignore_index=True,
    )
    ranked = trials.status.map({status: rank for rank, status in enumerate(STATUSES)}).sort_values(kind='stable')
    kept = trials.loc[ranked.index].drop_duplicates('trial_id').sort_index()
    warnings = _disagreements(trials[trials.status == 'DONE'], predictions)
    done = kept[kept.status == 'DONE']
    resplit = done.duplicated(['recipe_id', 'data_fingerprint', 'seed', 'fold']).sum()
    if resplit:
        warnings.append(
            f'{resplit} trials have the recipe, data, seed and fold of another one but another split: the code that '
            'splits was changed in between. Show them apart, with --where code=...'
        )
    return Merged(kept, predictions[predictions.trial.isin(kept.index)], warnings)


def look(directory: pathlib.Path) -> dict[str, str]:
    """trial_id -> status in a run directory and its shards; empty if there is none yet. Errors as of `merge`."""
    statuses: dict[str, str] = {}
    for path in _files(directory):
        with reading(path) as database:
            for trial_id, status in database.execute('SELECT trial_id, status FROM trials'):
                statuses[trial_id] = min(status, statuses.get(trial_id, status), key=STATUSES.index)
    return statuses


def _files(directory: pathlib.Path) -> list[pathlib.Path]:
    return sorted([*directory.glob('*.sqlite'), *directory.glob('shard-*/*.sqlite')])


def _find(directories: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """The databases in directories, each once."""
    found = {}
    for directory in directories:
        files = _files(directory)
        if not files:
            what = 'no .sqlite file in it' if directory.is_dir() else 'no such directory'
            raise UserError(f'{directory}: {what}; expected the run directory of a training or sweep.')
        found |= {file.resolve(): file for file in files}
    return list(found.values())


_DTYPES = {'TEXT': 'string', 'INTEGER': 'Int64', 'REAL': 'float64'}
_PREDICTION_DTYPES = {'trial': 'int64', 'image_id': 'string', 'label': 'int64', 'probability': 'float64'}


def _read(path: pathlib.Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One database's trials, and the predictions of those that are DONE; trial: position in the first."""
    with reading(path) as database:
        columns = ', '.join(TRIAL_COLUMNS)
        trials = database.execute(f'SELECT rowid, {columns} FROM trials ORDER BY rowid').fetchall()
        predictions = database.execute(
            'SELECT trials.rowid, image_id, label, probability FROM trials JOIN predictions USING (trial_id) '
            "WHERE status = 'DONE'"
        ).fetchall()
    dtypes = {name: _DTYPES[kind.split()[0]] for name, kind in TRIAL_COLUMNS.items()}
    dtypes |= {'trial': 'int64', 'file': 'string'}
    rows = pd.DataFrame(trials, columns=['trial', *TRIAL_COLUMNS]).assign(file=str(path)).astype(dtypes)
    scored = pd.DataFrame(predictions, columns=list(_PREDICTION_DTYPES)).astype(_PREDICTION_DTYPES)
    return rows, scored.assign(trial=np.searchsorted(rows.pop('trial'), scored.trial))


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[sqlite3.Connection]:
    """A database as it is now, to read; UserError if that fails."""
    with contextlib.ExitStack() as stack:
        try:
            yield _snapshot(path, stack)
        except sqlite3.DatabaseError as error:
            raise unusable(path, error, 'leave its directory out') from error


def _snapshot(path: pathlib.Path, stack: contextlib.ExitStack) -> sqlite3.Connection:
    """A database as it is now, in this schema, whoever writes to it; the file is only read."""
    database = _open_read_only(path, stack)
    refuse_newer(database, path)
    if version(database) < SCHEMA_VERSION:
        migrated = stack.enter_context(contextlib.closing(sqlite3.connect(':memory:')))
        database.backup(migrated)
        migrate(migrated)
        database = migrated
    refuse_strangers(database, path)
    return database


def _open_read_only(path: pathlib.Path, stack: contextlib.ExitStack) -> sqlite3.Connection:
    """A connection in a read transaction: all that it reads is of one moment."""
    uri = f'{path.resolve().as_uri()}?mode=ro'
    connection = sqlite3.connect(uri, uri=True, timeout=WAIT_SECONDS, isolation_level=None)
    database = stack.enter_context(contextlib.closing(connection))
    try:
        database.execute('BEGIN')
        version(database)  # BEGIN alone reads nothing
        return database
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_READONLY_ROLLBACK:
            raise
    # A process died in a commit. Its journal has to be rolled back first; a copy leaves the file as it is.
    copy = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory())) / 'copy.sqlite'
    shutil.copy(path, copy)
    shutil.copy(f'{path}-journal', f'{copy}-journal')
    return stack.enter_context(contextlib.closing(sqlite3.connect(copy)))


def _disagreements(done: pd.DataFrame, predictions: pd.DataFrame) -> list[str]:
    """A line for each pair of files whose rows of the same DONE trials have different predictions."""
    counts = done.drop_duplicates('trial_id')
    first = done.trial_id.map(pd.Series(counts.index, counts.trial_id))  # index of a row -> that of the one that counts
    again = first[first != first.index]
    lines = []
    for (file, other), pairs in again.groupby([done.file[again].to_numpy(), done.file[again.index].to_numpy()]):
        rows = predictions[predictions.trial.isin(pairs.index)]
        both = predictions[predictions.trial.isin(pairs)].merge(
            rows.assign(trial=rows.trial.map(pairs)), on=['trial', 'image_id'], how='outer'
        )
        apart = (both.probability_x - both.probability_y).abs().fillna(1)  # an image that only one of them has
        trials = both.trial[apart > 0].unique()
        if len(trials):
            lines.append(
                f'{file} and {other} disagree on the predictions of {len(trials)} trials, by up to {apart.max():.2g} '
                f'(one is {done.trial_id[trials[0]][:12]}); those of {file} count.'
            )
    return lines
