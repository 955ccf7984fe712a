"""The specification curve: what it shows, and what a choice by validation images reaches."""

import dataclasses
import itertools

import numpy as np

import studies
from bhcnet_jax.report import evidence
from bhcnet_jax.report.page import Figure, Table
from bhcnet_jax.report.sections import readings

KEYS = ('model.dropout', 'optimizer.peak_lr', 'batch_size')
RATES = list(itertools.product((0.0, 0.5), (1e-4, 1e-3, 1e-2, 1e-1), (8, 16, 32)))  # 24 readings


def many(tmp_path, skip=0):
    """Evidence of 24 readings. The larger a reading's place, the lower its loss on validation images."""
    found = evidence.gather(studies.write(tmp_path)[:1])
    one = found.recipes[0]
    recipes = []
    for place, values in enumerate(RATES[skip:]):
        trials = one.trials.assign(val_loss=1 / (1 + place))
        changed = {**one.settings, **dict(zip(KEYS, values, strict=True))}
        recipes.append(dataclasses.replace(one, recipe_id=f'{place:016x}', trials=trials, settings=changed))
    return dataclasses.replace(found, recipes=recipes)


def test_it_is_there_only_for_enough_readings_that_differ_in_several_settings(tmp_path):
    assert len(readings.readings(many(tmp_path / 'enough'))) == 1
    assert readings.readings(many(tmp_path / 'few', skip=5)) == []
    assert readings.readings(evidence.gather(studies.write(tmp_path / 'none'))) == []


def test_recipes_of_several_networks_are_no_readings_of_one_description(tmp_path):
    found = many(tmp_path)
    named = [
        dataclasses.replace(each, settings={**each.settings, 'model.name': ('cnn', 'lenet5')[place % 2]})
        for place, each in enumerate(found.recipes)
    ]
    assert readings.readings(dataclasses.replace(found, recipes=named)) == []


def test_a_reading_without_one_of_the_settings_has_a_line_of_its_own(tmp_path):
    found = many(tmp_path)
    first, *others = found.recipes
    without = {key: value for key, value in first.settings.items() if key != 'batch_size'}
    recipes = [dataclasses.replace(first, settings=without), *others]
    (section,) = readings.readings(dataclasses.replace(found, recipes=recipes))
    table = next(each for each in section.blocks if isinstance(each, Table) and each.name == 'choices')
    assert {(key, value): number.value for key, value, number, *_ in table.rows}['batch_size', '-'] == 1


def test_every_value_of_every_key_has_a_row_with_its_readings(tmp_path):
    (section,) = readings.readings(many(tmp_path))
    table = next(each for each in section.blocks if isinstance(each, Table) and each.name == 'choices')
    counts = {(key, value): number.value for key, value, number, *_ in table.rows}
    assert counts[KEYS[0], '0.5'] == 12
    assert counts[KEYS[1], '0.001'] == 6
    assert counts[KEYS[2], '32'] == 8
    assert len(counts) == 9
    assert isinstance(section.blocks[0], Figure)
    assert 'dropout: 0.5' in section.blocks[0].svg
    marks = section.blocks[0].svg.count('<use')
    assert marks >= len(RATES) * (1 + len(KEYS))  # an accuracy, and each choice


def test_in_each_fold_the_reading_with_the_lowest_validation_loss_answers(tmp_path):
    found = many(tmp_path)
    first, *others, last = found.recipes
    labels, of_first_fold = last.pooled.labels, last.folds == 0

    def answering(recipe, right, losses):
        probabilities = np.where(labels == right, 0.9, 0.1)
        pooled = recipe.pooled._replace(probabilities=np.broadcast_to(probabilities, recipe.pooled.probabilities.shape))
        return dataclasses.replace(recipe, pooled=pooled, trials=recipe.trials.assign(val_loss=losses))

    always_wrong = answering(first, False, np.where(first.trials.fold == 0, 1e-6, 1.0))
    always_right = answering(last, True, 1e-3)
    (section,) = readings.readings(dataclasses.replace(found, recipes=[always_wrong, *others, always_right]))
    told = ' '.join(block for block in section.blocks if isinstance(block, str))
    assert f'accuracy {100 * np.mean(~of_first_fold):.1f} %' in told
    assert '4 folds. They chose 2 readings' in told


def test_without_validation_images_it_says_how_to_get_them(tmp_path):
    found = many(tmp_path)
    recipes = [dataclasses.replace(each, trials=each.trials.assign(val_loss=np.nan)) for each in found.recipes]
    (section,) = readings.readings(dataclasses.replace(found, recipes=recipes))
    assert any('split.val_folds' in block for block in section.blocks if isinstance(block, str))
