"""The results database: trials, their epochs and their predictions in SQLite; its export, and many read as one.

A trial is PENDING, then RUNNING until its last epoch is in, then DONE; or FAILED (it raised), DIVERGED (its loss is not
finite any more) or PRUNED (others did better on their validation parts, see `pruning.py`; it can still go on).
Everything about an epoch is committed in one transaction before the epoch's checkpoint is written; a resumed trial
writes the same rows again.

Each process that trains writes a file of its own; `merge` reads any number of them as one. Files keep SQLite's rollback
journal: its other mode, WAL, needs memory that all processes share, which a network file system does not have
(https://sqlite.org/wal.html).

`python -m bhcnet_jax.results WORKDIR...` prints the leaderboard, see `report/leaderboard.py`.
"""

import contextlib
import itertools
import os
import pathlib
import shutil
import socket
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bhcnet_jax import metrics

SCHEMA_VERSION = 2
# What turns a database of an older schema into one of the next: {version: its SQL statements}. Opening applies all
# that are missing in one transaction. A change of the columns below raises SCHEMA_VERSION and adds an entry. A new
# database is made from the columns themselves.
MIGRATIONS = {
    1: (
        'ALTER TABLE trials ADD COLUMN n_val INTEGER',
        'ALTER TABLE trials ADD COLUMN val_loss REAL',
        'ALTER TABLE trials ADD COLUMN val_accuracy REAL',
        'ALTER TABLE epochs ADD COLUMN val_loss REAL',
        'ALTER TABLE epochs ADD COLUMN val_accuracy REAL',
    ),
}
STATUSES = ('DONE', 'DIVERGED', 'RUNNING', 'PRUNED', 'FAILED', 'PENDING')  # of two rows of one trial the earlier counts
STALE_SECONDS = 600  # without a heartbeat for this long, a process on another host counts as gone
WAIT_SECONDS = 60  # for another process to let go of the file: a reader, or a writer that is committing
COUNTS = ('tp', 'tn', 'fp', 'fn')
PROPORTIONS = ('accuracy', 'precision', 'sensitivity', 'specificity')  # those with an interval
SCORES = (*PROPORTIONS, 'f1', 'auc', 'log_loss', 'brier')
SUMMARIZED = (*SCORES, 'val_loss', 'val_accuracy')  # what a sweep's summary shows of a trial
SETTINGS = ('code', 'hardware', 'engine')  # under which a trial was trained; equal settings give equal bits

STATE_COLUMNS = {  # empty in a finished trial's row, so that it does not tell who was interrupted when
    'host': 'TEXT',  # of the process that trains it, while RUNNING
    'pid': 'INTEGER',
    'heartbeat': 'REAL',  # when that process last gave a sign of life, Unix seconds
    'error': 'TEXT',  # why it FAILED
    'diverged_phase': 'TEXT',
    'diverged_epoch': 'INTEGER',  # 1-based inside the phase
}
# The first columns are the table that readers ask for; those after images_per_second make a row stand on its own.
TRIAL_COLUMNS = {
    'trial_id': 'TEXT PRIMARY KEY',
    'recipe': 'TEXT',
    'model': 'TEXT',
    'dataset': 'TEXT',
    'seed': 'INTEGER',
    'fold': 'INTEGER',
    'phase': 'TEXT',  # the last one
    'epochs': 'INTEGER',  # of that phase
    **dict.fromkeys(COUNTS, 'INTEGER'),
    **dict.fromkeys(SCORES, 'REAL'),
    'train_seconds': 'REAL',  # all epochs with their augmentation and evaluation, without compilation
    'images_per_second': 'REAL',  # augmented training images over train_seconds
    'n_test': 'INTEGER',
    'n_val': 'INTEGER',
    'val_loss': 'REAL',  # after the last epoch; NULL without a validation part
    'val_accuracy': 'REAL',
    **{f'{name}_{end}': 'REAL' for name in PROPORTIONS for end in ('low', 'high')},
    'status': 'TEXT',
    'phases': 'TEXT',
    'scheme': 'TEXT',
    'folds': 'INTEGER',
    'split_seed': 'INTEGER',
    'recipe_id': 'TEXT',
    'data_fingerprint': 'TEXT',
    'split_digest': 'TEXT',
    'code': 'TEXT',  # version and commit
    'hardware': 'TEXT',
    'engine': 'TEXT',  # lanes per device, devices, spread: equal settings give equal bits
    **STATE_COLUMNS,
}
EPOCH_COLUMNS = {
    'trial_id': 'TEXT',
    'dataset': 'TEXT',
    'phase': 'TEXT',
    'epoch': 'INTEGER',  # 1-based inside the phase
    'train_loss': 'REAL',  # with class weights and dropout, over the epoch
    'train_accuracy': 'REAL',
    'test_loss': 'REAL',
    'test_accuracy': 'REAL',
    **dict.fromkeys(COUNTS, 'INTEGER'),
    'val_loss': 'REAL',  # NULL without a validation part
    'val_accuracy': 'REAL',
    'seconds': 'REAL',
    'images': 'INTEGER',
}
PREDICTION_COLUMNS = {
    'trial_id': 'TEXT',
    'image_id': 'TEXT',
    'label': 'INTEGER',
    'probability': 'REAL',  # of hemorrhage
    'dataset': 'TEXT',
}
TABLES = {
    'trials': (TRIAL_COLUMNS, ''),
    'epochs': (EPOCH_COLUMNS, ', PRIMARY KEY (trial_id, phase, epoch)'),
    'predictions': (PREDICTION_COLUMNS, ', PRIMARY KEY (trial_id, image_id)'),
}
_RESULT_COLUMNS = ', '.join(name for name in TRIAL_COLUMNS if name not in STATE_COLUMNS)
EXPORTS = {
    'results.csv': f"SELECT {_RESULT_COLUMNS} FROM trials WHERE status = 'DONE' ORDER BY rowid",
    'curves.csv': 'SELECT * FROM epochs ORDER BY rowid',
    'predictions.csv': 'SELECT * FROM predictions ORDER BY rowid',
}


