"""The results database of one run directory: trials, their epochs and their predictions in SQLite, and its export.

Everything about an epoch is committed in one transaction, perhaps with other epochs, before a checkpoint of it is
written; a resumed trial writes the same rows again. Each process that trains writes a file of its own; `merge.py` reads
any number of them as one. Files keep SQLite's rollback journal: its other mode, WAL, needs memory that all processes
share, which a network file system does not have (https://sqlite.org/wal.html).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import pathlib
import socket
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bhcnet_jax import files
from bhcnet_jax.records import digests
from bhcnet_jax.records.schema import (
    BOARD_COLUMNS,
    COUNTS,
    EPOCH_COLUMNS,
    IS_PRETRAINING,
    PROPORTIONS,
    SCORES,
    SETTINGS,
    STATE_COLUMNS,
    SUMMARIZED,
    TABLES,
    WAIT_SECONDS,
    migrate,
    refuse_newer,
    refuse_strangers,
    unusable,
)
from bhcnet_jax.records.spreadsheet import as_text
from bhcnet_jax.statistics import metrics

if TYPE_CHECKING:  # takes long to import, and is needed at the end of a training only
    import pandas as pd

_RESULT_COLUMNS = ', '.join(name for name in BOARD_COLUMNS if name not in STATE_COLUMNS)
HAVE_COLUMNS = ('seed', 'split.fold', 'split.seed')  # keys of a config
EXPORTS = {
    'results.csv': f"SELECT {_RESULT_COLUMNS} FROM trials WHERE status = 'DONE' ORDER BY rowid",
    'curves.csv': 'SELECT * FROM epochs WHERE trial_id NOT IN '
    f'(SELECT trial_id FROM trials WHERE {IS_PRETRAINING}) ORDER BY rowid',
    'predictions.csv': 'SELECT * FROM predictions ORDER BY rowid',
}


def score_columns(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """COUNTS, SCORES and the intervals of PROPORTIONS as columns of a trial's row; arguments as of `metrics.counts`."""
    scores = metrics.evaluate(labels, probabilities)
    counts = metrics.Counts(*(int(scores[name]) for name in COUNTS))
    ends = metrics.intervals(counts)
    return {
        **counts._asdict(),
        **{name: float(scores[name]) for name in SCORES},
        **{f'{name}_low': float(ends[name][0]) for name in PROPORTIONS},
        **{f'{name}_high': float(ends[name][1]) for name in PROPORTIONS},
    }


