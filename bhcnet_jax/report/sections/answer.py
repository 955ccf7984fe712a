"""The answer in a few sentences."""

from bhcnet_jax.report.evidence import KINDS, Evidence, Recipe
from bhcnet_jax.report.page import Number, Section, counted
from bhcnet_jax.report.sections import comparisons, protocol
from bhcnet_jax.report.sections.paper_tables import _row_of
from bhcnet_jax.statistics import metrics


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
    found = comparisons.difference(shortcut, best)
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