class ResultsError(ValueError):
    """The database cannot be used; one line that says why and what to do."""


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


_STARTED = time.time()


def is_abandoned(host: str | None, pid: int | None, heartbeat: float | None) -> bool:
    """Whether the process that trained a RUNNING trial is gone, so that the trial is to be picked up again.

    On this host: no process has its id, or only this one, which got it from an earlier one (containers count from
    1). On another host: no heartbeat for STALE_SECONDS. host None: no process ever said that it trains it.
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


class Results:
    """The database of one run directory, written by one process.

    Rows are mappings from column names to values; nan is stored as NULL. Every method that changes something commits
    it in one transaction, whole or not at all. ResultsError if the disk is full or gone; KeyError for a trial that
    was never entered.
    """

    def __init__(self, path: pathlib.Path):
        """Opens or makes the database, and migrates one of an older schema.

        ResultsError if it is damaged or of a newer schema.
        """
        self._path = path
        try:
            # Transactions begin where we say so: sqlite3 alone would leave changes of tables out of them.
            self._database = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None)
        except sqlite3.DatabaseError as error:
            raise _unusable(path, error) from error
        try:
            self._prepare()
        except BaseException:
            self._database.close()
            raise

    def _prepare(self) -> None:
        try:
            _refuse_newer(self._database, self._path)
            damage = self._database.execute('PRAGMA quick_check').fetchone()[0]
        except sqlite3.DatabaseError as error:
            raise _unusable(self._path, error) from error
        if damage != 'ok':
            raise _unusable(self._path, damage)
        with self._transaction():
            _migrate(self._database)
            _refuse_strangers(self._database, self._path)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._database.execute('BEGIN IMMEDIATE')
            with self._database:
                yield
        except sqlite3.OperationalError as error:  # a full or vanished disk, a lost permission
            raise ResultsError(
                f'{self._path}: {error}. What was committed before is safe; see to it and start again.'
            ) from error

    def close(self) -> None:
        """Closes the database; everything committed stays."""
        self._database.close()

    def status(self, trial_id: str) -> str | None:
        """One of STATUSES, or None for a trial that was never entered."""
        row = self._database.execute('SELECT status FROM trials WHERE trial_id = ?', [trial_id]).fetchone()
        return row and row[0]

    def statuses(self) -> dict[str, str]:
        """trial_id -> one of STATUSES, for all trials."""
        return dict(self._database.execute('SELECT trial_id, status FROM trials'))

    def ended(self) -> dict[str, tuple[str, float | None]]:
        """trial_id -> status and accuracy (on the validation part where there is one), of trials that are over."""
        rows = self._database.execute(
            "SELECT trial_id, status, coalesce(val_accuracy, accuracy) FROM trials "
            "WHERE status IN ('DONE', 'FAILED', 'DIVERGED')"
        )
        return {trial_id: (status, accuracy) for trial_id, status, accuracy in rows}

    def abandoned(self) -> list[str]:
        """The ids of RUNNING trials whose process is gone, see `is_abandoned`."""
        rows = self._database.execute("SELECT trial_id, host, pid, heartbeat FROM trials WHERE status = 'RUNNING'")
        return [trial_id for trial_id, *process in rows if is_abandoned(*process)]

    def enter(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Enters trials as PENDING; to one that is there already only SETTINGS are added that it has not had yet."""
        with self._transaction():
            self._enter(rows)

    def _enter(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._insert('trials', [{**row, 'status': 'PENDING'} for row in rows], f'UPDATE SET {_added("excluded")}')

    def inherit(self, trial_id: str, ancestor: str) -> None:
        """Gives a trial the epochs of another one that it goes on from, and adds SETTINGS of that one to its own."""
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
        """Enters trials if need be, and sets those that are not DONE to RUNNING in this process."""
        rows = [row for row in rows if self.status(row['trial_id']) != 'DONE']
        with self._transaction():
            self._enter(rows)
            self._claim((row['trial_id'] for row in rows), socket.gethostname(), os.getpid())

    def claim(self, trial_ids: Iterable[str], host: str, pid: int) -> None:
        """Sets trials to RUNNING in a process; why one had failed before is forgotten."""
        with self._transaction():
            self._claim(trial_ids, host, pid)

    def _claim(self, trial_ids: Iterable[str], host: str, pid: int) -> None:
        state = {'host': host, 'pid': pid, 'heartbeat': time.time()}
        for trial_id in trial_ids:
            self._set(trial_id, 'RUNNING', state)

    def beat(self, trial_ids: Iterable[str]) -> None:
        """A sign of life of RUNNING trials, for where no epoch ends for long; `record_epoch` gives one too."""
        with self._transaction():
            self._beat(trial_ids)

    def _beat(self, trial_ids: Iterable[str]) -> None:
        self._database.executemany(
            "UPDATE trials SET heartbeat = ? WHERE trial_id = ? AND status = 'RUNNING'",
            [(time.time(), trial_id) for trial_id in trial_ids],
        )

    def record_epoch(self, epochs: Iterable[Mapping[str, Any]], predictions: Iterable[Mapping[str, Any]]) -> None:
        """Commits one epoch of every lane, and the predictions that it ended with in place of earlier ones."""
        epochs = list(epochs)
        with self._transaction():
            self._insert('epochs', epochs)
            self._insert('predictions', predictions)
            self._beat(row['trial_id'] for row in epochs)

    def finish(self, trial_id: str, scores: Mapping[str, Any]) -> None:
        """Enters a trial's scores and sets it to DONE."""
        self.finish_many({trial_id: scores})

    def finish_many(self, scores: Mapping[str, Mapping[str, Any]]) -> None:
        """The same for all trials of a batch at once: trial_id -> scores."""
        with self._transaction():
            for trial_id, values in scores.items():
                self._set(trial_id, 'DONE', values)

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
            self._database.execute(
                'SELECT trial_id, val_loss FROM epochs WHERE phase = ? AND epoch = ? AND val_loss IS NOT NULL',
                [phase, epoch],
            )
        )

    def _set(self, trial_id: str, status: str, values: Mapping[str, Any]) -> None:
        """A new status; what the old one left in STATE_COLUMNS goes."""
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
        """Rows of equal columns follow each other. if_there: done to one of that key; '': it is brought up to date."""
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
        """One trial's rows of 'trials', 'epochs' or 'predictions', in the order they were first entered in."""
        return pd.read_sql_query(
            f'SELECT * FROM {table} WHERE trial_id = ? ORDER BY rowid', self._database, params=[trial_id]
        )

    def scores(self) -> dict[str, dict[str, float | None]]:
        """trial_id -> SUMMARIZED, None where undefined; of all trials that are DONE, in the order of their rows."""
        found = self._database.execute(
            f"SELECT trial_id, {', '.join(SUMMARIZED)} FROM trials WHERE status = 'DONE' ORDER BY rowid"
        )
        return {trial_id: dict(zip(SUMMARIZED, values, strict=True)) for trial_id, *values in found}

    def export(self, directory: pathlib.Path) -> None:
        """Writes results.csv (finished trials), curves.csv and predictions.csv; each appears complete or not at all."""
        for name, query in EXPORTS.items():
            partial = directory / f'{name}.partial'
            pd.read_sql_query(query, self._database).to_csv(partial, index=False)
            os.replace(partial, directory / name)


