"""Each recipe minus another one on the same folds, and what validation images say of them."""

from bhcnet_jax.display.progress import counted
from bhcnet_jax.report import plots, settings
from bhcnet_jax.report.differences import Difference, difference
from bhcnet_jax.report.evidence import KINDS, Evidence, Recipe
from bhcnet_jax.report.page import Block, Cell, Number, Section, Table
from bhcnet_jax.statistics import comparison, metrics

LONGEST = 40  # rows of the comparisons that are shown unfolded


def comparisons(evidence: Evidence, reference: Recipe) -> Section:
    """Shows every recipe on the reference's folds minus the reference, then those one setting away from it."""
    others = [each for each in evidence.recipes if each is not reference and each.shares_folds(reference)]
    title = 'Comparisons and ablations'
    if not others:
        return Section(title, ['Missing: a second recipe on the same folds. Train one, or the '
                               f'baselines ({evidence.baselines_for(reference)}).'])  # fmt: skip
    found = {each.recipe_id: difference(reference, each) for each in others}
    adjusted = comparison.holm([each.p for each in found.values()])
    rows = [_row(other, found[other.recipe_id], p) for other, p in zip(others, adjusted, strict=True)]
    heads = ('recipe', 'kind', 'accuracy difference', 'AUC difference', 'only it is right', 'only the reference is',
             'McNemar mid-p', f'after Holm, {len(rows)} tests')  # fmt: skip
    note = (
        "Differences are of both recipes on the same bootstrap draws. McNemar's test is of the probabilities averaged "
        'over seeds, at the threshold 0.5. It takes images as independent, which look-alikes are not quite.'
    )
    left = len(evidence.recipes) - len(others) - 1
    more = [f'{counted(left, "recipe")} with other folds are left out.'] if left else []
    caption = f'Each recipe minus the reference, {reference.label}'
    table = Table('comparisons', caption, heads, rows, note, longest=LONGEST)
    ablations = _ablations(evidence, reference, others, found)
    return Section(title, [table, *more, *ablations, *_validation(reference, others)])


def _row(recipe: Recipe, found: Difference, adjusted: float) -> list[Cell]:
    only = [Number(count, n=found.accuracy.n, style='whole') for count in (found.only_second, found.only_first)]
    tests = [Number(p, style='p', n=found.accuracy.n) for p in (found.p, adjusted)]
    return [recipe.label, KINDS[recipe.kind], found.accuracy, found.auc, *only, *tests]


def _ablations(
    evidence: Evidence, reference: Recipe, others: list[Recipe], found: dict[str, Difference]
) -> list[Block]:
    near = {}
    for other in others:
        keys = settings.differing(reference.settings, other.settings) if reference.settings and other.settings else []
        if len(keys) == 1:
            key = keys[0]
            near[f'{key}: {settings.shown(other.settings.get(key, "-"))}'] = found[other.recipe_id].accuracy
    if not near:
        command = evidence.command(
            f'python -m bhcnet_jax.main --config={reference.config_name} --config.split.scheme=kfold '
            "--sweep='split.fold=0:10 model.dropout=0,0.5'"
        )
        return [f'Missing: recipes that differ from the reference in one setting. `{command}`']
    caption = (
        f'Recipes that differ from {reference.label} in one setting: difference in accuracy with its 95 % interval, '
        f'n = {len(reference.pooled.labels)} images, {counted(len(reference.pooled.seeds), "seed")} of the reference'
    )
    rows, heads = [[name, number] for name, number in near.items()], ('setting', 'accuracy difference')
    return [
        plots.dots('ablations', caption, evidence.mark, near, 'accuracy difference, percentage points'),
        Table('ablation-differences', 'The same differences in numbers', heads, rows, longest=0),
    ]


def _validation(reference: Recipe, others: list[Recipe]) -> list[Block]:
    """What validation parts say of the recipes that have them, best first; nothing if there is none but the reference.

    Losses are compared in trainings of the same seed and fold, which have the same validation part.
    """
    parts = {}
    for each in (reference, *others):
        scored = each.trials[(each.trials.n_val > 0) & each.trials.val_loss.notna()]  # baselines have parts, no scores
        if len(scored):
            parts[each.label] = scored.set_index(['seed', 'fold'])
    of_reference = parts.get(reference.label)
    if of_reference is None or len(parts) == 1:
        return []
    rows = []
    for label, trials in parts.items():
        n = int(trials.n_val.sum())
        hits = float((trials.val_accuracy * trials.n_val).sum())
        loss = float((trials.val_loss * trials.n_val).sum() / n)
        change = (trials.val_loss - of_reference.val_loss).dropna()
        accuracy = Number(hits / n, *map(float, metrics.wilson(hits, n)), n)
        lower = '-' if label == reference.label else f'{(change < 0).sum()} of {len(change)}'
        rows.append([label, accuracy, Number(loss, n=n, style='plain'),
                     Number(float(change.mean()), n=len(change), style='signed', noun='training'), lower])  # fmt: skip
    heads = ('recipe', 'accuracy', 'log-loss (nats)', 'log-loss minus the reference', 'trainings with a lower loss')
    caption = 'Scores on validation images, which are inside the training folds: a choice of recipe may look at these'
    note = (
        'Sorted by log-loss. n counts an image once for each validation part that it is in, and so do the intervals '
        '(Wilson), which are therefore too narrow.'
    )
    return [Table('validation', caption, heads, sorted(rows, key=lambda row: row[2].value), note)]

