"""Sections 1, 2 and 3 of the report: the answer, the paper beside it, the leaderboard."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from bhcnet_jax import metrics
from bhcnet_jax.configs import base
from bhcnet_jax.report import differences, paper, plots, protocol
from bhcnet_jax.report.evidence import DRAWS, KINDS, Evidence, Recipe
from bhcnet_jax.report.page import Block, Number, Section, Table, counted
from bhcnet_jax.report.settings import Settings

BOARD = ('accuracy', 'sensitivity', 'specificity', 'auc')
OTHERS = ('precision', 'f1', 'log_loss', 'brier')
NAMES = {'auc': 'AUC', 'f1': 'F1', 'log_loss': 'log-loss (nats)', 'brier': 'Brier score'}
MOST_DOTS = 30  # recipes in the figure of the leaderboard
LAYERS = ('filters', 'convs', 'norm', 'pooling', 'hidden_units')  # what makes a network another one than the paper's
OURS = 'This study:'  # begins our rows beside those of the paper
INTERVALS = (
    f'Intervals are 95 % intervals over images: the percentile bootstrap, {DRAWS} draws of groups of look-alike images '
    'with all their seeds; Wilson where all draws agree, as at 100 %. The standard deviation over seeds is a different '
    'thing and has a column of its own.'
)


def answer(evidence: Evidence) -> Section:
    """Section 1."""
    asked = (
        f'Asked was whether the recipes of this study tell head-CT slices with a hemorrhage from slices without '
        f'({evidence.dataset}, {KINDS["network"]}s and baselines on pooled out-of-fold predictions), how sure that is, '
        'and whether it is more than the way in which the images were collected gives away.'
    )
    best = evidence.best('network')
    if best is None:
        missing = 'Missing: a network. `python -m bhcnet_jax.main --config=balanced`'
        return Section('Question and answer', [asked, missing])
    sentences = [_reached(evidence, best), _against_shortcuts(evidence, best), _against_paper(evidence, best)]
    note = 'For research only: no part of this is a medical device or advice for a diagnosis.'
    return Section('Question and answer', [asked, ' '.join(sentences), note])


def _reached(evidence: Evidence, best: Recipe) -> str:
    count = sum(each.kind == 'network' and len(each.pooled.labels) == len(best.pooled.labels)
                for each in evidence.recipes)  # fmt: skip
    chosen = f', the best of {count} by this very number and so flattered by the choice,' if count > 1 else ''
    return (
        f'The network {best.label}{chosen} has an accuracy of {best.number("accuracy")} and an AUC of '
        f'{best.number("auc")}, over {counted(len(best.pooled.seeds), "seed")}, every image scored by a fold that was '
        'not trained on it.'
    )


def _against_shortcuts(evidence: Evidence, best: Recipe) -> str:
    shortcut = evidence.best('shortcut', best)
    if shortcut is None:
        return (
            'Whether it beats the shortcut baselines, which never look at the head, is not known, since none was '
            f'trained on the same folds (`{best.baseline_command}`).'
        )
    found = differences.difference(shortcut, best)
    if found.accuracy.low > 0:
        verdict = 'it beats them'
    else:
        verdict = (
            'it does not beat them and so, as far as these images can show, it has learnt nothing that the shortcuts '
            'do not tell'
        )
    return (
        f'Against the best shortcut baseline on the same folds, {shortcut.label}, which never looks at the head and '
        f'has {shortcut.number("accuracy")}, {verdict}: the difference in accuracy is {found.accuracy}, McNemar mid-p '
        f'{Number(found.p, style="p")}.'
    )


def _against_paper(evidence: Evidence, best: Recipe) -> str:
    """Of the best recipe that has a row in the paper's tables; where there is none, of the best."""
    hits, n = protocol.best_printed()
    printed = Number(hits / n, *map(float, metrics.wilson(hits, n)), n)
    networks = [each for each in evidence.recipes if each.kind == 'network']
    of_paper = next((each for each in networks if _row_of(each.trials, each.settings)), None)
    own = f'the best of its recipes here, {of_paper.label}, has {of_paper.number("accuracy")}' if of_paper else (
        f'none of its recipes was trained here, so what follows is of {best.label}')  # fmt: skip
    said = f'The paper reports an accuracy of {printed} of one training on one split; {own}'
    found = protocol.of_best_printed((of_paper or best).trials)
    if found is None:
        return f'{said}.'
    share = Number(found.share, found.low, found.high)
    single = f'{Number(found.quantiles[0]).text} to {Number(found.quantiles[-1]).text}'
    return (
        f'{said}: of {found.trainings} trainings with {found.n_test} test images each, accuracies range over {single}, '
        f'and {share} reach the figure of the paper.'
    )


