"""Single trainings on single splits, as the paper reports one: what chance makes of them."""

import numpy as np

from bhcnet_jax.paper import bhcnet
from bhcnet_jax.report import paper, plots
from bhcnet_jax.report.evidence import Evidence
from bhcnet_jax.report.holdouts import Holdouts
from bhcnet_jax.report.page import Block, Cell, Number, Section, Table, span
from bhcnet_jax.statistics import comparison
from bhcnet_jax.statistics.comparison import Protocol

TITLE = 'Single trainings on single splits'
RANGE = ('lowest', 'lower quartile', 'median', 'upper quartile', 'highest')


def single_trainings(evidence: Evidence) -> Section:
    """Shows how far single trainings of one recipe lie apart, and how many reach what the paper prints."""
    return Section(TITLE, [*_holdouts(evidence), _folds(evidence)])


def _range(found: Protocol) -> list[Number]:
    return [Number(found.quantiles[place]) for place in (0, 2, 3, 4, -1)]


def _reached(found: Protocol) -> Number:
    return Number(found.share, found.low, found.high, found.trainings, noun='training')


def _folds(evidence: Evidence) -> Table | str:
    """Of each network, a training per fold and seed."""
    of_paper, rows, counts, images = evidence.is_of_paper, [], [], []
    for recipe in evidence.recipes:
        found = paper.single_trainings(recipe.trials) if recipe.kind == 'network' else None
        if found is not None:
            reached = [_reached(found)] if of_paper else []
            counts.append(found.trainings)
            images.append(found.n_test)
            rows.append([recipe.label, Number(found.n_test, style='whole'), *_range(found), *reached])
    if not rows:
        command = evidence.command('python -m bhcnet_jax.main --config=balanced')
        return f'Missing: counts of single trainings of networks. `{command}`'
    heads = ('recipe', 'test images', *RANGE, *(["reached the paper's best"] if of_paper else []))
    trainings = f'{span(counts)} of each recipe'
    note = 'The interval of the last column (Wilson) takes trainings as independent, which those of one fold are not.'
    caption = f'Accuracy of single trainings, a fold and a seed each: {trainings}, n = {span(images)} test images each'
    return Table('protocol', caption, heads, rows, note if of_paper else '')


def _holdouts(evidence: Evidence) -> list[Block]:
    """Figure and table of the spread over splits; nothing if no split was drawn again."""
    if not evidence.holdouts:
        return []
    rows, ranges = [], {}
    for each in evidence.holdouts:
        cells, ranges[each.label] = _holdout(each, evidence.is_of_paper)
        rows.append(cells)
    of_paper = ("the paper's", "reached the paper's") if evidence.is_of_paper else ()
    heads = ('recipe', 'splits', 'test images', 'mean', *RANGE, *of_paper)
    caption = 'Accuracy of single trainings, each on a holdout split of its own'
    note = 'The interval of the last column (Wilson) takes trainings as independent; their test images overlap.'
    splits, images = (span(int(cells[place].value) for cells in rows) for place in (1, 2))
    drawn = (
        f'Accuracy on the n = {images} test images of one split: median, from the lowest to the highest of {splits} '
        'splits; dotted: chance'
    )
    return [
        plots.dots('holdouts', drawn, evidence.mark, ranges, 'accuracy, %', 0.5),
        Table('holdouts', caption, heads, rows, note if of_paper else ''),
    ]


def _holdout(found: Holdouts, is_of_paper: bool) -> tuple[list[Cell], Number]:
    """A row of the table, and median and range for the figure."""
    printed = paper.row_of(found.trials, found.settings) if is_of_paper else None
    accuracy = float(bhcnet.number(printed.accuracy)) / 100 if printed else 1.0
    spread = comparison.protocol(found.trials, accuracy)
    lowest, _, median, _, highest = _range(spread)
    counts = [Number(count, style='whole') for count in (found.trials.split_seed.nunique(), spread.n_test)]
    mean = Number(float(np.mean((found.trials.tp + found.trials.tn) / found.trials.n_test)))
    theirs = [Number(accuracy, printed=printed.accuracy), _reached(spread)] if printed else ['-', '-']
    cells = [found.label, *counts, mean, *_range(spread), *(theirs if is_of_paper else [])]
    return cells, Number(median.value, lowest.value, highest.value)
