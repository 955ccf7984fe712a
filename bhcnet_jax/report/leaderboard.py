"""The leaderboard of a study: what recipes score over all their seeds and folds, and how sure that is.

    python -m bhcnet_jax.results WORKDIR... [--where model=cnn] [--sort auc] [--csv FILE] [--parquet FILE] [--watch]

Two kinds of noise are told apart. Other images would have given other numbers: that is the 95 % interval. Other initial
weights, drawings and augmentations would have, on the same images: that is the standard deviation over seeds.

S seeds, N images.
"""

import argparse
import contextlib
import functools
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bhcnet_jax import bootstrap, comparison, metrics, results
from bhcnet_jax.bootstrap import Estimate
from bhcnet_jax.results import Merged, ResultsError

METRICS = ('accuracy', 'sensitivity', 'specificity', 'auc')
DRAWS = 2000
WATCH_SECONDS = 3  # between two looks
WIDTH = 130  # characters; where no terminal says how wide it is


def estimate(
    labels: np.ndarray, probabilities: np.ndarray, groups: Sequence[Hashable] | None = None
) -> dict[str, Estimate]:
    """Each of METRICS with its interval over images and its spread over seeds, see `bootstrap.bootstrap`.

    Wilson's interval (`metrics.wilson`) stands for the proportions of a single seed whose images are all of their own,
    and where all draws give the same value, as at 100 %; an AUC then has none.

    labels: bool [N]. probabilities: float [S, N] in [0, 1], nan for an image that a seed has not scored. groups: [N].
    """
    measures = {name: bootstrap.METRICS[name] for name in METRICS}
    found = bootstrap.bootstrap(labels, probabilities, measures, groups, DRAWS)
    independent = len(probabilities) == 1 and (groups is None or len(set(groups)) == len(groups))
    sizes = {'accuracy': len(labels), 'sensitivity': labels.sum(), 'specificity': (~labels).sum()}
    for name, n in sizes.items():
        if n and (independent or np.isnan(found[name].low)):
            low, high = metrics.wilson(found[name].mean * n, n)
            found[name] = found[name]._replace(low=float(low), high=float(high))
    return found


def make(merged: Merged) -> pd.DataFrame:
    """A row per recipe and data set, from its DONE trials.

    Columns: recipe (its label, with the beginning of its id where two have the same), model, trials, seeds, images,
    folds ('3/10' where a seed has only three), each of METRICS, with _low, _high and _spread (see Estimate), dataset,
    recipe_id, data_fingerprint.
    """
    keys = ['data_fingerprint', 'recipe_id']
    done = merged.trials[merged.trials.status == 'DONE']
    scored = merged.predictions.join(done[['seed', *keys]], on='trial', how='inner')
    scored_by = dict(iter(scored.groupby(keys, sort=False)))
    group_of = read_groups(merged.trials.file)
    rows = [
        _row(trials, scored_by[key], group_of.get(key[0], {}))
        for key, trials in done.groupby(keys, sort=False)
        if key in scored_by
    ]
    board = pd.DataFrame(rows, columns=_COLUMNS)
    twice = board.duplicated(['dataset', 'data_fingerprint', 'recipe'], keep=False)
    board.loc[twice, 'recipe'] += ' ' + board.recipe_id[twice].str[:8]
    return board


_COLUMNS = (
    *('recipe', 'model', 'trials', 'seeds', 'images', 'folds'),
    *(name + end for name in METRICS for end in ('', '_low', '_high', '_spread')),
    *('dataset', 'recipe_id', 'data_fingerprint'),
)


def read_groups(files: Iterable[str]) -> dict[str, dict[str, int]]:
    """Fingerprint of a data set -> image id -> number of its group, for images that look like another one.

    files: databases, beside which run directories have their data.json. ResultsError: one that cannot be read.
    """
    found = {}
    for path in {pathlib.Path(file).parent / 'data.json' for file in files}:
        try:
            data = json.loads(path.read_text())
            numbers = {image: number for number, group in enumerate(data['groups']) for image in group}
            found[data['fingerprint']] = numbers
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f'cannot be read ({type(error).__name__}: {error})'
            raise ResultsError(f'{path} {reason}. Restore it from a copy, or move it away.') from error
    return found


def number_groups(image_ids: Iterable[str], group_of: Mapping[str, int]) -> np.ndarray:
    """The group of each image, int [N]; an image of no group is its own."""
    return np.array([group_of.get(image, len(group_of) + place) for place, image in enumerate(image_ids)])


