"""What networks cost: parameters, operations, training time; and what their size is worth."""

import dataclasses
import functools
from collections import defaultdict
from typing import Any

from bhcnet_jax import models
from bhcnet_jax.configs import base
from bhcnet_jax.report import choosing, plots, settings
from bhcnet_jax.report.evidence import Evidence, Recipe
from bhcnet_jax.report.page import Block, Number, Table

RATE = 'optimizer.peak_lr'
FEWEST = 3  # sizes of networks that make a figure


def costs(evidence: Evidence) -> list[Block]:
    """Shows what every network costs whose settings are known, and what accuracy its parameters buy."""
    networks = [each for each in evidence.recipes if each.kind == 'network' and each.settings]
    if not networks:
        return []
    sizes = {each.recipe_id: _sizes(each) for each in networks}
    rows = [[each.label, *map(_whole, sizes[each.recipe_id]), _seconds(each)] for each in networks]
    heads = ('recipe', 'parameters', 'operations per image', 'training time, s')
    note = (
        'Operations: two for each weight at each place, of one image in evaluation. Training time: of one trial, on '
        'whatever trained it and beside the trials that were trained together with it, mean over trials.'
    )
    blocks: list[Block] = [Table('costs', 'What networks cost', heads, rows, note)]
    chosen = _at_chosen_rates(networks)
    if chosen:
        blocks.append(_rates(chosen, networks))
        networks = [choice.recipe for choice in chosen.values()]
    one = len({each.trials.recipe.iloc[0] for each in networks}) == 1
    shown = [
        (_bare(each) if one else each.label, sizes[each.recipe_id][0], each.number('accuracy')) for each in networks
    ]
    if len({parameters for _, parameters, _ in shown}) >= FEWEST:
        n = len(networks[0].pooled.labels)
        caption = f'Accuracy against the number of parameters, 95 % intervals over n = {n} images'
        blocks.append(plots.sizes('parameters', caption, evidence.mark, shown))
    return blocks


def _bare(recipe: Recipe) -> str:
    """What a label tells beside the name of the recipe, if it does."""
    return recipe.label.partition(' (')[2].removesuffix(')') or recipe.label


def _sizes(recipe: Recipe) -> tuple[int, int]:
    """Parameters, operations."""
    model = {key: value for key, value in recipe.settings.items() if key.startswith('model.')}
    seen = (int(recipe.settings['dataset.image_size']), int(recipe.settings['dataset.slices']))
    return _counted(tuple(model.items()), *seen)


@functools.cache
def _counted(model: tuple[tuple[str, Any], ...], *seen: int) -> tuple[int, int]:
    config = base.get_config()
    config.update_from_flattened_dict(dict(model))
    return sum(row.parameters for row in models.describe(config.model, *seen)), models.operations(config.model, *seen)


def _whole(count: int) -> Number:
    return Number(count, printed=f'{count:,}'.replace(',', '\N{NARROW NO-BREAK SPACE}'), style='whole')


def _seconds(recipe: Recipe) -> Number:
    seconds = recipe.trials.train_seconds.dropna()
    return Number(float(seconds.mean()), n=len(seconds), style='whole', noun='trial')


def _at_chosen_rates(networks: list[Recipe]) -> dict[str, choosing.Choice]:
    """Of recipes that differ in their learning rate alone, what validation images choose: label without rate -> it."""
    alike = defaultdict(list)
    for each in networks:
        rest = {key: value for key, value in each.settings.items() if key != RATE}
        alike[repr(rest), each.parts].append(each)
    several = [recipes for recipes in alike.values() if len(recipes) > 1]
    firsts = [recipes[0].settings for recipes in several]
    keys = [key for key in settings.varying(firsts) if key != RATE]
    usual = settings.usual(firsts, keys)
    found = {}
    for recipes in several:
        choice = choosing.by_validation(recipes)
        if choice is not None:
            first = recipes[0]
            label = settings.label(first.trials.recipe.iloc[0], first.settings, keys, usual)
            found[label] = choice._replace(recipe=dataclasses.replace(choice.recipe, label=label))
    return found


def _rates(chosen: dict[str, choosing.Choice], networks: list[Recipe]) -> Table:
    rate_of = {each.recipe_id: each.settings[RATE] for each in networks}
    rows = [
        [label, choice.recipe.number('accuracy'), choice.recipe.number('auc'),
         ', '.join(f'{rate_of[each]} in {times}' for each, times in choice.times.most_common())]
        for label, choice in sorted(chosen.items(), key=lambda each: -each[1].recipe.scores['accuracy'].mean)
    ]  # fmt: skip
    caption = 'Networks at the learning rate that validation images choose in each fold'
    return Table('rates', caption, ('network', 'accuracy', 'AUC', 'rates and their folds'), rows, longest=40)
