"""The leaderboard: all recipes and baselines, with intervals."""

import pandas as pd

from bhcnet_jax.records.recipes import drawn
from bhcnet_jax.report.evidence import INTERVALS, KINDS, NAMES, Evidence, Recipe
from bhcnet_jax.report.page import Block, Number, Section, Table
from bhcnet_jax.report.sections.costs import costs

BOARD = ('accuracy', 'sensitivity', 'specificity', 'auc')
OTHERS = ('precision', 'f1', 'log_loss', 'brier')
LONGEST = 40  # rows of the leaderboard that are shown unfolded


def leaderboard(evidence: Evidence) -> Section:
    """Shows every metric of every recipe, its spread over seeds, and the ensemble of its seeds."""
    recipes = evidence.recipes
    several = [each for each in recipes if len(each.pooled.seeds) > 1]
    board = [[each.label, KINDS[each.kind], each.folds_done, *map(each.number, BOARD)] for each in recipes]
    heads = ('recipe', 'kind', 'folds', *_names(BOARD))
    blocks: list[Block] = [
        Table('leaderboard', 'Recipes and baselines, sorted by accuracy', heads, board, INTERVALS, longest=LONGEST),
        Table('scores', 'Further metrics', ('recipe', *_names(OTHERS)),
              [[each.label, *map(each.number, OTHERS)] for each in recipes]),
    ]  # fmt: skip
    if several:
        heads = ('recipe', 'seeds', *_names(BOARD))
        blocks += [
            Table('spread', 'Standard deviation over seeds', heads, [_spread(each) for each in several]),
            Table('ensembles', 'Ensembles: the mean probability over all seeds of a recipe', heads,
                  [[each.label, _seeds(each), *map(each.ensemble.number, BOARD)] for each in several]),
        ]  # fmt: skip
    blocks += costs(evidence)
    if not all(each.shares_folds(recipes[0]) for each in recipes):
        blocks.insert(0, 'Not all recipes were scored on the same images in the same folds: their rows do not compare.')
    if not any(each.kind != 'network' for each in recipes):
        blocks.append(f'Missing: baselines ({evidence.baselines_for(recipes[0])}).')
    blocks += drawn(pd.concat([each.trials.assign(recipe=each.label) for each in recipes]))
    blocks += [f'Warning: {line}' for line in evidence.warnings]
    return Section('Leaderboard', blocks)


def _names(metrics: tuple[str, ...]) -> list[str]:
    return [NAMES.get(name, name) for name in metrics]


def _seeds(recipe: Recipe) -> Number:
    return Number(len(recipe.pooled.seeds), style='whole')


def _spread(recipe: Recipe) -> list[Number | str]:
    spreads = [Number(recipe.scores[name].spread, style=recipe.number(name).style) for name in BOARD]
    return [recipe.label, _seeds(recipe), *spreads]
