"""The results database: trials, their epochs and their predictions in SQLite, and its export as CSV files.

A trial's row says RUNNING until its last epoch is in, then DONE. Everything about an epoch is committed in one
transaction before the epoch's checkpoint is written; a resumed trial writes the same rows again.
"""

import contextlib
import os
import pathlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

SCHEMA_VERSION = 1
COUNTS = ('tp', 'tn', 'fp', 'fn')
PROPORTIONS = ('accuracy', 'precision', 'sensitivity', 'specificity')  # those with an interval
SCORES = (*PROPORTIONS, 'f1', 'auc', 'log_loss', 'brier')

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
EXPORTS = {
    'results.csv': "SELECT * FROM trials WHERE status = 'DONE' ORDER BY rowid",
    'curves.csv': 'SELECT * FROM epochs ORDER BY rowid',
    'predictions.csv': 'SELECT * FROM predictions ORDER BY rowid',
}


class ResultsError(ValueError):
    """The database cannot be used; one line that says why and what to do."""


class Results:
    """The database of one run directory, written by one process.

    Rows are mappings from column names to values; nan is stored as NULL.
    """

    def __init__(self, path: pathlib.Path):
        """Opens or makes the database. ResultsError if it is damaged or of another schema."""
        self._path = path
        try:
            self._database = sqlite3.connect(path)
            version = self._database.execute('PRAGMA user_version').fetchone()[0]
            damage = self._database.execute('PRAGMA quick_check').fetchone()[0]
        except sqlite3.DatabaseError as error:
            raise ResultsError(f'{path}: {error}. Restore it from a copy, or use another --workdir.') from error
        if damage != 'ok':
            raise ResultsError(f'{path}: {damage}. Restore it from a copy, or use another --workdir.')
        if version not in (0, SCHEMA_VERSION):
            raise ResultsError(
                f'{path}: schema {version}, this version of bhcnet_jax writes {SCHEMA_VERSION}. '
                'Use the version that wrote it, or another --workdir.'
            )
        with self._transaction():
            for table, (columns, key) in TABLES.items():
                listed = ', '.join(f'{name} {kind}' for name, kind in columns.items())
                self._database.execute(f'CREATE TABLE IF NOT EXISTS {table} ({listed}{key})')
            self._database.execute(f'PRAGMA user_version = {SCHEMA_VERSION}')

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
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
        """RUNNING, DONE, or None for a trial that has not begun."""
        row = self._database.execute('SELECT status FROM trials WHERE trial_id = ?', [trial_id]).fetchone()
        return row and row[0]

    def begin(self, row: Mapping[str, Any]) -> None:
        """Enters a trial as RUNNING, unless it is there already."""
        if self.status(row['trial_id']) is None:
            with self._transaction():
                self._insert('trials', [{**row, 'status': 'RUNNING'}])

    def record_epoch(self, epochs: Iterable[Mapping[str, Any]], predictions: Iterable[Mapping[str, Any]]) -> None:
        """Commits one epoch of every lane, and the predictions that it ended with in place of earlier ones."""
        with self._transaction():
            self._insert('epochs', epochs)
            self._insert('predictions', predictions)

    def finish(self, trial_id: str, scores: Mapping[str, Any]) -> None:
        """Enters a trial's scores and sets it to DONE."""
        scores = {**scores, 'status': 'DONE'}
        assignments = ', '.join(f'{name} = :{name}' for name in scores)
        with self._transaction():
            self._database.execute(
                f'UPDATE trials SET {assignments} WHERE trial_id = :trial_id', {**scores, 'trial_id': trial_id}
            )

    def _insert(self, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            names, places = ', '.join(row), ', '.join(f':{name}' for name in row)
            self._database.execute(f'INSERT OR REPLACE INTO {table} ({names}) VALUES ({places})', row)

    def read(self, table: str, trial_id: str) -> pd.DataFrame:
        """One trial's rows of 'trials', 'epochs' or 'predictions', in the order they were first entered in."""
        return pd.read_sql_query(
            f'SELECT * FROM {table} WHERE trial_id = ? ORDER BY rowid', self._database, params=[trial_id]
        )

    def export(self, directory: pathlib.Path) -> None:
        """Writes results.csv (finished trials), curves.csv and predictions.csv; each appears complete or not at all."""
        for name, query in EXPORTS.items():
            partial = directory / f'{name}.partial'
            pd.read_sql_query(query, self._database).to_csv(partial, index=False)
            os.replace(partial, directory / name)
