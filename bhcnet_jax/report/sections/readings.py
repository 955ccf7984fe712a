"""Readings of one description: recipes drawn at random from all combinations of what it leaves open."""

import numbers
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pandas as pd

from bhcnet_jax.display.progress import counted
from bhcnet_jax.plan import table
from bhcnet_jax.report import choosing, paper, plots, settings
from bhcnet_jax.report.evidence import Evidence, Recipe
from bhcnet_jax.report.page import Block, Number, Section, Table
from bhcnet_jax.statistics import choices
from bhcnet_jax.statistics.choices import Effect

TITLE = 'Readings: the specification curve of '
FEWEST, KEYS = 20, 3  # recipes that differ in so many settings at least


def readings(evidence: Evidence) -> list[Section]:
    """Shows the accuracy of every reading, sorted, which choices move it, and what a chosen one reaches.

    Nothing where there are fewer than FEWEST recipes of one name and network on the same folds that differ in KEYS
    settings.
    """
    found = defaultdict(list)
    for each in evidence.recipes:
        if each.kind == 'network' and each.settings:
            found[each.trials.recipe.iloc[0], each.settings['model.name'], each.parts].append(each)
    sections = []
    for recipes in found.values():
        keys = settings.varying([each.settings for each in recipes])
        if len(recipes) >= FEWEST and len(keys) >= KEYS:
            sections.append(Section(TITLE + recipes[0].trials.recipe.iloc[0], _blocks(evidence, recipes, keys)))
    return sections


def _blocks(evidence: Evidence, recipes: list[Recipe], keys: list[str]) -> list[Block]:
    chosen = pd.DataFrame([{key: each.settings.get(key, '-') for key in keys} for each in recipes], dtype=object)
    found = choices.effects(
        np.stack([_hits(each) for each in recipes]),
        chosen,
        recipes[0].groups,
        [repr([each.settings.get(key) for key in keys if _is_of_program(key)]) for each in recipes],
    )
    found = sorted(found, key=lambda each: (keys.index(each.key), _order(each.value)))
    count, images = len(recipes), len(recipes[0].pooled.labels)
    curve = (
        f'Accuracy of {count} readings, sorted, each with its 95 % interval over n = {images} images, and the choices '
        'of each below it'
    )
    accuracies = [each.number('accuracy') for each in recipes]
    shown = {f'{settings.short(each.key, keys)}: {settings.shown(each.value)}': _chose(chosen, each) for each in found}
    line = paper.claim().value if evidence.is_of_paper else None
    return [
        plots.specification('readings', curve, evidence.mark, accuracies, shown, line),
        *_summary(evidence, recipes),
        _effects(found, keys, count, images),
        *_chosen_by_validation(recipes),
    ]


def _hits(recipe: Recipe) -> np.ndarray:
    """Share of seeds that are right, [N]."""
    right = (recipe.pooled.probabilities >= 0.5) == recipe.pooled.labels
    return np.nanmean(np.where(np.isnan(recipe.pooled.probabilities), np.nan, right), axis=0)


def _order(value: object) -> tuple[float, str]:
    """Numbers by size, words by letter."""
    return (float(value), '') if isinstance(value, numbers.Real) else (0.0, str(value))


def _is_of_program(key: str) -> bool:
    known = table.keys().get(key)
    return known is not None and known.part in table.PROGRAM


def _chose(chosen: pd.DataFrame, effect: Effect) -> np.ndarray:
    """Whether each reading has a value, bool [R]."""
    return np.array([value == effect.value for value in chosen[effect.key]])


def _summary(evidence: Evidence, recipes: list[Recipe]) -> Iterator[Block]:
    accuracy = np.array([each.scores['accuracy'].mean for each in recipes])
    low, median, high = (f'{100 * value:.1f}' for value in np.quantile(accuracy, (0, 0.5, 1)))
    yield f'Of {len(recipes)} readings the least accurate has {low} %, the median {median} %, the best {high} %.'
    single = paper.single_trainings(pd.concat([each.trials for each in recipes])) if evidence.is_of_paper else None
    if single is not None:
        reached = Number(single.share, single.low, single.high, single.trainings, noun='training')
        claim = paper.claim()
        yield (
            f"The paper's best accuracy, {claim.text}, is reached on the {single.n_test} test images of one fold by "
            f'{reached} of the single trainings of all readings. The interval (Wilson) takes trainings as independent, '
            'which those of one fold or reading are not.'
        )


def _effects(found: list[Effect], keys: list[str], recipes: int, images: int) -> Table:
    """Keys by how far apart their values lie, the widest first."""
    width = {key: np.ptp([each.change for each in found if each.key == key]) for key in keys}
    rows = [
        [each.key, settings.shown(each.value), Number(each.recipes, style='whole'), Number(each.accuracy, n=images),
         Number(each.change, each.low, each.high, images, 'points')]
        for each in sorted(found, key=lambda each: (-width[each.key], each.key))
    ]  # fmt: skip
    note = (
        'The last column is of an additive model by least squares: a value against the mean of all values of its key, '
        'the other choices being equal. Its interval draws readings, those of one compiled program together, and '
        'groups of look-alike images.'
    )
    caption = f'Which choice moves accuracy: {recipes} readings, the key whose values lie furthest apart first'
    return Table('choices', caption, ('key', 'value', 'readings', 'mean accuracy', 'change'), rows, note, longest=60)


def _chosen_by_validation(recipes: list[Recipe]) -> Iterator[Block]:
    """What the reading reaches that validation images choose in each fold, on images which neither had a part in."""
    choice = choosing.by_validation(recipes)
    if choice is None:
        yield 'Missing: validation images to choose a reading by; train with `--config.split.val_folds=10`.'
        return
    yield (
        f'In each fold the reading with the lowest loss on its {choice.n_val} validation images: accuracy '
        f'{choice.recipe.number("accuracy")}, AUC {choice.recipe.number("auc")} on the test images of '
        f'{counted(choice.times.total(), "fold")}. They chose {counted(len(choice.times), "reading")}.'
    )
    labels = {each.recipe_id: each.label for each in recipes}
    rows = [[labels[each], Number(times, style='whole')] for each, times in choice.times.most_common()]
    yield Table('chosen-readings', 'Which readings validation images choose', ('reading', 'folds'), rows, longest=0)