def _added(source: str) -> str:
    """SQL assignments that add the SETTINGS of a source to those of a row of trials, unless it has them already."""
    pairs = [(f'trials.{name}', f'{source}.{name}') for name in SETTINGS]
    values = [f"iif(instr({mine}, {theirs}) = 0, {mine} || '; ' || {theirs}, {mine})" for mine, theirs in pairs]
    return ', '.join(f'{name} = {value}' for name, value in zip(SETTINGS, values, strict=True))


def _unusable(path: pathlib.Path, reason: object) -> ResultsError:
    return ResultsError(f'{path}: {reason}. Restore it from a copy, or use another run directory.')


def _refuse_newer(database: sqlite3.Connection, path: pathlib.Path) -> None:
    version = _version(database)
    if version > SCHEMA_VERSION:
        raise ResultsError(
            f'{path}: schema {version}, this version of bhcnet_jax writes {SCHEMA_VERSION}. '
            'Use the version that wrote it, or another run directory.'
        )


def _version(database: sqlite3.Connection) -> int:
    return database.execute('PRAGMA user_version').fetchone()[0]  # 0: nothing in it yet


def _migrate(database: sqlite3.Connection) -> None:
    """Brings a database that is new or of an older schema to this one. The transaction is the caller's."""
    version = _version(database)
    if version == 0:
        statements = [_create(table, columns, key) for table, (columns, key) in TABLES.items()]
    else:
        statements = itertools.chain.from_iterable(MIGRATIONS[older] for older in range(version, SCHEMA_VERSION))
    for statement in statements:
        database.execute(statement)
    database.execute(f'PRAGMA user_version = {SCHEMA_VERSION}')