def paper_tables(evidence: Evidence) -> Section:
    """Section 2."""
    rows: list[Sequence[Number | str]] = []
    networks = [each for each in evidence.recipes if each.kind == 'network']
    all_printed = (*paper.TABLE_1, *paper.TABLE_2, *paper.TABLE_3)
    for printed in all_printed:
        mine = [each for each in networks if _row_of(each.trials, each.settings) == printed]
        # Of several the one with the most predictions: not the best, which would be a choice by the result.
        ours = max(mine, key=lambda each: np.isfinite(each.pooled.probabilities).sum(), default=None)
        rows += [_printed(printed), *([_ours(ours, len(mine))] if ours else [])]
    heads = ('row', *(NAMES.get(name, name) for name in paper.METRICS), 'remark')
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


def _row_of(trials: pd.DataFrame, settings: Settings) -> paper.PaperRow | None:
    first = trials.iloc[0]
    if pd.isna(first.phases) or pd.isna(first.epochs) or not _is_papers_network(settings):
        return None
    return paper.row_for(first.model, tuple(first.phases.split('+')), int(first.epochs))


def _is_papers_network(settings: Settings) -> bool:
    """Whether no setting of its layers, as far as they are known, differs from the reading of the paper."""
    of_paper = base.get_config().model
    return all(_listed(settings.get(f'model.{key}', of_paper[key])) == _listed(of_paper[key]) for key in LAYERS)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _printed(row: paper.PaperRow) -> list[Number | str]:
    cells: list[Number | str] = [f'Paper, {row.place}: {row.model}, {" then ".join(row.phases)}']
    ends = metrics.intervals(metrics.Counts(*row.counts)) if row.counts else {}
    wrong = paper.misprints(row)
    for name in paper.METRICS:
        text = getattr(row, name)
        value = paper.number(text)
        low, high = ends.get(name, (np.nan, np.nan)) if name not in wrong else (np.nan, np.nan)
        of = metrics.Counts(*row.counts)._asdict() if row.counts else {}
        number = Number(float(value or 0) / 100, low, high, _total(name, of), printed=f'{text} %')
        cells.append(text if value is None else number)
    return [*cells, row.remark]


def _total(name: str, counts: dict[str, int]) -> int | None:
    parts = {'precision': ('tp', 'fp'), 'sensitivity': ('tp', 'fn'), 'specificity': ('tn', 'fp')}
    return sum(counts[part] for part in parts.get(name, paper.COUNTS)) if counts else None


def _ours(recipe: Recipe, count: int) -> list[Number | str]:
    told = f'{counted(len(recipe.pooled.seeds), "seed")}, folds {recipe.folds_done}'
    more = f'; of {count} such recipes the one with the most predictions' if count > 1 else ''
    return [f'{OURS} {recipe.label}', *map(recipe.number, paper.METRICS), told + more]


def leaderboard(evidence: Evidence) -> Section:
    """Section 3."""
    heads = ['recipe', 'kind', 'folds']
    for name in BOARD:
        heads += [NAMES.get(name, name), f'{NAMES.get(name, name)}, sd over seeds']
    rows = [_board_row(each) for each in evidence.recipes]
    more = [[each.label, *map(each.number, OTHERS)] for each in evidence.recipes]
    labels = evidence.recipes[0].pooled.labels
    caption = 'Accuracy with its interval; dotted: always calling the larger class'
    best = {each.label: each.number('accuracy') for each in evidence.recipes[:MOST_DOTS]}
    chance = max(labels.mean(), 1 - labels.mean())
    blocks: list[Block] = [
        Table('leaderboard', 'Recipes and baselines, sorted by accuracy', heads, rows, INTERVALS),
        plots.dots('accuracies', caption, evidence.mark, best, 'accuracy, %', chance),
        Table('scores', 'Further metrics', ('recipe', *(NAMES.get(name, name) for name in OTHERS)), more),
    ]
    together = [[each.label, str(len(each.pooled.seeds)), *map(each.ensemble.number, BOARD)]
                for each in evidence.recipes if len(each.pooled.seeds) > 1]  # fmt: skip
    if together:
        heads = ('recipe', 'seeds', *(NAMES.get(name, name) for name in BOARD))
        blocks.append(Table('ensembles', 'Ensembles: the mean probability over all seeds of a recipe', heads, together))
    if not all(each.shares_folds(evidence.recipes[0]) for each in evidence.recipes):
        blocks.insert(0, 'Not all recipes were scored on the same images in the same folds: their rows do not compare.')
    if not any(each.kind != 'network' for each in evidence.recipes):
        blocks.append(f'Missing: baselines. `{evidence.recipes[0].baseline_command}`')
    blocks += [f'Warning: {line}' for line in evidence.warnings]
    return Section('Leaderboard', blocks)


def _board_row(recipe: Recipe) -> list[Number | str]:
    cells: list[Number | str] = [recipe.label, KINDS[recipe.kind], recipe.folds_done]
    for name in BOARD:
        number = recipe.number(name)
        spread = Number(recipe.scores[name].spread, n=len(recipe.pooled.seeds), style=number.style, noun='seed')
        cells += [number, spread]
    return cells
