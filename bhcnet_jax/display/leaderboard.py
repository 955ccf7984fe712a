"""The leaderboard in a terminal: a table of recipes for each data set."""

import numpy as np
import pandas as pd
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from bhcnet_jax.records import merge
from bhcnet_jax.records.merge import Merged
from bhcnet_jax.records.recipes import METRICS


def view(merged: Merged, board: pd.DataFrame) -> Group:
    """What is shown: trials by status, warnings, a table per data set."""
    lines = [_progress(merged.trials), *(f'warning: {line}' for line in merged.warnings)]
    if board.empty:
        lines.append('No trial is finished, so there is no leaderboard yet.')
    tables = [_table(rows) for _, rows in board.groupby(['dataset', 'data_fingerprint'], sort=False)]
    return Group(*(Text(line) for line in lines), *tables)


def _progress(trials: pd.DataFrame) -> str:
    counts = ', '.join(f'{count} {status}' for status, count in trials.status.value_counts().items())
    running = trials.loc[trials.status == 'RUNNING', ['host', 'pid', 'heartbeat']].astype(object)
    running = running.where(running.notna(), None)
    gone = sum(map(merge.is_abandoned, running.host, running.pid, running.heartbeat))
    return f'Trials: {counts or "none"}' + (f' (RUNNING: the process of {gone} is gone)' if gone else '')


_HEADINGS = {  # broken, since their columns are the first to shrink in a narrow terminal
    'accuracy': 'accu-\nracy, %',
    'sensitivity': 'sensi-\ntivity, %',
    'specificity': 'speci-\nficity, %',
    'auc': 'AUC',
}


def _table(rows: pd.DataFrame) -> Table:
    first = rows.iloc[0]
    dataset = 'PHANTOM (synthetic images)' if first.dataset == 'PHANTOM' else first.dataset
    table = Table(
        title=Text(f'{dataset}, fingerprint {first.data_fingerprint[:12]}'),
        caption='Mean over seeds; below it its 95 % interval over images; sd: standard deviation over seeds.',
        title_justify='left',
        caption_justify='left',
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in ('recipe', 'model'):
        table.add_column(name, overflow='fold')
    for name in ('trials', 'images', 'folds'):
        table.add_column(name, justify='right', overflow='fold')
    for name in METRICS:
        table.add_column(_HEADINGS[name], justify='right', overflow='fold')
        table.add_column('sd', justify='right', overflow='fold')
    for row in rows.to_dict('records'):
        cells = [cell for name in METRICS for cell in _cells(row, name)]
        table.add_row(*(Text(str(row[name])) for name in ('recipe', 'model', 'trials', 'images', 'folds')), *cells)
    return table


def _cells(row: dict[str, float], name: str) -> tuple[str, str]:
    """Mean with interval, and spread."""
    factor, digits = (1, 3) if name == 'auc' else (100, 1)
    mean, low, high, spread = (
        '-' if np.isnan(row[name + end]) else f'{factor * row[name + end]:.{digits}f}'
        for end in ('', '_low', '_high', '_spread')
    )
    return f'{mean}\n{"-" if low == "-" else f"{low} to {high}"}', spread
