"""The rows of the paper's tables, each with the same recipe of this study below it."""

from collections.abc import Sequence

import numpy as np

from bhcnet_jax.display.progress import counted
from bhcnet_jax.paper import bhcnet
from bhcnet_jax.report import paper
from bhcnet_jax.report.evidence import INTERVALS, NAMES, Evidence, Recipe
from bhcnet_jax.report.page import Block, Cell, Note, Number, Section, Table
from bhcnet_jax.report.sections.single_trainings import TITLE as SINGLE_TRAININGS
from bhcnet_jax.statistics import metrics

ROWS = (*bhcnet.TABLE_1, *bhcnet.TABLE_2, *bhcnet.TABLE_3)
# Table 3 prints no epochs, so that its rows of the CNN are those of no recipe.
OF_RECIPES = tuple(row for row in ROWS if bhcnet.row_for(row.model, row.phases, row.epochs or 0) == row)
HEADS = ('row', *(NAMES.get(name, name) for name in bhcnet.METRICS))
STUDIES = "The paper's table 5 of earlier systems, and this study's of the same kind"
OTHER_DATA = (
    'Paper: as printed. The images of [73], [74], [75] and [77] are others, and more of them; how they were parted is '
    'not printed. A difference to them is of data and protocol as well as of the system, and no row above another '
    'shows which is better. The 3-D systems need volumes, which these single slices are not: here they learn from '
    'drawn heads, and a report of their own has them.'
)
OURS = 'This study:'  # begins our rows beside those of the paper


def paper_tables(evidence: Evidence) -> Section:
    """Shows the paper's rows that are in the leaderboard with what they reach, then the others as printed."""
    networks = [each for each in evidence.recipes if each.kind == 'network']
    ours = {row: mine for row in ROWS if (mine := _of_row(row, networks))}
    others = [row for row in ROWS if row not in ours]
    note = (
        'Paper: as printed, from 10 + 10 test images; intervals (Wilson) are of its printed counts, where it prints '
        f'them and they give the printed value. {INTERVALS}'
    )
    blocks: list[Block] = []
    if ours:
        folded = all(_chosen(mine).trials.scheme.eq('kfold').all() for mine in ours.values())
        how = 'cross-validated' if folded else 'trained'
        caption = f'The {len(ours)} of {len(ROWS)} rows of the paper\'s tables 1, 2 and 3 that were {how} here'
        both = [each for row, mine in ours.items() for each in (_printed(row), _ours(_chosen(mine), len(mine)))]
        blocks.append(Table('paper', caption, HEADS, *_columns(both), longest=len(both)))
    if others:
        caption = f'The {"other " if ours else ""}rows of the paper\'s tables 1, 2 and 3, as printed'
        on_holdouts = {paper.row_of(each.trials, each.settings) for each in evidence.holdouts} & set(others)
        if on_holdouts:
            caption += f'; {len(on_holdouts)} were trained on holdout splits, see "{SINGLE_TRAININGS}"'
        blocks.append(Table('paper-alone', caption, HEADS, *_columns(list(map(_printed, others))), is_of_images=False))
    blocks += [Note(note), *_missing(evidence, networks), _studies(evidence.recipes)]
    return Section("The paper's tables beside ours", blocks)


def _of_row(printed: bhcnet.PaperRow, networks: list[Recipe]) -> list[Recipe]:
    return [each for each in networks if paper.row_of(each.trials, each.settings) == printed]


def _chosen(mine: list[Recipe]) -> Recipe:
    """Of several the one with the most predictions: not the best, which would be a choice by the result."""
    return max(mine, key=lambda each: np.isfinite(each.pooled.probabilities).sum())


def _columns(rows: list[tuple[list[Cell], str]]) -> tuple[list[list[Cell]], str, list[str]]:
    """rows, note, remarks of a table."""
    cells, remarks = zip(*rows, strict=True)
    return list(cells), '', list(remarks)


def _missing(evidence: Evidence, networks: list[Recipe]) -> list[str]:
    trained = {paper.row_of(each.trials, each.settings) for each in (*networks, *evidence.holdouts)}
    missing = len(set(OF_RECIPES) - trained)
    command = evidence.command(
        "python -m bhcnet_jax.main --config=imbalanced --config.split.scheme=kfold --sweep='split.fold=0:10'"
    )
    rows = f'{missing} of the {len(OF_RECIPES)} rows of which the paper tells the recipe'
    return [f'Missing: recipes for {rows}, such as `{command}`'] if missing else []


def _studies(recipes: Sequence[Recipe]) -> Table:
    """Table 5 with what this study has of the same kind below each row."""
    rows: list[tuple[list[Cell], str]] = []
    for row in bhcnet.TABLE_5:
        what = f'Paper, {row.place}, {row.year}: {row.technique or "technique not printed"}'
        rows.append(([what, *(getattr(row, name) for name in bhcnet.METRICS)], ''))
        rows += [_ours(each, 1) for each in recipes if _is_of_study(each, row.row)]
    columns, _, remarks = _columns(rows)
    return Table('table-5', STUDIES, HEADS, columns, OTHER_DATA, remarks, longest=len(rows))


def _is_of_study(recipe: Recipe, row: str) -> bool:
    """Whether a recipe is a system of the kind that a row of table 5 is of."""
    first, is_papers = recipe.trials.iloc[0], bhcnet.is_papers(recipe.settings)
    kinds = {
        '[73]': recipe.kind == 'features',
        '[76]': first.model == 'cnn' and first.phases == 'balanced' and is_papers,
        'Proposed BHCNet': first.model == 'cnn' and first.phases == 'balanced+imbalanced' and is_papers,
    }
    return kinds.get(row, False)


def _printed(row: bhcnet.PaperRow) -> tuple[list[Cell], str]:
    """Cells and remark."""
    cells: list[Cell] = [f'Paper, {row.place}: {row.model}, {" then ".join(row.phases)}']
    ends = metrics.intervals(metrics.Counts(*row.counts)) if row.counts else {}
    wrong = bhcnet.misprints(row)
    for name in bhcnet.METRICS:
        text = getattr(row, name)
        value = bhcnet.number(text)
        low, high = ends.get(name, (np.nan, np.nan)) if name not in wrong else (np.nan, np.nan)
        of = metrics.Counts(*row.counts)._asdict() if row.counts else {}
        number = Number(float(value or 0) / 100, low, high, _total(name, of), printed=text)
        cells.append(text if value is None else number)
    return cells, f'{row.remark[0].upper()}{row.remark[1:]}.' if row.remark else ''


def _total(name: str, counts: dict[str, int]) -> int | None:
    parts = {'precision': ('tp', 'fp'), 'sensitivity': ('tp', 'fn'), 'specificity': ('tn', 'fp')}
    return sum(counts[part] for part in parts.get(name, bhcnet.COUNTS)) if counts else None


def _ours(recipe: Recipe, count: int) -> tuple[list[Cell], str]:
    told = f'{counted(len(recipe.pooled.seeds), "seed")}, folds {recipe.folds_done}'
    more = f'; of {count} such recipes the one with the most predictions' if count > 1 else ''
    return [f'{OURS} {recipe.label}', *map(recipe.number, bhcnet.METRICS)], f'{told}{more}.'
