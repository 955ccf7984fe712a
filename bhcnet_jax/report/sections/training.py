"""Training: curves over epochs, accuracy by fold and seed, seed noise against sampling noise."""

import numpy as np
import pandas as pd

from bhcnet_jax.report import plots
from bhcnet_jax.report.evidence import Evidence, Recipe
from bhcnet_jax.report.page import Block, Number, Section, Table
from bhcnet_jax.statistics import metrics

NORMAL = 1.959964  # quantile 0.975 of the normal distribution: an interval's width in standard errors is twice this


def training(evidence: Evidence) -> Section:
    """Shows loss and accuracy over epochs, by fold and seed, and how much of the noise is that of seeds."""
    best = evidence.best('network')
    epochs = evidence.epochs(best) if best else pd.DataFrame()
    noise = _noise(evidence)
    if epochs.empty:
        missing = f'Missing: epochs of a network. `{evidence.command("python -m bhcnet_jax.main --config=balanced")}`'
        return Section('Training', [missing, *noise])
    mark, trials = evidence.mark, len(best.trials)
    of = f'{best.label}; {trials} trials, n = {len(best.pooled.labels)} images; bands: the middle 80 % of trials'
    by = f'{best.label}; accuracy of the test part after each epoch'
    return Section('Training', [
        plots.learning('loss', f'Loss, {of}', mark, epochs, {'train_loss': 'training part', 'test_loss': 'test part'},
                       'cross-entropy loss (nats)'),
        plots.learning('accuracy', f'Accuracy, {of}', mark, epochs,
                       {'train_accuracy': 'training part', 'test_accuracy': 'test part'}, 'accuracy, % of images'),
        plots.by_part('by-fold', f'By fold, means over seeds. {by}', mark, epochs, 'fold'),
        plots.by_part('by-seed', f'By seed, means over folds. {by}', mark, epochs, 'seed'),
        'No epoch was chosen by these curves: results are those of the last epoch.',
        _by_fold(best),
        *noise,
    ])  # fmt: skip


def _by_fold(recipe: Recipe) -> Table:
    """Accuracy of each fold (mean over seeds) and of each seed (all folds)."""
    pooled = recipe.pooled
    right = np.where(np.isnan(pooled.probabilities), np.nan, (pooled.probabilities >= 0.5) == pooled.labels)
    rows: list[list[str | Number]] = []
    for part in np.unique(recipe.folds):
        mine = right[:, recipe.folds == part]
        rows.append([f'fold {part}', _share(mine)])
    rows += [[f'seed {seed}', _share(right[[place]])] for place, seed in enumerate(pooled.seeds)]
    note = 'Intervals (Wilson) take the mean over seeds for one answer per image, and images as independent.'
    return Table('parts', f'Accuracy of {recipe.label} by fold and by seed', ('part', 'accuracy'), rows, note)


def _share(right: np.ndarray) -> Number:
    """right: [S, N], nan where a seed has not scored an image."""
    n, mean = int((~np.isnan(right).all(axis=0)).sum()), float(np.nanmean(right))
    low, high = metrics.wilson(mean * n, n)
    return Number(mean, float(low), float(high), n)


def _noise(evidence: Evidence) -> list[Block]:
    """How much of what a single seed would have shown is chance of the seed, and how much chance of the images."""
    rows = []
    for recipe in evidence.recipes:
        score, seeds = recipe.scores['accuracy'], len(recipe.pooled.seeds)
        if seeds > 1:
            of_images = (score.high - score.low) / (2 * NORMAL)
            total = score.spread**2 + of_images**2
            part = score.spread**2 / total if total else np.nan
            rows.append([recipe.label, Number(score.spread, n=seeds, noun='seed'),
                         Number(of_images, n=recipe.n('accuracy')), Number(part, n=seeds, noun='seed')])  # fmt: skip
    if not rows:
        command = evidence.command("python -m bhcnet_jax.main --config=balanced --sweep='seed=0:5'")
        return [f'Missing: two or more seeds of a recipe, to tell seed noise from sampling noise. `{command}`']
    heads = ('recipe', 'sd over seeds', 'standard error over images', 'part of the variance from seeds')
    note = (
        'The standard error over images is the width of the 95 % interval divided by 2 x 1.96. More seeds make the '
        'first smaller. Only more images make the second smaller, not more folds or seeds.'
    )
    return [Table('noise', 'Seed noise against sampling noise, of the accuracy of a single seed', heads, rows, note)]
