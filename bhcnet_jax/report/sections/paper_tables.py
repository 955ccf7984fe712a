"""The rows of the paper's tables, each with the same recipe of this study below it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from bhcnet_jax.configs import base
from bhcnet_jax.paper import bhcnet
from bhcnet_jax.report.evidence import Evidence, Recipe
from bhcnet_jax.report.page import Number, Section, Table, counted
from bhcnet_jax.report.sections import protocol
from bhcnet_jax.report.sections.leaderboard import INTERVALS, NAMES
from bhcnet_jax.report.settings import Settings
from bhcnet_jax.statistics import metrics

LAYERS = ('filters', 'convs', 'norm', 'pooling', 'hidden_units')  # what makes a network another one than the paper's
OURS = 'This study:'  # begins our rows beside those of the paper


def paper_tables(evidence: Evidence) -> Section:
    """Section 2."""
    rows: list[Sequence[Number | str]] = []
    networks = [each for each in evidence.recipes if each.kind == 'network']
    all_printed = (*bhcnet.TABLE_1, *bhcnet.TABLE_2, *bhcnet.TABLE_3)
    for printed in all_printed:
        mine = [each for each in networks if _row_of(each.trials, each.settings) == printed]
        # Of several the one with the most predictions: not the best, which would be a choice by the result.
        ours = max(mine, key=lambda each: np.isfinite(each.pooled.probabilities).sum(), default=None)
        rows += [_printed(printed), *([_ours(ours, len(mine))] if ours else [])]
    heads = ('row', *(NAMES.get(name, name) for name in bhcnet.METRICS), 'remark')
    note = (
        'Paper: as printed, from 10 + 10 test images; intervals (Wilson) are of its printed counts, where it prints '
        f'them and they give the printed value. {INTERVALS}'
    )
    table = Table('paper', 'Tables 1, 2 and 3 of the paper beside this study', heads, rows, note)
    more = protocol.single_trainings(evidence)
    again = [_row_of(each.trials, each.settings) for each in evidence.holdouts]
    drawn = protocol.holdouts(evidence.holdouts, again, evidence.mark)
    trained = {row for row in (*again, *(_row_of(each.trials, each.settings) for each in networks)) if row}
    missing = len(set(all_printed) - trained)
    command = '`python -m bhcnet_jax.main --config=imbalanced --config.split.scheme=kfold --sweep=\'split.fold=0:10\'`'
    told = f'Missing: recipes for {missing} of the {len(all_printed)} rows, such as {command}'
    return Section("The paper's tables beside ours", [*([told] if missing else []), table, *drawn, more])


def _row_of(trials: pd.DataFrame, settings: Settings) -> bhcnet.PaperRow | None:
    first = trials.iloc[0]
    if pd.isna(first.phases) or pd.isna(first.epochs) or not _is_papers_network(settings):
        return None
    return bhcnet.row_for(first.model, tuple(first.phases.split('+')), int(first.epochs))


def _is_papers_network(settings: Settings) -> bool:
    """Whether no setting of its layers, as far as they are known, differs from the reading of the paper."""
    of_paper = base.get_config().model
    return all(_listed(settings.get(f'model.{key}', of_paper[key])) == _listed(of_paper[key]) for key in LAYERS)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _printed(row: bhcnet.PaperRow) -> list[Number | str]:
    cells: list[Number | str] = [f'Paper, {row.place}: {row.model}, {" then ".join(row.phases)}']
    ends = metrics.intervals(metrics.Counts(*row.counts)) if row.counts else {}
    wrong = bhcnet.misprints(row)
    for name in bhcnet.METRICS:
        text = getattr(row, name)
        value = bhcnet.number(text)
        low, high = ends.get(name, (np.nan, np.nan)) if name not in wrong else (np.nan, np.nan)
        of = metrics.Counts(*row.counts)._asdict() if row.counts else {}
        number = Number(float(value or 0) / 100, low, high, _total(name, of), printed=f'{text} %')
        cells.append(text if value is None else number)
    return [*cells, row.remark]


def _total(name: str, counts: dict[str, int]) -> int | None:
    parts = {'precision': ('tp', 'fp'), 'sensitivity': ('tp', 'fn'), 'specificity': ('tn', 'fp')}
    return sum(counts[part] for part in parts.get(name, bhcnet.COUNTS)) if counts else None


def _ours(recipe: Recipe, count: int) -> list[Number | str]:
    told = f'{counted(len(recipe.pooled.seeds), "seed")}, folds {recipe.folds_done}'
    more = f'; of {count} such recipes the one with the most predictions' if count > 1 else ''
    return [f'{OURS} {recipe.label}', *map(recipe.number, bhcnet.METRICS), told + more]
