"""The tables of a results database: their columns, statuses, and how an older schema becomes this one.

A trial is PENDING, then RUNNING until its last epoch is in, then DONE; or FAILED (it raised), DIVERGED (its loss is not
finite any more) or PRUNED (others did better on their validation parts, see `run/pruning.py`; it can still go on).
PRETRAINED is the end of what is no trial by itself: the training on drawn heads that trials share, scored on no image.
"""

import itertools
import pathlib
import sqlite3
from collections.abc import Mapping

from bhcnet_jax.errors import UserError

SCHEMA_VERSION = 3
# From each older schema to the next: {version: SQL statements}. Opening a database applies those that are missing, in
# one transaction. Whoever changes the columns below raises SCHEMA_VERSION and adds an entry. A new database is made
# from the columns themselves. A migration that fills a column of finished trials sets their digest to NULL.
MIGRATIONS = {
    1: (
        'ALTER TABLE trials ADD COLUMN n_val INTEGER',
        'ALTER TABLE trials ADD COLUMN val_loss REAL',
        'ALTER TABLE trials ADD COLUMN val_accuracy REAL',
        'ALTER TABLE epochs ADD COLUMN val_loss REAL',
        'ALTER TABLE epochs ADD COLUMN val_accuracy REAL',
    ),
    2: (
        'ALTER TABLE trials ADD COLUMN settings TEXT',
        'ALTER TABLE trials ADD COLUMN digest TEXT',
    ),
}
# If a trial occurs twice, the earlier wins.
STATUSES = ('DONE', 'PRETRAINED', 'DIVERGED', 'RUNNING', 'PRUNED', 'FAILED', 'PENDING')
COUNTS = ('tp', 'tn', 'fp', 'fn')
PROPORTIONS = ('accuracy', 'precision', 'sensitivity', 'specificity')  # those with an interval
SCORES = (*PROPORTIONS, 'f1', 'auc', 'log_loss', 'brier')
SUMMARIZED = (*SCORES, 'val_loss', 'val_accuracy')  # what a sweep's summary shows of a trial
WAIT_SECONDS = 60  # until another process, a reader or a committing writer, lets go of the file
SETTINGS = ('code', 'hardware', 'engine')  # under which a trial was trained; equal settings give equal bits
# Rows of trainings on drawn heads that trials share. They have no split, and readers of trials do not see them.
IS_PRETRAINING = "phases IS 'phantom' AND scheme IS NULL"
STATE_COLUMNS = {  # empty in the row of a finished trial, which must not depend on interruptions
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
    'engine': 'TEXT',  # lanes per device, devices, spread, XLA_FLAGS: equal settings give equal bits
    **STATE_COLUMNS,
    'settings': 'TEXT',  # the config that spans the trial, JSON, without what changes no result; NULL: from before
    'digest': 'TEXT',  # of a finished trial, see `digests.py`; NULL: from before
}
BOARD_COLUMNS = tuple(name for name in TRIAL_COLUMNS if name not in ('settings', 'digest'))  # what readers see
EPOCH_COLUMNS = {
    'trial_id': 'TEXT',
    'dataset': 'TEXT',
    'phase': 'TEXT',
    'epoch': 'INTEGER',  # 1-based inside the phase
    'train_loss': 'REAL',  # with class weights and dropout, over the epoch; in phase autoencoder of reconstructions
    'train_accuracy': 'REAL',  # NULL in phase autoencoder
    'test_loss': 'REAL',  # this and what follows is NULL there and while heads are drawn, which no test image sees
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
    'probability': 'REAL',  # of the positive class
    'dataset': 'TEXT',
}
TABLES = {
    'trials': (TRIAL_COLUMNS, ''),
    'epochs': (EPOCH_COLUMNS, ', PRIMARY KEY (trial_id, phase, epoch)'),
    'predictions': (PREDICTION_COLUMNS, ', PRIMARY KEY (trial_id, image_id)'),
}


def unusable(path: pathlib.Path, error: sqlite3.DatabaseError, otherwise: str) -> UserError:
    """What SQLite says of a database, and what to do about it. otherwise: what else one can do, as in 'wait'."""
    if getattr(error, 'sqlite_errorcode', 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return UserError(f'{path}: another program holds it ({error}). Close that and start again.')
    # A full or vanished disk, a lost permission; else the file itself is damaged.
    what = 'See to it and start again' if isinstance(error, sqlite3.OperationalError) else 'Restore it from a copy'
    return UserError(f'{path}: {error}. {what}, or {otherwise}.')


def refuse_newer(database: sqlite3.Connection, path: pathlib.Path) -> None:
    """UserError if a database is of a schema that this version does not know."""
    found = version(database)
    if found > SCHEMA_VERSION:
        raise UserError(
            f'{path}: schema {found}, this version of bhcnet_jax writes {SCHEMA_VERSION}. '
            'Use the version that wrote it, or another run directory.'
        )


def version(database: sqlite3.Connection) -> int:
    """The schema of a database; 0: nothing in it yet."""
    return database.execute('PRAGMA user_version').fetchone()[0]


def migrate(database: sqlite3.Connection) -> None:
    """Brings a database that is new or of an older schema to this one. The transaction is the caller's."""
    found = version(database)
    if found == 0:
        statements = [_create(table, columns, key) for table, (columns, key) in TABLES.items()]
    else:
        statements = itertools.chain.from_iterable(MIGRATIONS[older] for older in range(found, SCHEMA_VERSION))
    for statement in statements:
        database.execute(statement)
    database.execute(f'PRAGMA user_version = {SCHEMA_VERSION}')


def _create(table: str, columns: Mapping[str, str], key: str) -> str:
    listed = ', '.join(f'{name} {kind}' for name, kind in columns.items())
    return f'CREATE TABLE {table} ({listed}{key})'


def refuse_strangers(database: sqlite3.Connection, path: pathlib.Path) -> None:
    """UserError if the tables of a database have other columns than this schema."""
    for table, (columns, _) in TABLES.items():
        found = {row[1] for row in database.execute(f'PRAGMA table_info({table})')}
        if found != set(columns):
            wrong = ', '.join(sorted(found ^ set(columns))[:3])
            raise UserError(
                f'{path}: its table {table} has other columns ({wrong}) than those of schema {SCHEMA_VERSION}. '
                'Use another run directory.'
            )
