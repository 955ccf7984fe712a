"""The leaderboard of one or many run directories.

    python -m bhcnet_jax.results WORKDIR... [--where model=cnn] [--sort auc] [--csv FILE] [--parquet FILE] [--watch]
    python -m bhcnet_jax.results --verify WORKDIR...    are all finished trials as they were written?

Two kinds of noise are told apart. Other images would have given other numbers: that is the 95 % interval. Other initial
weights, drawings and augmentations would have, on the same images: that is the standard deviation over seeds.
"""

import argparse
import contextlib
import os
import pathlib
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd
from rich.console import Console, Group
from rich.live import Live

from bhcnet_jax import files
from bhcnet_jax.display.leaderboard import view
from bhcnet_jax.display.summary import MARK
from bhcnet_jax.errors import Parser, UserError, fail
from bhcnet_jax.plan import written
from bhcnet_jax.records import merge, trackers
from bhcnet_jax.records.merge import Merged
from bhcnet_jax.records.recipes import make
from bhcnet_jax.records.spreadsheet import as_text
from bhcnet_jax.report import holdouts, settings

LOSSES = ('val_loss', 'log_loss', 'brier')  # the lower, the better
WATCH_SECONDS = 3  # between two looks
WIDTH = 130  # characters; where no terminal says how wide it is


def select(trials: pd.DataFrame, conditions: Iterable[str]) -> pd.DataFrame:
    """The trials that meet all conditions, each 'column=value'. UserError: no such column, or no number for one."""
    for condition in conditions:
        name, equals, text = condition.partition('=')
        if not equals or name not in trials.columns:
            names = ', '.join(trials.columns)
            raise UserError(f'--where {condition}: expected column=value, column one of {names}.')
        column = trials[name]
        try:
            value = float(text) if pd.api.types.is_numeric_dtype(column) else text
        except ValueError:
            raise UserError(f'--where {condition}: {name} is a number.') from None
        trials = trials[(column == value).fillna(False)]
    return trials


