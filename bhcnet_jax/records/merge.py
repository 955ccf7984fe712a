"""Reads any number of results databases as one, also while processes train; writes to none."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import socket
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bhcnet_jax.errors import UserError
from bhcnet_jax.records import digests
from bhcnet_jax.records.schema import (
    BOARD_COLUMNS,
    IS_PRETRAINING,
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

if TYPE_CHECKING:  # takes long to import, and `look` does without
    import pandas as pd

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
      trials: a row per trial_id with BOARD_COLUMNS and `file`, the database that it is from; missing: NA or nan.
      predictions: of the DONE trials: trial (index into trials), image_id, label, probability.
      warnings: a line each.
    """

    trials: pd.DataFrame
    predictions: pd.DataFrame
    warnings: list[str]


def merge(directories: Iterable[pathlib.Path]) -> Merged:
    """Reads every *.sqlite of run directories and of the shards in them (shard-*/), whose processes may go on training.

    Nothing is written. Trainings on drawn heads that trials share are left out. If a trial occurs twice, the earlier
    status in STATUSES wins, then the row read first; two DONE
    rows that disagree on a prediction give a warning. A trial that is not as it was written (`digests.py`) is left out
    with a warning. UserError: a directory without a database, or a database that is
    damaged, of a newer schema, or held by another process for longer than WAIT_SECONDS.
    """
    import pandas as pd

    parts = [_read(path) for path in _find(directories)]
    starts = np.cumsum([0] + [len(part.trials) for part in parts])
    trials = pd.concat([part.trials for part in parts], ignore_index=True)
    scored = [part.predictions for part in parts]
    predictions = pd.concat(
        [part.assign(trial=part.trial + start) for part, start in zip(scored, starts, strict=False)], ignore_index=True
    )
    left_out = [line for part in parts for line in part.warnings]
    ranked = trials.status.map({status: rank for rank, status in enumerate(STATUSES)}).sort_values(kind='stable')
    kept = trials.loc[ranked.index].drop_duplicates('trial_id').sort_index()
    warnings = left_out + _disagreements(trials[trials.status == 'DONE'], predictions)
    done = kept[kept.status == 'DONE']
    resplit = done.duplicated(['recipe_id', 'data_fingerprint', 'seed', 'fold']).sum()
    if resplit:
        warnings.append(
            f'{resplit} trials have the recipe, data, seed and fold of another one but another split: the code that '
            'splits was changed in between. Show them apart, with --where code=...'
        )
    return Merged(kept, predictions[predictions.trial.isin(kept.index)], warnings)


def pretrainings(directory: pathlib.Path) -> pd.DataFrame:
    """The trainings on drawn heads that the trials of a run directory and its shards share, each once.

    Columns: trial_id, recipe, recipe_id, seed, phase, phases, epochs, status, settings (JSON), file. Errors as of
    `merge`.
    """
    import pandas as pd

    names = ('trial_id', 'recipe', 'recipe_id', 'seed', 'phase', 'phases', 'epochs', 'status', 'settings')
    parts = []
    for path in _find([directory]):
        with reading(path) as database:
            query = f'SELECT {", ".join(names)} FROM trials WHERE {IS_PRETRAINING} ORDER BY rowid'
            parts += [(*row, str(path)) for row in database.execute(query)]
    rows = pd.DataFrame(parts, columns=[*names, 'file'])
    ranked = rows.status.map({status: rank for rank, status in enumerate(STATUSES)}).sort_values(kind='stable')
    return rows.loc[ranked.index].drop_duplicates('trial_id').sort_index()


def is_run_directory(path: pathlib.Path) -> bool:
    """Whether there is a database that `merge` would read."""
    return bool(_files(path))


def look(directory: pathlib.Path) -> dict[str, str]:
    """trial_id -> status in a run directory and its shards; empty if there is none yet. Errors as of `merge`."""
    statuses: dict[str, str] = {}
    for path in _files(directory):
        with reading(path) as database:
            for trial_id, status in database.execute('SELECT trial_id, status FROM trials'):
                if status in STATUSES:  # else it is damaged
                    statuses[trial_id] = min(status, statuses.get(trial_id, status), key=STATUSES.index)
    return statuses


