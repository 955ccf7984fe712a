"""The paper's protocol, one training on one split of 20 test images, done many times: what chance makes of it."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from bhcnet_jax.paper import bhcnet
from bhcnet_jax.report import plots
from bhcnet_jax.report.evidence import Evidence
from bhcnet_jax.report.holdouts import Holdouts
from bhcnet_jax.report.page import Block, Number, Table
from bhcnet_jax.statistics import comparison


def best_printed() -> tuple[int, int]:
    """Images right and images of the row with the most, in the paper's tables with counts."""
    best = max((row for row in (*bhcnet.TABLE_1, *bhcnet.TABLE_2)), key=lambda row: row.tp + row.tn)
    return best.tp + best.tn, sum(best.counts)


def of_best_printed(trials: pd.DataFrame) -> comparison.Protocol | None:
    """Of trials with the most frequent size of the test part; None where their counts are not in the database."""
    counted = trials.dropna(subset=['tp', 'tn', 'n_test'])
    if counted.empty:
        return None
    hits, n = best_printed()
    return comparison.protocol(counted[counted.n_test == counted.n_test.mode()[0]], hits / n)


def single_trainings(evidence: Evidence) -> Table | str:
    """What single trainings of each network would have reported, as the paper does."""
    rows = []
    for recipe in evidence.recipes:
        found = of_best_printed(recipe.trials) if recipe.kind == 'network' else None
        if found is not None:
            ends = [Number(value) for value in (found.quantiles[0], *found.quantiles[2:5], found.quantiles[-1])]
            share = Number(found.share, found.low, found.high, found.trainings, noun='training')
            rows.append([recipe.label, str(found.n_test), *ends, share])
    if not rows:
        return 'Missing: counts of single trainings of networks. `python -m bhcnet_jax.main --config=balanced`'
    ends = ('lowest', 'lower quartile', 'median', 'upper quartile', 'highest')
    heads = ('recipe', 'test images', *ends, "reached the paper's best")
    note = 'The interval of the last column (Wilson) takes trainings as independent, which those of one fold are not.'
    caption = 'Accuracy of single trainings on single splits, as the paper reports one'
    return Table('protocol', caption, heads, rows, note)


def holdouts(found: Sequence[Holdouts], printed: Sequence[bhcnet.PaperRow | None], mark: str) -> list[Block]:
    """Table and figure of the spread over splits; nothing if no split was drawn again. printed: the paper's rows."""
    if not found:
        return []
    rows, ranges = [], {}
    for each, row in zip(found, printed, strict=True):
        accuracy = float(bhcnet.number(row.accuracy)) / 100 if row else 1.0
        spread = comparison.protocol(each.trials, accuracy)
        lowest, lower, median, upper, highest = (Number(spread.quantiles[place]) for place in (0, 2, 3, 4, -1))
        mean = Number(float(np.mean((each.trials.tp + each.trials.tn) / each.trials.n_test)))
        share = Number(spread.share, spread.low, spread.high, spread.trainings, noun='training')
        of_paper = Number(accuracy, printed=f'{row.accuracy} %') if row else '-'
        cells = [mean, lowest, lower, median, upper, highest, of_paper, share if row else '-']
        rows.append([each.label, str(each.trials.split_seed.nunique()), str(spread.n_test), *cells])
        first = each.trials.iloc[0]
        short = f'{first.recipe}: {first.phase}, {first.epochs:.0f} epochs'
        ranges[each.label if short in ranges else short] = Number(median.value, lowest.value, highest.value)
    quartiles = ('lowest', 'lower quartile', 'median', 'upper quartile', 'highest')
    heads = ('recipe', 'splits', 'test images', 'mean', *quartiles, "the paper's", "reached the paper's")
    caption = "The paper's holdout drawn again: accuracy of single trainings, each on a split of its own"
    note = 'The interval of the last column (Wilson) takes trainings as independent; their test images overlap.'
    drawn = 'Accuracy on the test images of one split: median, from the lowest to the highest split; dotted: chance'
    return [
        Table('holdouts', caption, heads, rows, note),
        plots.dots('holdouts', drawn, mark, ranges, 'accuracy, %', 0.5),
    ]