def _sort(board: pd.DataFrame, name: str) -> pd.DataFrame:
    """Losses and text from low to high, other numbers from high to low, undefined ones last."""
    if name not in board.columns:
        raise UserError(f'--sort {name}: no such column; expected one of {", ".join(board.columns)}.')
    ascending = name in LOSSES or not pd.api.types.is_numeric_dtype(board[name])
    return board.sort_values(name, ascending=ascending, kind='stable')


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. arguments: those of the process unless given."""
    parser = Parser(
        prog='python -m bhcnet_jax.results',
        description='Merges run directories and shows what their recipes score.',
        epilog='Example: python -m bhcnet_jax.results runs/* --sort auc --csv trials.csv',
    )
    parser.add_argument('workdirs', nargs='+', type=pathlib.Path, metavar='WORKDIR')
    parser.add_argument('--where', action='append', default=[], metavar='COLUMN=VALUE', help='only these trials')
    parser.add_argument('--sort', default='accuracy', metavar='COLUMN', help='default: accuracy')
    parser.add_argument('--csv', type=pathlib.Path, metavar='FILE', help='write the trials of all databases')
    parser.add_argument('--parquet', type=pathlib.Path, metavar='FILE', help='the same as Parquet')
    parser.add_argument('--plot', metavar='KEY', help='draw the score of --sort against this key, as plot-KEY.png')
    parser.add_argument('--log_to', metavar='TRACKER', help='copy the trials there: mlflow:URI or wandb:PROJECT')
    parser.add_argument('--watch', action='store_true', help='look again every few seconds, until Ctrl-C')
    parser.add_argument('--verify', action='store_true', help='look for trials that are not as they were written')
    flags = parser.parse_args(arguments)
    try:
        if flags.verify:
            _verify(flags.workdirs)
        elif flags.watch:
            _watch(flags)
        else:
            console, board = _console(), _look(flags)
            merged = board.merged
            console.print(_show(board, flags, console))
            if flags.csv:
                with files.output(flags.csv) as file:
                    as_text(merged.trials).to_csv(file, index=False)
            if flags.plot:
                print(f'Written: {_plot(board.rows, flags)}')
            if flags.log_to:
                copied, known = trackers.log(merged.trials, board.settings, flags.log_to)
                print(f'{flags.log_to}: {copied} trials copied, {known} were there')
            if flags.parquet:
                with files.output(flags.parquet) as file:
                    merged.trials.to_parquet(file, index=False)
    except UserError as error:
        fail(error)


def _verify(workdirs: Sequence[pathlib.Path]) -> None:
    """Prints a line for each damaged trial, and ends with 1 if there is one."""
    found = merge.verify(workdirs)
    for line in found.damaged:
        print(line)
    print(
        f'{found.checked} trials compared with their digests, {len(found.damaged)} damaged; '
        f'{found.unchecked} finished trials of an earlier version have no digest.'
    )
    if found.damaged:
        sys.exit(1)


class Board(NamedTuple):
    """What is shown and exported.

    Attributes:
      merged: the trials asked for; a recipe is called by its label, and the settings that vary are further columns.
      rows: see `recipes.make`, with the same columns.
      holdouts: see `leaderboard.view`.
      settings: of recipes by id, as far as they are known.
    """

    merged: Merged
    rows: pd.DataFrame
    holdouts: dict[str, pd.DataFrame]
    settings: dict[str, settings.Settings]


def _look(flags: argparse.Namespace) -> Board:
    merged = merge.merge(flags.workdirs)
    directories = dict.fromkeys(pathlib.Path(file).parent for file in merged.trials.file)
    known = settings.read(directories, set(merged.trials.recipe_id.dropna()))
    done = merged.trials[merged.trials.status == 'DONE']
    repeated = holdouts.find(done, {key: known[key] for key in known.keys() & set(done.recipe_id)})
    joined = {recipe_id: each.label for each in repeated for recipe_id in each.trials.recipe_id}
    trials = select(_tell_apart(merged.trials, known, joined), flags.where)
    rows = make(merged._replace(trials=trials[~trials.recipe_id.isin(joined).fillna(False)]))
    rows = rows.merge(trials.drop_duplicates('recipe_id')[['recipe_id', *_varying(known)]], on='recipe_id', how='left')
    of_joined = {label: trials[(trials.recipe == label) & (trials.status == 'DONE')] for label in joined.values()}
    of_joined = {label: rows for label, rows in of_joined.items() if len(rows)}
    return Board(merged._replace(trials=trials), _sort(rows, flags.sort), of_joined, known)


def _varying(known: Mapping[str, settings.Settings]) -> list[str]:
    return [key for key in settings.varying(list(known.values())) if key not in written.NO_RECIPE]


def _tell_apart(
    trials: pd.DataFrame, known: Mapping[str, settings.Settings], joined: Mapping[str, str]
) -> pd.DataFrame:
    """The trials with the labels of their recipes, and a column for each setting that varies.

    joined: label by id, of recipes that differ in their holdout alone.
    """
    told = trials[trials.recipe_id.notna() & ~trials.recipe_id.isin(joined)].drop_duplicates('recipe_id')
    labels = settings.labels(told, known) | joined
    columns = {
        key: [settings.shown(found[key]) if isinstance(found.get(key), tuple) else found.get(key)
              for found in (known.get(each, {}) for each in trials.recipe_id)]
        for key in _varying(known)
    }  # fmt: skip
    return trials.assign(recipe=trials.recipe_id.map(labels).astype('string').fillna(trials.recipe), **columns)


def _show(board: Board, flags: argparse.Namespace, console: Console) -> Group:
    return view(board.merged, board.rows, console.width, flags.sort, board.holdouts)


def _plot(rows: pd.DataFrame, flags: argparse.Namespace) -> pathlib.Path:
    """Draws a score against a key, into the current folder. UserError: no recipes differ in this key."""
    from bhcnet_jax.display import figures  # matplotlib takes a second to import

    keys = [name for name in rows.columns if '.' in name or name == 'batch_size']
    if flags.plot not in keys:
        raise UserError(f'--plot={flags.plot}: the recipes do not differ in it; expected one of {", ".join(keys)}.')
    if not pd.api.types.is_numeric_dtype(rows[flags.sort]):
        raise UserError(f'--plot: {flags.sort} is no number; expected --sort with a score, such as auc.')
    if rows.data_fingerprint.nunique() > 1:
        raise UserError('--plot: these recipes are of several data sets; leave the directories of others out.')
    mark = MARK if (rows.dataset == 'PHANTOM').all() else ''
    path = pathlib.Path(f'plot-{flags.plot}.png')
    try:
        return figures.swept(rows, flags.plot, flags.sort, path, mark)
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror or error}. Change to another folder.') from error


def _console() -> Console:
    console = Console()
    return console if console.is_terminal or 'COLUMNS' in os.environ else Console(width=WIDTH)


def _watch(flags: argparse.Namespace) -> None:
    console = _console()
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            shown = _show(_look(flags), flags, console)
            if console.is_terminal:
                live.update(shown, refresh=True)
            else:
                console.print(shown)
            time.sleep(WATCH_SECONDS)


if __name__ == '__main__':
    main()
