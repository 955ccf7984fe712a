"""What drawn heads are worth: the AUC of networks that saw so many of them, and so many real images."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from bhcnet_jax.plan.phases import DRAWN
from bhcnet_jax.report import plots
from bhcnet_jax.report.evidence import Evidence, Recipe
from bhcnet_jax.report.page import Block, Cell, Number, Section, Table
from bhcnet_jax.report.sections.elsewhere import as_number

TITLE = 'What drawn heads are worth: '
NOTE = (
    'Training images: of one fold, before augmentation; 0: drawn heads alone. Out of fold, intervals over images. '
    'Elsewhere: the networks of all folds together, on images that none was trained on, intervals over groups.'
)


class _Amount(NamedTuple):
    heads: int
    images: int


class _Measured(NamedTuple):
    amount: _Amount
    out_of_fold: Number
    elsewhere: dict[str, Number]  # by data set


def drawn_heads(evidence: Evidence) -> list[Section]:
    """Shows AUC by the number of drawn heads and of training images.

    Of recipes of one name on the same folds that differ in both; [] if there are none.
    """
    found = defaultdict(list)
    for each in evidence.recipes:
        if each.kind == 'network' and each.settings:
            found[each.trials.recipe.iloc[0], each.parts].append(_measure(each, evidence))
    return [
        Section(TITLE + name, [*_blocks(sorted(measured, key=lambda each: each.amount), evidence)])
        for (name, _), measured in found.items()
        if all(len({each.amount[place] for each in measured}) > 1 for place in range(2))
    ]


def _measure(recipe: Recipe, evidence: Evidence) -> _Measured:
    trials = {*recipe.trials.trial_id}
    elsewhere = {
        each['data']['dataset']: as_number(each['results'][0]['metrics'].get('auc'), 'auc')
        for each in evidence.elsewhere if trials.issuperset(each['model']['trials'])
    }  # fmt: skip
    return _Measured(_amount(recipe), recipe.number('auc'), elsewhere)


def _amount(recipe: Recipe) -> _Amount:
    settings, phases = recipe.settings, tuple(recipe.settings['phases'])
    heads = settings['phantom.epochs'] * settings['phantom.samples'] if DRAWN in phases else 0
    outside = np.mean([np.count_nonzero(recipe.folds != fold) for fold in np.unique(recipe.folds)])
    return _Amount(heads, 0 if phases == (DRAWN,) else round(outside / settings['split.train_folds']))


def _blocks(measured: list[_Measured], evidence: Evidence) -> Iterator[Block]:
    most = _Amount(*(max(each.amount[place] for each in measured) for place in range(2)))
    n = measured[0].out_of_fold.n
    of_heads = {
        'out of fold, then all training images': _points(measured, 0, lambda each: each.images == most.images),
        'drawn heads alone': _points(measured, 0, lambda each: each.images == 0),
    }
    of_images = {
        f'out of fold, after {most.heads:,} drawn heads': _points(measured, 1, lambda each: each.heads == most.heads),
        'without drawn heads': _points(measured, 1, lambda each: each.heads == 0),
    }
    for name, rows, label in (('heads', of_heads, 'drawn heads'), ('images', of_images, 'training images of a fold')):
        caption = f'AUC by the number of {label}, 95 % intervals over n = {n} images'
        there = {line: points for line, points in rows.items() if points}
        yield plots.amounts(f'drawn-{name}', caption, evidence.mark, there, label)
    yield _table(measured)


def _points(
    measured: list[_Measured], place: int, is_meant: Callable[[_Amount], bool]
) -> list[tuple[int, Number]]:
    return [(each.amount[place], each.out_of_fold) for each in measured if is_meant(each.amount)]


def _table(measured: list[_Measured]) -> Table:
    sets = sorted({name for each in measured for name in each.elsewhere})
    rows: list[list[Cell]] = [
        [Number(each.amount.heads, style='whole'), Number(each.amount.images, style='whole'), each.out_of_fold,
         *(each.elsewhere.get(name, '-') for name in sets)]
        for each in measured
    ]  # fmt: skip
    heads = ('drawn heads', 'training images', 'AUC out of fold', *(f'AUC on {name}' for name in sets))
    return Table('drawn-heads', 'AUC by what was trained on', heads, rows, NOTE, longest=40)