def damaged(directory: pathlib.Path) -> list[str]:
    """Ids of trials in a run directory and its shards that are not as they were written. Errors as of `merge`."""
    found = []
    for path in _files(directory):
        with reading(path) as database:
            found += digests.damaged(database)
    return found


def epochs_done(trials: pd.DataFrame) -> dict[str, int]:
    """trial_id -> epochs in its database. trials: rows of `Merged.trials`. Errors as of `merge`."""
    found: dict[str, int] = {}
    for file, rows in trials.groupby('file'):
        query = f'SELECT trial_id, count(*) FROM epochs WHERE trial_id IN ({", ".join("?" * len(rows))}) GROUP BY 1'
        with reading(pathlib.Path(file)) as database:
            found |= dict(database.execute(query, list(rows.trial_id)))
    return found


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


def _read(path: pathlib.Path) -> Merged:
    """One database's trials, and the predictions of those that are DONE; trial: position in the first."""
    import pandas as pd

    with reading(path) as database:
        left_out = digests.damaged(database)
        columns = ', '.join(BOARD_COLUMNS)
        query = f'SELECT rowid, {columns} FROM trials WHERE NOT ({IS_PRETRAINING}) ORDER BY rowid'
        trials = database.execute(query).fetchall()
        predictions = database.execute(
            'SELECT trials.rowid, image_id, label, probability FROM trials JOIN predictions USING (trial_id) '
            "WHERE status = 'DONE'"
        ).fetchall()
    if left_out:
        gone = {rowid for rowid, trial_id, *_ in trials if trial_id in left_out}
        trials = [row for row in trials if row[0] not in gone]
        predictions = [row for row in predictions if row[0] not in gone]
    dtypes = {name: _DTYPES[TRIAL_COLUMNS[name].split()[0]] for name in BOARD_COLUMNS}
    dtypes |= {'trial': 'int64', 'file': 'string'}
    try:
        rows = pd.DataFrame(trials, columns=['trial', *BOARD_COLUMNS]).assign(file=str(path)).astype(dtypes)
        scored = pd.DataFrame(predictions, columns=list(_PREDICTION_DTYPES)).astype(_PREDICTION_DTYPES)
    except (ValueError, TypeError) as error:
        raise UserError(f'{path}: {error}. Restore it from a copy, or leave its directory out.') from error
    warnings = [f'{_explain(path, trial_id)} It is left out.' for trial_id in left_out]
    return Merged(rows, scored.assign(trial=np.searchsorted(rows.pop('trial'), scored.trial)), warnings)


def _explain(path: pathlib.Path, trial_id: str) -> str:
    return f'{path}: trial {trial_id} is damaged: its row, epochs or predictions are not those that were written.'


class Verified(NamedTuple):
    """What `verify` found: how many trials have a digest, how many finished ones have none, a line per damaged one."""

    checked: int
    unchecked: int
    damaged: list[str]


def verify(directories: Iterable[pathlib.Path]) -> Verified:
    """Compares all trials with their digests. Errors as of `merge`."""
    checked = unchecked = 0
    lines = []
    for path in _find(directories):
        with reading(path) as database:
            damage = database.execute('PRAGMA integrity_check').fetchone()[0]
            if damage != 'ok':
                raise sqlite3.DatabaseError(damage)
            lines += [_explain(path, trial_id) for trial_id in digests.damaged(database)]
            with_digest, without = database.execute(
                "SELECT count(digest), count(CASE WHEN digest IS NULL AND status = 'DONE' THEN 1 END) FROM trials"
            ).fetchone()
        checked, unchecked = checked + with_digest, unchecked + without
    return Verified(checked, unchecked, lines)


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
    # A damaged text must not make the whole file unreadable: its trial's digest tells.
    database.text_factory = lambda text: text.decode('utf-8', 'replace')
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
    import pandas as pd

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
