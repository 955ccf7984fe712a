"""The leaderboard of a study: what recipes score over all their seeds and folds, and how sure that is.

    python -m bhcnet_jax.results WORKDIR... [--where model=cnn] [--sort auc] [--csv FILE] [--parquet FILE] [--watch]

Two kinds of noise are told apart. Other images would have given other numbers: that is the 95 % interval. Other initial
weights, drawings and augmentations would have, on the same images: that is the standard deviation over seeds.

S seeds, N images, P of them with a hemorrhage, Q without, B bootstrap draws.
"""

import argparse
import contextlib
import functools
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bhcnet_jax import metrics, results
from bhcnet_jax.results import Merged, ResultsError

METRICS = ('accuracy', 'sensitivity', 'specificity', 'auc')
DRAWS = 2000
WATCH_SECONDS = 3  # between two looks
WIDTH = 130  # characters; where no terminal says how wide it is
_PART_SIZE = 2**22  # comparisons of two probabilities that are held in memory at once


class Estimate(NamedTuple):
    """mean: over seeds. low, high: its 95 % interval over images. spread: standard deviation over seeds.

    nan where undefined: a class without images, an interval that says nothing, the spread of one seed.
    """

    mean: float
    low: float
    high: float
    spread: float


def estimate(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, Estimate]:
    """Each of METRICS with its interval over images and its spread over seeds.

    A metric is computed for every seed on all its images together, each scored by the fold that did not train on it,
    then averaged over seeds. Intervals are those of the percentile bootstrap (Efron and Tibshirani, An Introduction to
    the Bootstrap, 1993, chapter 13): DRAWS times N images are drawn with replacement, all seeds of an image together,
    since they are wrong on the same images; a draw without a class leaves out what needs it. Wilson's interval
    (`metrics.wilson`) stands for the proportions of a single seed, and where all draws give the same value, as at
    100 %; an AUC then has none. Near 0 and 100 % the bootstrap of few images is too narrow: an image unlike those drawn
    from is not in it.

    labels: bool [N]. probabilities: float [S, N] in [0, 1], nan for an image that a seed has not scored.
    """
    draws = _draws(len(labels))
    # Seeds that scored the same images share their bootstrap; where all folds are done that is one pattern.
    patterns, pattern_of = np.unique(~np.isnan(probabilities), axis=0, return_inverse=True)
    of_seeds = np.full((len(METRICS), len(probabilities)), np.nan)  # [4, S]
    sums, counts = np.zeros((2, len(METRICS), DRAWS))
    for number, scored in enumerate(patterns):
        seeds = pattern_of.reshape(-1) == number
        values, drawn = _score(labels[scored], probabilities[np.ix_(seeds, scored)], draws[:, scored])
        of_seeds[:, seeds] = values
        sums += seeds.sum() * np.nan_to_num(drawn)
        counts += seeds.sum() * ~np.isnan(drawn)
    sizes = (len(labels), labels.sum(), (~labels).sum(), None)
    with np.errstate(invalid='ignore'):
        drawn = sums / counts
    return {name: _summarize(of_seeds[row], drawn[row], sizes[row]) for row, name in enumerate(METRICS)}


@functools.lru_cache(maxsize=4)
def _draws(count: int) -> np.ndarray:
    """How often each image is in each draw. -> float64 [B, N], the same in every call."""
    generator = np.random.default_rng(0)
    return generator.multinomial(count, np.full(count, 1 / count), size=DRAWS).astype(np.float64)