def _row(trials: pd.DataFrame, scored: pd.DataFrame, group_of: Mapping[str, int]) -> dict[str, object]:
    pooled = comparison.pivot(scored)
    groups = number_groups(pooled.image_ids, group_of)
    first = trials.iloc[0]
    found = {
        'trials': len(trials),
        'seeds': len(pooled.seeds),
        'images': len(pooled.image_ids),
        'folds': _folds(trials),
        **{name: first[name] for name in ('recipe', 'model', 'dataset', 'recipe_id', 'data_fingerprint')},
    }
    for name, value in estimate(pooled.labels, pooled.probabilities, groups).items():
        found |= {name: value.mean, f'{name}_low': value.low, f'{name}_high': value.high}
        found[f'{name}_spread'] = value.spread
    return found


def _folds(trials: pd.DataFrame) -> str:
    """Folds done of folds planned, from the seed with the fewest to that with the most."""
    planned = trials.folds.iloc[0] if trials.scheme.iloc[0] == 'kfold' else 1
    done = trials.groupby('seed').fold.nunique()
    return f'{done.min()}/{planned}' if done.min() == done.max() else f'{done.min()}-{done.max()}/{planned}'


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
    gone = sum(map(results.is_abandoned, running.host, running.pid, running.heartbeat))
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
        title=f'{dataset}, fingerprint {first.data_fingerprint[:12]}',
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
        table.add_row(*(str(row[name]) for name in ('recipe', 'model', 'trials', 'images', 'folds')), *cells)
    return table


def _cells(row: dict[str, float], name: str) -> tuple[str, str]:
    """Mean with interval, and spread."""
    factor, digits = (1, 3) if name == 'auc' else (100, 1)
    mean, low, high, spread = (
        '-' if np.isnan(row[name + end]) else f'{factor * row[name + end]:.{digits}f}'
        for end in ('', '_low', '_high', '_spread')
    )
    return f'{mean}\n{"-" if low == "-" else f"{low} to {high}"}', spread


def select(trials: pd.DataFrame, conditions: Iterable[str]) -> pd.DataFrame:
    """The trials that meet all conditions, each 'column=value'. ResultsError: no such column, or no number for one."""
    for condition in conditions:
        name, equals, text = condition.partition('=')
        if not equals or name not in trials.columns:
            names = ', '.join(trials.columns)
            raise ResultsError(f'--where {condition}: expected column=value, column one of {names}.')
        column = trials[name]
        try:
            value = float(text) if pd.api.types.is_numeric_dtype(column) else text
        except ValueError:
            raise ResultsError(f'--where {condition}: {name} is a number.') from None
        trials = trials[(column == value).fillna(False)]
    return trials


def _sort(board: pd.DataFrame, name: str) -> pd.DataFrame:
    """Numbers from high to low, text from a to z, undefined ones last."""
    if name not in board.columns:
        raise ResultsError(f'--sort {name}: no such column; expected one of {", ".join(board.columns)}.')
    ascending = not pd.api.types.is_numeric_dtype(board[name])
    return board.sort_values(name, ascending=ascending, kind='stable')


def export(path: pathlib.Path, write: Callable[[pathlib.Path], None]) -> None:
    """Writes a file that is complete or not there."""
    partial = path.with_name(f'{path.name}.partial')
    try:
        write(partial)
        os.replace(partial, path)
    except OSError as error:
        raise ResultsError(f'{path} cannot be written: {error.strerror or error}. Name another file.') from error


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. arguments: those of the process unless given."""
    parser = argparse.ArgumentParser(
        prog='python -m bhcnet_jax.results', description='Merges run directories and shows what their recipes score.'
    )
    parser.add_argument('workdirs', nargs='+', type=pathlib.Path, metavar='WORKDIR')
    parser.add_argument('--where', action='append', default=[], metavar='COLUMN=VALUE', help='only these trials')
    parser.add_argument('--sort', default='accuracy', metavar='COLUMN', help='default: accuracy')
    parser.add_argument('--csv', type=pathlib.Path, metavar='FILE', help='write the trials of all databases')
    parser.add_argument('--parquet', type=pathlib.Path, metavar='FILE', help='the same as Parquet')
    parser.add_argument('--watch', action='store_true', help='look again every few seconds, until Ctrl-C')
    flags = parser.parse_args(arguments)
    try:
        if flags.watch:
            _watch(flags)
        else:
            merged, board = _look(flags)
            _console().print(view(merged, board))
            if flags.csv:
                export(flags.csv, functools.partial(merged.trials.to_csv, index=False))
            if flags.parquet:
                export(flags.parquet, functools.partial(merged.trials.to_parquet, index=False))
    except ResultsError as error:
        sys.exit(f'error: {error}')


def _look(flags: argparse.Namespace) -> tuple[Merged, pd.DataFrame]:
    merged = results.merge(flags.workdirs)
    merged = merged._replace(trials=select(merged.trials, flags.where))
    return merged, _sort(make(merged), flags.sort)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def _watch(flags: argparse.Namespace) -> None:
    console = _console()
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            shown = view(*_look(flags))
            if console.is_terminal:
                live.update(shown, refresh=True)
            else:
                console.print(shown)
            time.sleep(WATCH_SECONDS)
