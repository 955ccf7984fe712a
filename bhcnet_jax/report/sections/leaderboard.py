"""The leaderboard: all recipes and baselines, with intervals."""

from bhcnet_jax.report import plots
from bhcnet_jax.report.evidence import DRAWS, KINDS, Evidence, Recipe
from bhcnet_jax.report.page import Block, Number, Section, Table

BOARD = ('accuracy', 'sensitivity', 'specificity', 'auc')
OTHERS = ('precision', 'f1', 'log_loss', 'brier')
NAMES = {'auc': 'AUC', 'f1': 'F1', 'log_loss': 'log-loss (nats)', 'brier': 'Brier score'}
MOST_DOTS = 30  # recipes in the figure of the leaderboard
INTERVALS = (
    f'Intervals are 95 % intervals over images: the percentile bootstrap, {DRAWS} draws of groups of look-alike images '
    'with all their seeds; Wilson where all draws agree, as at 100 %. The standard deviation over seeds is a different '
    'thing and has a column of its own.'
)


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