def _score(labels: np.ndarray, probabilities: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """METRICS of each seed, [4, S], and their means over seeds in each draw, [4, B]; no argument has a nan."""
    hits = (probabilities >= 0.5) == labels  # [S, N]
    values, drawn = [], []
    with np.errstate(invalid='ignore', divide='ignore'):
        for part in (np.ones_like(labels), labels, ~labels):
            values.append(hits[:, part].sum(axis=1) / np.float64(part.sum()))
            drawn.append(draws[:, part] @ hits[:, part].sum(axis=0) / len(hits) / draws[:, part].sum(axis=1))
        auc, drawn_auc = _auc(labels, probabilities, draws)
    return np.stack([*values, auc]), np.stack([*drawn, drawn_auc])


def _auc(labels: np.ndarray, probabilities: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUC as the share of pairs in the right order, ties counted as half (Mann and Whitney, 1947). -> [S], [B].

    A pair's part in a draw is the product of its images' counts, and its mean over seeds is the same in all draws, so
    that seeds cost nothing in the bootstrap.
    """
    positive, negative = probabilities[:, labels], probabilities[:, ~labels]  # [S, P], [S, Q]
    draws_positive, draws_negative = draws[:, labels], draws[:, ~labels]
    seeds, pairs = len(probabilities), np.float64(positive.shape[1] * negative.shape[1])
    step = max(1, _PART_SIZE // max(1, negative.size))
    values, drawn = np.zeros(seeds), np.zeros(len(draws))
    for start in range(0, positive.shape[1], step):
        part = slice(start, start + step)
        above, below = positive[:, part, None], negative[:, None, :]
        order = (above > below) * 0.5 + (above >= below) * 0.5  # [S, part of P, Q]
        values += order.sum(axis=(1, 2))
        drawn += ((draws_positive[:, part] @ order.mean(axis=0)) * draws_negative).sum(axis=1)
    return values / pairs, drawn / (draws_positive.sum(axis=1) * draws_negative.sum(axis=1))


def _summarize(of_seeds: np.ndarray, drawn: np.ndarray, n: int | None) -> Estimate:
    """of_seeds: [S], drawn: [B]. n: images of a proportion, None for an AUC."""
    of_seeds, drawn = of_seeds[~np.isnan(of_seeds)], drawn[~np.isnan(drawn)]
    if not of_seeds.size or not drawn.size:
        return Estimate(np.nan, np.nan, np.nan, np.nan)
    mean = float(of_seeds.mean())
    constant = np.ptp(drawn) < 1e-9
    if n and (len(of_seeds) == 1 or constant):
        low, high = metrics.wilson(mean * n, n)
    else:
        low, high = (np.nan, np.nan) if constant else np.percentile(drawn, (2.5, 97.5))
    spread = float(of_seeds.std(ddof=1)) if len(of_seeds) > 1 else np.nan
    return Estimate(mean, float(low), float(high), spread)


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
    rows = [_row(trials, scored_by[key]) for key, trials in done.groupby(keys, sort=False) if key in scored_by]
    board = pd.DataFrame(rows, columns=_COLUMNS)
    twice = board.duplicated(['dataset', 'data_fingerprint', 'recipe'], keep=False)
    board.loc[twice, 'recipe'] += ' ' + board.recipe_id[twice].str[:8]
    return board


_COLUMNS = (
    *('recipe', 'model', 'trials', 'seeds', 'images', 'folds'),
    *(name + end for name in METRICS for end in ('', '_low', '_high', '_spread')),
    *('dataset', 'recipe_id', 'data_fingerprint'),
)


def _row(trials: pd.DataFrame, scored: pd.DataFrame) -> dict[str, object]:
    image, image_ids = pd.factorize(scored.image_id, sort=True)
    seed, seeds = pd.factorize(scored.seed)
    probabilities = np.full((len(seeds), len(image_ids)), np.nan)
    probabilities[seed, image] = scored.probability
    labels = np.zeros(len(image_ids), bool)
    labels[image] = scored.label == 1
    first = trials.iloc[0]
    found = {
        'trials': len(trials),
        'seeds': len(seeds),
        'images': len(image_ids),
        'folds': _folds(trials),
        **{name: first[name] for name in ('recipe', 'model', 'dataset', 'recipe_id', 'data_fingerprint')},
    }
    for name, value in estimate(labels, probabilities).items():
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


def _export(path: pathlib.Path, write: Callable[[pathlib.Path], None]) -> None:
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
                _export(flags.csv, functools.partial(merged.trials.to_csv, index=False))
            if flags.parquet:
                _export(flags.parquet, functools.partial(merged.trials.to_parquet, index=False))
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
