"""Sections 4, 5 and 9 of the report: curves of probabilities, curves of training, the shape of a sweep."""

import numbers

import numpy as np
import pandas as pd

from bhcnet_jax import metrics
from bhcnet_jax.report import curves as points
from bhcnet_jax.report import plots, settings
from bhcnet_jax.report.evidence import Evidence, Recipe
from bhcnet_jax.report.page import Block, Number, Section, Table

NORMAL = 1.959964  # quantile 0.975 of the normal distribution: an interval's width in standard errors is twice this


def curves(evidence: Evidence) -> Section:
    """Section 4, of the best network and, where they allow it, the best baselines."""
    mark, leading = evidence.mark, evidence.leading
    best = leading[0]
    of = f'n = {len(best.pooled.labels)} images, {_seeds(best)}; bands: pointwise 95 % over images'
    share = best.pooled.labels.mean()
    roc = plots.lines(
        'roc', f'ROC curves; {of}', mark, {each.label: points.roc(each) for each in leading},
        ('false alarms, share of normal images', 'sensitivity'), {'chance': ([0, 1], [0, 1])},
        xlim=(-0.01, 1.01), ylim=(-0.01, 1.01),
    )  # fmt: skip
    recall = plots.lines(
        'precision-recall', f'Precision against sensitivity; {of}', mark,
        {each.label: points.precision_recall(each) for each in leading}, ('sensitivity', 'precision'),
        {'share of hemorrhages': ([0, 1], [share, share])}, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01),
    )  # fmt: skip
    figures = (roc, recall, *_calibration_figures(mark, best, of), _decisions(mark, best, of))
    blocks = [_chosen(evidence), *figures, _calibration_table(leading)]
    return Section('Discrimination, calibration and use', blocks)


def _seeds(recipe: Recipe) -> str:
    count = len(recipe.pooled.seeds)
    return f'{count} seed' + ('' if count == 1 else 's')


def _chosen(evidence: Evidence) -> str:
    labels = '; '.join(each.label for each in evidence.leading)
    told = 'Shown are the most accurate network and, on the same folds, the most accurate baseline of each kind'
    return f'{told}: {labels}.'


def _calibration_figures(mark: str, best: Recipe, of: str) -> list[Block]:
    curve, n = points.reliability(best)
    told = f'Reliability of {best.label}; {of.partition(";")[0]}; bars: 95 % intervals; below: images per bin and seed'
    told_too = f'Predicted probabilities of {best.label} by actual class; images per bin, mean over seeds'
    pooled = best.pooled
    return [
        plots.reliability('reliability', told, mark, curve, n),
        plots.histogram('probabilities', told_too, mark, pooled.labels, pooled.probabilities),
    ]


def _decisions(mark: str, best: Recipe, of: str) -> Block:
    share = best.pooled.labels.mean()
    everyone = share - (1 - share) * points.THRESHOLDS / (1 - points.THRESHOLDS)
    straight = {
        'treat all': (points.THRESHOLDS, everyone),
        'treat none': (points.THRESHOLDS[[0, -1]], (0, 0)),
    }
    caption = (
        f'Decision curve of {best.label}; {of}. Net benefit depends on the share of hemorrhages, here '
        f'{100 * share:.0f} %, which is not that of a clinic'
    )
    curve = points.net_benefit(best)
    labels = ('threshold probability', 'net benefit, true positives per image')
    return plots.lines('decision', caption, mark, {best.label: curve}, labels, straight, ylim=(-0.1, 1.08 * share))


def _calibration_table(recipes: list[Recipe]) -> Table:
    rows = []
    for recipe in recipes:
        n = len(recipe.pooled.labels)
        error = recipe.estimate({'ece': points.calibration_error})['ece']
        ece = Number(error.mean, error.low, error.high, n, 'plain')
        rows.append([recipe.label, *_calibration(recipe), ece, recipe.number('brier')])
    heads = ('recipe', 'intercept', 'slope', 'expected calibration error', 'Brier score')
    note = (
        'Logistic recalibration: perfect are intercept 0 and slope 1; both and their Wald intervals are means over '
        'seeds. The calibration error (10 bins) is biased upwards, and more so in bootstrap draws, so that its '
        'interval may lie above it.'
    )
    return Table('calibration', 'Calibration', heads, rows, note)


def _calibration(recipe: Recipe) -> tuple[Number, Number]:
    """Intercept and slope."""
    found = []
    for each in recipe.pooled.probabilities:
        scored = ~np.isnan(each)
        found.append(metrics.calibration(recipe.pooled.labels[scored], each[scored]))
    intercept, slope = np.mean(np.array(found), axis=0)
    n = len(recipe.pooled.labels)
    return Number(*intercept, n, 'signed'), Number(*slope, n, 'plain')


def training(evidence: Evidence) -> Section:
    """Section 5."""
    best = evidence.best('network')
    epochs = evidence.epochs(best) if best else pd.DataFrame()
    noise = _noise(evidence)
    if epochs.empty:
        missing = 'Missing: epochs of a network. `python -m bhcnet_jax.main --config=balanced`'
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
        return ['Missing: two or more seeds of a recipe, to tell seed noise from sampling noise. '
                "`python -m bhcnet_jax.main --config=balanced --sweep='seed=0:5'`"]
    heads = ('recipe', 'sd over seeds', 'standard error over images', 'part of the variance from seeds')
    note = (
        'The standard error over images is the width of the bootstrap interval over 2 x 1.96. More seeds make the '
        'first smaller; only more images (and not more folds or seeds) make the second smaller.'
    )
    return [Table('noise', 'Seed noise against sampling noise, of the accuracy of a single seed', heads, rows, note)]


def sweep(evidence: Evidence) -> Section:
    """Section 9."""
    networks = [each for each in evidence.recipes if each.kind == 'network' and each.settings]
    keys = [key for key in settings.varying([each.settings for each in networks]) if _numeric(networks, key)]
    title = 'The sweep at a glance'
    if len(keys) < 2:
        found = f'{len(keys)} numeric setting{"s" * (len(keys) != 1)} var{"y" if len(keys) != 1 else "ies"}'
        return Section(title, [
            f'Missing: recipes that differ in two or more numeric settings ({found}). `python -m bhcnet_jax.main '
            "--config=balanced --sweep='model.dropout=0,0.25,0.5 optimizer.peak_lr=log(1e-4,1e-2,3)'`"
        ])  # fmt: skip
    values = pd.DataFrame([{key: each.settings[key] for key in keys} for each in networks])
    accuracy = np.array([each.scores['accuracy'].mean for each in networks])
    caption = (
        f'Each line is one of {len(networks)} recipes, the thick one the most accurate of them; differences between '
        'recipes have intervals in section 6'
    )
    return Section(title, [plots.parallel('parallel', caption, evidence.mark, values, accuracy)])


def _numeric(recipes: list[Recipe], key: str) -> bool:
    values = [each.settings.get(key) for each in recipes]
    return all(isinstance(value, numbers.Real) and not isinstance(value, bool) for value in values)
