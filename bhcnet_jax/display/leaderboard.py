"""The leaderboard in a terminal: a table of recipes for each data set."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from bhcnet_jax.records import merge, recipes
from bhcnet_jax.records.merge import Merged
from bhcnet_jax.records.recipes import METRICS

NARROW = 110  # characters; a table for fewer has only the columns of SHORT
SHORT = ('recipe', 'trials', 'folds', 'accuracy', 'auc')
LOSS = 'val_loss'


def view(
    merged: Merged,
    board: pd.DataFrame,
    width: int,
    column: str = '',
    holdouts: Mapping[str, pd.DataFrame] | None = None,
) -> Group:
    """What is shown: trials by status, warnings, a table per data set.

    board: see `recipes.make`. width: in characters. column: another column of the board to show. holdouts: recipes on
    splits that were drawn again and again, which are not in the board: label -> rows of trials.
    """
    lines = [_progress(merged.trials), *(f'warning: {line}' for line in merged.warnings), *_pruned(merged.trials)]
    lines += recipes.drawn(merged.trials[merged.trials.status == 'DONE'])
    if board.empty and not holdouts:
        lines.append('No trial is finished, so there is no leaderboard yet.')
    more = [LOSS] if board[LOSS].notna().any() else []
    usual = [name for name in (*_USUAL, *METRICS) if width >= NARROW or name in (*SHORT, column)]
    more += [column] if column and column not in (*usual, *more) else []
    sets = [rows for _, rows in board.groupby(['dataset', 'data_fingerprint'], sort=False)]
    tables = [_table(rows, width < NARROW or bool(more), usual, more) for rows in sets]
    return Group(*(Text(line) for line in lines), *tables, *([_holdouts(holdouts)] if holdouts else []))


def _progress(trials: pd.DataFrame) -> str:
    counts = ', '.join(f'{count} {status}' for status, count in trials.status.value_counts().items())
    running = trials.loc[trials.status == 'RUNNING', ['host', 'pid', 'heartbeat']].astype(object)
    running = running.where(running.notna(), None)
    gone = sum(map(merge.is_abandoned, running.host, running.pid, running.heartbeat))
    return f'Trials: {counts or "none"}' + (f' (RUNNING: the process of {gone} is gone)' if gone else '')


def _pruned(trials: pd.DataFrame) -> list[str]:
    """A line for each recipe and number of epochs after which trials of it were pruned."""
    pruned = trials[trials.status == 'PRUNED']
    stopped = pruned.assign(after=pruned.trial_id.map(merge.epochs_done(pruned)).fillna(0).astype(int))
    return [
        f'PRUNED after {after} epochs: {recipe}, {len(rows)} of its trials'
        for (recipe, after), rows in stopped.groupby(['recipe', 'after'], sort=True)
    ]


_USUAL = ('recipe', 'model', 'trials', 'images', 'folds')
_HEADINGS = {  # broken, since their columns are the first to shrink in a narrow terminal
    'accuracy': 'accu-\nracy, %',
    'sensitivity': 'sensi-\ntivity, %',
    'specificity': 'speci-\nficity, %',
    'auc': 'AUC',
}


def _table(rows: pd.DataFrame, narrow: bool, usual: list[str], more: list[str]) -> Table:
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
    metrics, others = ([name for name in usual if (name in METRICS) == is_metric] for is_metric in (True, False))
    for name in others:
        to_left, least = name in ('recipe', 'model'), 20 if name == 'recipe' else None
        table.add_column(name, overflow='fold', justify='left' if to_left else 'right', min_width=least)
    for name in metrics:
        table.add_column(_HEADINGS[name], justify='right', no_wrap=True)
        if not narrow:
            table.add_column('sd', justify='right', no_wrap=True)
    for name in more:
        table.add_column(name.replace('_', '_\n') if narrow else name, justify='right', overflow='fold')
    for row in rows.to_dict('records'):
        cells = [cell for name in metrics for cell in _cells(row, name, narrow)]
        table.add_row(*(Text(str(row[name])) for name in others), *cells, *(_shown(row[name]) for name in more))
    return table


def _shown(value: object) -> Text:
    return Text('-' if pd.isna(value) else f'{value:.4g}' if isinstance(value, float) else str(value))


def _cells(row: dict[str, float], name: str, narrow: bool) -> list[str]:
    """Mean with interval, and spread; both in one cell if narrow."""
    factor, digits = (1, 3) if name == 'auc' else (100, 1)
    mean, low, high, spread = (
        '-' if np.isnan(row[name + end]) else f'{factor * row[name + end]:.{digits}f}'
        for end in ('', '_low', '_high', '_spread')
    )
    if narrow:
        return [f'{mean}\n{"-" if low == "-" else f"{low}-{high}"}' + ('' if spread == '-' else f'\nsd {spread}')]
    return [f'{mean}\n{"-" if low == "-" else f"{low} to {high}"}', spread]


def _holdouts(holdouts: Mapping[str, pd.DataFrame]) -> Table:
    """Of each recipe the accuracy of single trainings, each on a holdout split of its own."""
    table = Table(
        title='Recipes on holdout splits that were drawn again: accuracy of single trainings, %',
        title_justify='left',
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column('recipe', overflow='fold')
    for name in ('splits', 'test images', 'mean', 'lowest', 'median', 'highest'):
        table.add_column(name, justify='right', overflow='fold')
    for label, trials in holdouts.items():
        values = 100 * trials.accuracy
        found = (values.mean(), values.min(), values.median(), values.max())
        images = ' to '.join(map(str, sorted({trials.n_test.min(), trials.n_test.max()})))
        table.add_row(Text(label), str(trials.split_seed.nunique()), images, *(f'{value:.1f}' for value in found))
    return table
