"""Discrimination, calibration and use: curves of the best network and of the best baselines."""

import numpy as np

from bhcnet_jax.display.progress import counted
from bhcnet_jax.report import bands, plots
from bhcnet_jax.report.evidence import Evidence, Recipe
from bhcnet_jax.report.page import Block, Number, Section, Table
from bhcnet_jax.statistics import metrics


def curves(evidence: Evidence) -> Section:
    """Shows ROC, precision, calibration and net benefit of the best network and, in part, of the best baselines."""
    mark, leading = evidence.mark, evidence.leading
    positive = evidence.classes[1]
    best = leading[0]
    seeds = counted(len(best.pooled.seeds), 'seed')
    of = f'n = {len(best.pooled.labels)} images, {seeds}; bands: pointwise 95 % over images'
    share = best.pooled.labels.mean()
    roc = plots.lines(
        'roc', f'ROC curves; {of}', mark, {each.label: bands.roc(each) for each in leading},
        ('1 \N{MINUS SIGN} specificity', 'sensitivity'), {'chance': ([0, 1], [0, 1])},
        xlim=(-0.01, 1.01), ylim=(-0.01, 1.01),
    )  # fmt: skip
    recall = plots.lines(
        'precision-recall', f'Precision against sensitivity; {of}', mark,
        {each.label: bands.precision_recall(each) for each in leading}, ('sensitivity', 'precision'),
        {f'share of {positive}': ([0, 1], [share, share])}, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01),
    )  # fmt: skip
    figures = (roc, recall, *_calibration_figures(evidence, best, of), _decisions(evidence, best, of))
    blocks = [_chosen(evidence), *figures, _calibration_table(leading)]
    return Section('Discrimination, calibration and use', blocks)


def _chosen(evidence: Evidence) -> str:
    labels = '; '.join(each.label for each in evidence.leading)
    told = 'Shown are the most accurate network and, on the same folds, the most accurate baseline of each kind'
    return f'{told}: {labels}.'


def _calibration_figures(evidence: Evidence, best: Recipe, of: str) -> list[Block]:
    curve, n = bands.reliability(best)
    told = f'Reliability of {best.label}; {of.partition(";")[0]}; bars: 95 % intervals; below: images per bin and seed'
    told_too = f'Predicted probabilities of {best.label} by actual class; images per bin, mean over seeds'
    mark, pooled = evidence.mark, best.pooled
    return [
        plots.reliability('reliability', told, mark, curve, n, evidence.classes[1]),
        plots.histogram('probabilities', told_too, mark, pooled.labels, pooled.probabilities, evidence.classes),
    ]


def _decisions(evidence: Evidence, best: Recipe, of: str) -> Block:
    share = best.pooled.labels.mean()
    everyone = share - (1 - share) * bands.THRESHOLDS / (1 - bands.THRESHOLDS)
    straight = {
        'treat all': (bands.THRESHOLDS, everyone),
        'treat none': (bands.THRESHOLDS[[0, -1]], (0, 0)),
    }
    caption = (
        f'Decision curve of {best.label}; {of}. Net benefit depends on the share of '
        f'{evidence.classes[1]}, here {100 * share:.0f} %, which is not that of a clinic'
    )
    curve, mark = bands.net_benefit(best), evidence.mark
    labels = ('threshold probability', 'net benefit, true positives per image')
    return plots.lines('decision', caption, mark, {best.label: curve}, labels, straight, ylim=(-0.1, 1.08 * share))


def _calibration_table(recipes: list[Recipe]) -> Table:
    rows = []
    for recipe in recipes:
        n = len(recipe.pooled.labels)
        error = recipe.estimate({'ece': bands.calibration_error})['ece']
        ece = Number(error.mean, error.low, error.high, n, 'plain')
        rows.append([recipe.label, *_calibration(recipe), ece, recipe.number('brier')])
    heads = ('recipe', 'intercept', 'slope', 'expected calibration error', 'Brier score')
    note = (
        'Logistic recalibration: intercept 0 and slope 1 are perfect; both and their Wald intervals are means over '
        'seeds. The calibration error (10 bins) is biased upwards, and more so in bootstrap draws, so its interval may '
        'lie above it.'
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