class Results:
    """The database of one run directory, written by one process.

    Rows are mappings from column names to values; nan is stored as NULL. Every method that changes something commits
    it in one transaction, whole or not at all. UserError if the file cannot be used: damaged, locked by another
    program, the disk full or gone. KeyError for a trial that was never entered.
    """

    def __init__(self, path: pathlib.Path):
        """Opens or makes the database, and migrates one of an older schema.

        UserError if it is damaged or of a newer schema.
        """
        self._path = path
        with self._explaining():
            # Transactions begin where we say so: sqlite3 alone would leave changes of tables out of them.
            self._database = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None)
        try:
            self._prepare()
        except BaseException:
            self._database.close()
            raise

    def _prepare(self) -> None:
        with self._explaining():
            refuse_newer(self._database, self._path)
            damage = self._database.execute('PRAGMA quick_check').fetchone()[0]
            if damage != 'ok':
                raise sqlite3.DatabaseError(damage)
        with self._transaction():
            migrate(self._database)
            refuse_strangers(self._database, self._path)

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        """Makes what SQLite says of the file a UserError; mistakes in a statement's values stay as they are."""
        try:
            yield
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError, sqlite3.InternalError):
            raise
        except sqlite3.DatabaseError as error:
            raise unusable(self._path, error, 'use another run directory') from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._explaining():
            self._database.execute('BEGIN IMMEDIATE')
            with self._database:
                yield

    def _query(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._explaining():
            return self._database.execute(statement, values).fetchall()

    def _frame(self, statement: str, values: Sequence[Any] = ()) -> pd.DataFrame:
        import pandas as pd

        with self._explaining():
            try:
                return pd.read_sql_query(statement, self._database, params=values or None)
            except pd.errors.DatabaseError as error:
                raise error.__cause__ from error

    def close(self) -> None:
        """Closes the database; everything committed stays."""
        self._database.close()

    def status(self, trial_id: str) -> str | None:
        """One of STATUSES, or None for a trial that was never entered."""
        rows = self._query('SELECT status FROM trials WHERE trial_id = ?', [trial_id])
        return rows[0][0] if rows else None

    def statuses(self) -> dict[str, str]:
        """trial_id -> one of STATUSES, for all trials."""
        return dict(self._query('SELECT trial_id, status FROM trials'))

    def damaged(self) -> list[str]:
        """Ids of trials that are not as they were written, see `digests.damaged`."""
        with self._explaining():
            return digests.damaged(self._database)

    def epochs_done(self) -> dict[tuple[str, str], int]:
        """(trial_id, phase) -> how many of its epochs are recorded, for all trials."""
        rows = self._query('SELECT trial_id, phase, count(*) FROM epochs GROUP BY trial_id, phase')
        return {(trial_id, phase): count for trial_id, phase, count in rows}

    def ended(self) -> dict[str, tuple[str, float | None]]:
        """trial_id -> status and accuracy (on the validation part where there is one), of trials that are over."""
        rows = self._query(
            "SELECT trial_id, status, coalesce(val_accuracy, accuracy) FROM trials "
            "WHERE status IN ('DONE', 'FAILED', 'DIVERGED')"
        )
        return {trial_id: (status, accuracy) for trial_id, status, accuracy in rows}

    def _enter(self, rows: Iterable[Mapping[str, Any]]) -> None:
        settings = 'settings = coalesce(trials.settings, excluded.settings)'
        update = f'UPDATE SET {_added("excluded")}, {settings}'
        self._insert('trials', [{**row, 'status': 'PENDING'} for row in rows], update)

    def inherit(self, trial_id: str, ancestor: str) -> None:
        """Copies the epochs of the trial that this one goes on from, and appends that trial's SETTINGS."""
        columns = ', '.join(name for name in EPOCH_COLUMNS if name != 'trial_id')
        with self._transaction():
            self._database.execute(
                f'INSERT OR REPLACE INTO epochs (trial_id, {columns}) '
                f'SELECT ?, {columns} FROM epochs WHERE trial_id = ? ORDER BY rowid',
                [trial_id, ancestor],
            )
            self._database.execute(
                f'UPDATE trials SET {_added("ancestor")} FROM trials AS ancestor '
                'WHERE trials.trial_id = ? AND ancestor.trial_id = ?',
                [trial_id, ancestor],
            )

    def begin(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Sets trials that are not DONE to RUNNING in this process; for an existing one, appends only new SETTINGS."""
        rows = [row for row in rows if self.status(row['trial_id']) not in ('DONE', 'PRETRAINED')]
        with self._transaction():
            self._enter(rows)
            state = {'host': socket.gethostname(), 'pid': os.getpid(), 'heartbeat': time.time()}
            for row in rows:
                self._set(row['trial_id'], 'RUNNING', state)

    def record_epoch(self, epochs: Iterable[Mapping[str, Any]], predictions: Iterable[Mapping[str, Any]]) -> None:
        """Commits epochs of every lane; the predictions, of each lane's last one, replace earlier ones."""
        epochs = list(epochs)
        with self._transaction():
            self._insert('epochs', epochs)
            self._insert('predictions', predictions)
            self._database.executemany(
                "UPDATE trials SET heartbeat = ? WHERE trial_id = ? AND status = 'RUNNING'",
                [(time.time(), trial_id) for trial_id in {row['trial_id'] for row in epochs}],
            )

    def finish(self, trial_id: str, scores: Mapping[str, Any]) -> None:
        """Enters a trial's scores and sets it to DONE."""
        self.finish_many({trial_id: scores})

    def end_pretraining(self, trial_ids: Iterable[str]) -> None:
        """Sets pre-trainings to PRETRAINED."""
        with self._transaction():
            for trial_id in trial_ids:
                self._set(trial_id, 'PRETRAINED', {})

    def finish_many(self, scores: Mapping[str, Mapping[str, Any]]) -> None:
        """The same for all trials of a batch at once: trial_id -> scores."""
        with self._transaction():
            for trial_id, values in scores.items():
                self._set(trial_id, 'DONE', values)
                digest = digests.compute(self._database, 'trial_id = ?', [trial_id])[trial_id]
                self._database.execute('UPDATE trials SET digest = ? WHERE trial_id = ?', [digest, trial_id])

    def fail(self, trial_id: str, error: str) -> None:
        """Sets a trial to FAILED. error: the traceback, or the one line that says it all."""
        with self._transaction():
            self._set(trial_id, 'FAILED', {'error': error})

    def diverge(self, trial_id: str, phase: str, epoch: int) -> None:
        """Sets a trial to DIVERGED. epoch: where its loss was first not finite, 1-based inside the phase."""
        with self._transaction():
            self._set(trial_id, 'DIVERGED', {'diverged_phase': phase, 'diverged_epoch': epoch})

    def prune(self, trial_ids: Iterable[str]) -> None:
        """Sets trials to PRUNED."""
        with self._transaction():
            for trial_id in trial_ids:
                self._set(trial_id, 'PRUNED', {})

    def val_losses(self, phase: str, epoch: int) -> dict[str, float]:
        """trial_id -> loss on its validation part after an epoch, 1-based inside the phase."""
        return dict(
            self._query(
                'SELECT trial_id, val_loss FROM epochs WHERE phase = ? AND epoch = ? AND val_loss IS NOT NULL',
                [phase, epoch],
            )
        )

    def _set(self, trial_id: str, status: str, values: Mapping[str, Any]) -> None:
        """Sets a status and values, and clears the rest of STATE_COLUMNS."""
        values = {**dict.fromkeys(STATE_COLUMNS), **values, 'status': status, 'trial_id': trial_id}
        assignments = ', '.join(f'{name} = :{name}' for name in values)
        changed = self._database.execute(f'UPDATE trials SET {assignments} WHERE trial_id = :trial_id', values)
        if not changed.rowcount:
            raise KeyError(f'{self._path}: trial {trial_id} was never entered.')

    def forget(self, trial_ids: Iterable[str]) -> None:
        """Deletes trials with their epochs and predictions, so that they can be trained anew."""
        ids = [[trial_id] for trial_id in trial_ids]
        with self._transaction():
            for table in TABLES:
                self._database.executemany(f'DELETE FROM {table} WHERE trial_id = ?', ids)

    def _insert(self, table: str, rows: Iterable[Mapping[str, Any]], if_there: str = '') -> None:
        """Inserts rows. if_there: SQL for a row whose key is there already; '': its columns are overwritten."""
        for names, alike in itertools.groupby(rows, key=tuple):
            places = ', '.join(f':{name}' for name in names)
            # Not OR REPLACE: that deletes the row and enters another at the end of the table.
            update = 'UPDATE SET ' + ', '.join(f'{name} = excluded.{name}' for name in names)
            self._database.executemany(
                f'INSERT INTO {table} ({", ".join(names)}) VALUES ({places}) '
                f'ON CONFLICT DO {if_there or update}',
                alike,
            )

    def read(self, table: str, trial_id: str) -> pd.DataFrame:
        """One trial's rows of 'trials', 'epochs' or 'predictions', in the order in which they were first entered."""
        return self._frame(f'SELECT * FROM {table} WHERE trial_id = ? ORDER BY rowid', [trial_id])

    def scores(self) -> dict[str, dict[str, float | None]]:
        """trial_id -> SUMMARIZED, None where undefined; of all trials that are DONE, in the order of their rows."""
        found = self._query(
            f"SELECT trial_id, {', '.join(SUMMARIZED)} FROM trials WHERE status = 'DONE' ORDER BY rowid"
        )
        return {trial_id: dict(zip(SUMMARIZED, values, strict=True)) for trial_id, *values in found}

    def export(self, directory: pathlib.Path, swept: Iterable[str] = ()) -> None:
        """Writes results.csv (finished trials), curves.csv and predictions.csv; each appears complete or not at all.

        Trials that are not as they were written are left out. swept: keys of configs; each that has no column yet is
        one of results.csv, empty where a trial has no such key or was trained before settings were recorded.
        """
        damaged, keys = self.damaged(), [key for key in swept if key not in HAVE_COLUMNS]
        for name, query in EXPORTS.items():
            found = self._frame(query)
            found = found[~found.trial_id.isin(damaged)]
            if name == 'results.csv' and keys:
                stored = dict(self._query('SELECT trial_id, settings FROM trials'))
                values = [_values(stored[each], keys) for each in found.trial_id]
                found = found.assign(**{key: [each[place] for each in values] for place, key in enumerate(keys)})
            with files.replacing(directory / name) as file:
                as_text(found).to_csv(file, index=False)


def _values(settings: str | None, keys: Sequence[str]) -> list[Any]:
    """What a trial has for dotted keys; None where it has no such key. settings: JSON, as in the database."""
    tree, found = json.loads(settings or '{}'), []
    for key in keys:
        value = functools.reduce(lambda inner, name: inner.get(name, {}), key.split('.'), tree)
        found.append(tuple(value) if isinstance(value, list) else None if isinstance(value, dict) else value)
    return found


def _added(source: str) -> str:
    """SQL assignments that append the SETTINGS of a source to those of a row of trials, unless they are there."""
    pairs = [(f'trials.{name}', f'{source}.{name}') for name in SETTINGS]
    values = [f"iif(instr({mine}, {theirs}) = 0, {mine} || '; ' || {theirs}, {mine})" for mine, theirs in pairs]
    return ', '.join(f'{name} = {value}' for name, value in zip(SETTINGS, values, strict=True))