def _create(table: str, columns: Mapping[str, str], key: str) -> str:
    listed = ', '.join(f'{name} {kind}' for name, kind in columns.items())
    return f'CREATE TABLE {table} ({listed}{key})'


def _refuse_strangers(database: sqlite3.Connection, path: pathlib.Path) -> None:
    for table, (columns, _) in TABLES.items():
        found = {row[1] for row in database.execute(f'PRAGMA table_info({table})')}
        if found != set(columns):
            wrong = ', '.join(sorted(found ^ set(columns))[:3])
            raise ResultsError(
                f'{path}: its table {table} has other columns ({wrong}) than those of schema {SCHEMA_VERSION}. '
                'Use another run directory.'
            )


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

    Nothing is ever written to one. Of two rows of one trial that whose status comes first in STATUSES counts, then that
    read first; two that are DONE and disagree on a prediction give a warning. ResultsError: a directory without a
    database, a damaged one, one of a newer schema or that another process holds for longer than WAIT_SECONDS.
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
    """trial_id -> status in a run directory and the shards in it, which may not be there yet; errors as of `merge`."""
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
            raise ResultsError(f'{directory}: {what}; expected the run directory of a training or sweep.')
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
    """A database as it is now, to read; ResultsError if that fails."""
    with contextlib.ExitStack() as stack:
        try:
            yield _snapshot(path, stack)
        except sqlite3.OperationalError as error:  # no permission, or another process does not let go
            raise ResultsError(f'{path}: {error}. See to it, or leave its directory out.') from error
        except sqlite3.DatabaseError as error:
            raise ResultsError(f'{path}: {error}. Restore it from a copy, or leave its directory out.') from error


def _snapshot(path: pathlib.Path, stack: contextlib.ExitStack) -> sqlite3.Connection:
    """A database as it is now, in this schema, whoever writes to it; the file is only read."""
    database = _open_read_only(path, stack)
    _refuse_newer(database, path)
    if _version(database) < SCHEMA_VERSION:
        migrated = stack.enter_context(contextlib.closing(sqlite3.connect(':memory:')))
        database.backup(migrated)
        _migrate(migrated)
        database = migrated
    _refuse_strangers(database, path)
    return database


def _open_read_only(path: pathlib.Path, stack: contextlib.ExitStack) -> sqlite3.Connection:
    """A connection in a read transaction: all that it reads is of one moment."""
    uri = f'{path.resolve().as_uri()}?mode=ro'
    connection = sqlite3.connect(uri, uri=True, timeout=WAIT_SECONDS, isolation_level=None)
    database = stack.enter_context(contextlib.closing(connection))
    try:
        database.execute('BEGIN')
        _version(database)  # BEGIN alone reads nothing
        return database
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_READONLY_ROLLBACK:
            raise
    # Its process died in a commit. What that left has to be rolled back first, and it is: in a copy.
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


if __name__ == '__main__':
    from bhcnet_jax.report import leaderboard

    leaderboard.main()
