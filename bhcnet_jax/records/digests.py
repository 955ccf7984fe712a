"""Digests of finished trials, by which a row that changed after it was written is noticed.

A trial's digest is the SHA-256 of its row, its epochs and its predictions: of all columns that are not NULL, so that a
column added later changes none.
"""

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from typing import Any

from bhcnet_jax.records.schema import STATUSES

_ORDERS = {'trials': 'trial_id', 'epochs': 'trial_id, phase, epoch', 'predictions': 'trial_id, image_id'}


def compute(
    database: sqlite3.Connection, where: str = 'digest IS NOT NULL', values: Sequence[Any] = ()
) -> dict[str, str]:
    """trial_id -> digest, hexadecimal, of what a database holds now. where: SQL, which rows of trials, with values."""
    hashes: dict[str, Any] = {}
    for table, order in _ORDERS.items():
        rows = database.execute(
            f'SELECT * FROM {table} WHERE trial_id IN (SELECT trial_id FROM trials WHERE {where}) ORDER BY {order}',
            values,
        )
        names = [column[0] for column in rows.description]
        for row in rows:
            cells = {name: cell for name, cell in zip(names, row, strict=True) if cell is not None and name != 'digest'}
            text = json.dumps([table, cells], sort_keys=True, default=repr)  # a damaged cell may hold bytes
            hashes.setdefault(cells['trial_id'], hashlib.sha256()).update(text.encode())
    return {trial_id: found.hexdigest() for trial_id, found in hashes.items()}


def damaged(database: sqlite3.Connection) -> list[str]:
    """Ids of trials whose digest is not that of what the database holds, or whose status is none of STATUSES."""
    known = ', '.join(f"'{status}'" for status in STATUSES)
    strange = f'SELECT trial_id FROM trials WHERE status NOT IN ({known}) OR status IS NULL'
    found, stored = compute(database), database.execute('SELECT trial_id, digest FROM trials WHERE digest IS NOT NULL')
    changed = [trial_id for trial_id, digest in stored if found.get(trial_id) != digest]
    return list(dict.fromkeys([*changed, *(trial_id for (trial_id,) in database.execute(strange))]))
