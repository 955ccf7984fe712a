"""The leaderboard of one or many run directories.

    python -m bhcnet_jax.results WORKDIR... [--where model=cnn] [--sort auc] [--csv FILE] [--parquet FILE] [--watch]
    python -m bhcnet_jax.results --verify WORKDIR...    are all finished trials as they were written?

Two kinds of noise are told apart. Other images would have given other numbers: that is the 95 % interval. Other initial
weights, drawings and augmentations would have, on the same images: that is the standard deviation over seeds.
"""

import argparse
import contextlib
import pathlib
import sys
import time
from collections.abc import Iterable, Sequence

import pandas as pd
from rich.console import Console
from rich.live import Live

from bhcnet_jax import files
from bhcnet_jax.display.leaderboard import view
from bhcnet_jax.errors import UserError
from bhcnet_jax.records import merge
from bhcnet_jax.records.merge import Merged
from bhcnet_jax.records.recipes import make

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
    """Numbers from high to low, text from a to z, undefined ones last."""
    if name not in board.columns:
        raise UserError(f'--sort {name}: no such column; expected one of {", ".join(board.columns)}.')
    ascending = not pd.api.types.is_numeric_dtype(board[name])
    return board.sort_values(name, ascending=ascending, kind='stable')


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
    parser.add_argument('--verify', action='store_true', help='look for trials that are not as they were written')
    flags = parser.parse_args(arguments)
    try:
        if flags.verify:
            _verify(flags.workdirs)
        elif flags.watch:
            _watch(flags)
        else:
            merged, board = _look(flags)
            _console().print(view(merged, board))
            if flags.csv:
                with files.output(flags.csv) as file:
                    merged.trials.to_csv(file, index=False)
            if flags.parquet:
                with files.output(flags.parquet) as file:
                    merged.trials.to_parquet(file, index=False)
    except UserError as error:
        sys.exit(f'error: {error}')


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


def _look(flags: argparse.Namespace) -> tuple[Merged, pd.DataFrame]:
    merged = merge.merge(flags.workdirs)
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


if __name__ == '__main__':
    main()
