"""The answer: the accuracy of every recipe in one figure, then three sentences."""

from bhcnet_jax.display.progress import counted
from bhcnet_jax.report import differences, paper, plots
from bhcnet_jax.report.evidence import KINDS, Evidence, Recipe
from bhcnet_jax.report.page import Figure, Note, Number, Section, span

MOST = 30  # networks in the figure
CLAIM = "the paper's best, one training"
PAPER = 'the paper'  # a kind, beside KINDS


def answer(evidence: Evidence) -> Section:
    """Shows what the recipes reach, whether that is more than shortcuts give, and whether the paper's claim holds."""
    figure, best = _figure(evidence), evidence.best('network')
    research = 'For research only: no medical device, no advice for a diagnosis.'
    if best is None:
        missing = f'Missing: a network. `{evidence.command("python -m bhcnet_jax.main --config=balanced")}`'
        return Section('Answer', [figure, missing, Note(research)])
    last = _against_paper(evidence, best) if evidence.is_of_paper else _over_seeds(best)
    notes = [*_caveats(evidence, best), research]
    return Section('Answer', [figure, _reached(best), _against_shortcuts(evidence, best), last, Note(' '.join(notes))])


def _figure(evidence: Evidence) -> Figure:
    networks = [each for each in evidence.recipes if each.kind == 'network'][:MOST]
    shown = [each for each in evidence.recipes if each.kind != 'network' or each in networks]
    rows = [(each.label, each.number('accuracy'), KINDS[each.kind]) for each in shown]
    if evidence.is_of_paper:
        rows.append((CLAIM, paper.claim(), PAPER))
    labels = shown[0].pooled.labels
    left = len(evidence.recipes) - len(shown)
    n = span([len(each.pooled.labels) for each in shown])
    caption = f'Accuracy with its 95 % interval over images, n = {n}; dotted: always calling the larger class'
    if left:
        caption += f'; left out are {left} networks with a lower accuracy'
    rows.sort(key=lambda row: -row[1].value)
    chance = max(labels.mean(), 1 - labels.mean())
    return plots.accuracies('accuracies', caption, evidence.mark, rows, (*KINDS.values(), PAPER), chance)


def _reached(best: Recipe) -> str:
    return f'The best network, {best.label}, has an accuracy of {best.number("accuracy")} and an AUC of {_auc(best)}.'


def _auc(recipe: Recipe) -> str:
    found = recipe.number('auc')
    return f'{found.text} ({found.interval})' if found.interval else found.text


def _against_shortcuts(evidence: Evidence, best: Recipe) -> str:
    shortcut = evidence.best('shortcut', best)
    if shortcut is None:
        return (
            'Whether it beats the shortcut baselines is not known: none was trained on the same folds '
            f'({evidence.baselines_for(best)}).'
        )
    found = differences.difference(shortcut, best)
    change = f'{found.accuracy.text} ({found.accuracy.interval}; McNemar mid-p {Number(found.p, style="p").bare})'
    theirs = f'the best shortcut baseline ({shortcut.label}, {shortcut.number("accuracy").text})'
    if found.accuracy.low > 0:
        return f'It beats {theirs} by {change.replace("+", "")}.'
    return (
        f'It does not beat {theirs}: the difference is {change}. '
        'As far as these images can show, it has learnt nothing that the shortcuts do not tell.'
    )


def _against_paper(evidence: Evidence, best: Recipe) -> str:
    """Of the best recipe that has a row in the paper's tables; where there is none, of the best."""
    of_paper = _best_of_paper(evidence)
    said = f'The paper reports {paper.claim()} from one training'
    found = paper.single_trainings((of_paper or best).trials)
    if found is None:
        return f'{said}.'
    whose = f'its best recipe here, {of_paper.label}' if of_paper else f'{best.label} (none of its recipes is here)'
    reach = '1 reaches' if found.reached == 1 else f'{found.reached} reach'
    return f'{said}; of {counted(found.trainings, "training")} of {whose}, {reach} that on {found.n_test} test images.'


def _best_of_paper(evidence: Evidence) -> Recipe | None:
    networks = [each for each in evidence.recipes if each.kind == 'network']
    return next((each for each in networks if paper.row_of(each.trials, each.settings)), None)


def _over_seeds(best: Recipe) -> str:
    score, seeds = best.scores['accuracy'], len(best.pooled.seeds)
    if seeds == 1:
        return 'One seed was trained, so how much another seed would change is not known.'
    return f'Between its {seeds} seeds the accuracy has a standard deviation of {100 * score.spread:.1f} points.'


def _caveats(evidence: Evidence, best: Recipe) -> list[str]:
    """What the sentences leave out."""
    count = sum(each.kind == 'network' and len(each.pooled.labels) == len(best.pooled.labels)
                for each in evidence.recipes)  # fmt: skip
    flattered = f'The best network is the best of {count} by this very number, which flatters it.'
    scored = (
        f'Accuracies are means over seeds; {best.label} has {len(best.pooled.seeds)}. Every image was scored by a fold '
        'that was not trained on it. Shortcut baselines know the size and the grey levels of an image, not what it '
        'shows.'
    )
    caveats = [flattered, scored] if count > 1 else [scored]
    of_paper = _best_of_paper(evidence) if evidence.is_of_paper else None
    found = paper.single_trainings(of_paper.trials) if of_paper else None
    if found is None:
        return caveats
    lowest, highest = (Number(found.quantiles[place]).text for place in (0, -1))
    own = (
        f"The paper's best recipe here, {of_paper.label}, has an accuracy of {of_paper.number('accuracy')} over all "
        f'folds; its single trainings have {lowest} to {highest}.'
    )
    return [*caveats, own]
