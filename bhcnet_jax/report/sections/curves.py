"""Discrimination, calibration and use: curves of the best network and of the best baselines."""

import numpy as np

from bhcnet_jax.report import bands as points
from bhcnet_jax.report import plots
from bhcnet_jax.report.evidence import Evidence, Recipe
from bhcnet_jax.report.page import Block, Number, Section, Table
from bhcnet_jax.statistics import metrics


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
