"""What drawn heads are worth, by how many of them and how many training images there were."""

import dataclasses

import studies
from bhcnet_jax.report import evidence
from bhcnet_jax.report.page import Figure, Table
from bhcnet_jax.report.sections.drawn_heads import drawn_heads

ALONE, BEFORE, NONE = ('phantom',), ('phantom', 'balanced'), ('balanced',)
DRAWN = {'phantom.epochs': 10, 'phantom.samples': 100}
AMOUNTS = [(ALONE, 1), (BEFORE, 1), (NONE, 1), (NONE, 4)]  # 48 images in 4 folds


def some(tmp_path, amounts=AMOUNTS):
    """Evidence of recipes that saw drawn heads before real images, or one of the two."""
    found = evidence.gather(studies.write(tmp_path)[:1])
    recipes = [
        dataclasses.replace(each, settings={**each.settings, **DRAWN, 'phases': phases, 'split.train_folds': folds})
        for each, (phases, folds) in zip(found.recipes, amounts, strict=True)
    ]
    return dataclasses.replace(found, recipes=recipes)


def test_every_recipe_is_told_by_its_heads_and_its_training_images(tmp_path):
    found = some(tmp_path)
    (section,) = drawn_heads(found)
    (table,) = (each for each in section.blocks if isinstance(each, Table))
    amounts = {(heads.value, images.value): auc.value for heads, images, auc in table.rows}
    assert set(amounts) == {(1000, 0), (1000, 36), (0, 36), (0, 9)}
    assert amounts[0, 9] == found.recipes[3].number('auc').value
    heads, images = (each for each in section.blocks if isinstance(each, Figure))
    assert '1,000' in heads.svg and 'drawn heads alone' in heads.svg
    assert 'after 1,000 drawn heads' in images.svg and 'without drawn heads' in images.svg


def test_what_was_measured_elsewhere_stands_beside_it(tmp_path):
    found = some(tmp_path)
    measured = {
        'model': {'trials': [found.recipes[1].trials.trial_id.iloc[0]]}, 'data': {'dataset': 'ward'},
        'results': [{'metrics': {'auc': {'value': 0.7, 'low': 0.6, 'high': 0.8, 'n': 9}}}],
    }  # fmt: skip
    (section,) = drawn_heads(dataclasses.replace(found, elsewhere=[measured]))
    (table,) = (each for each in section.blocks if isinstance(each, Table))
    assert table.heads[-1] == 'AUC on ward'
    assert {(row[0].value, row[1].value): row[-1] if isinstance(row[-1], str) else row[-1].value
            for row in table.rows} == {(1000, 0): '-', (1000, 36): 0.7, (0, 36): '-', (0, 9): '-'}  # fmt: skip


def test_nothing_is_shown_where_only_one_of_the_two_differs(tmp_path):
    assert drawn_heads(some(tmp_path / 'images', [(NONE, 1), (NONE, 2), (NONE, 4), (NONE, 8)])) == []
    assert drawn_heads(some(tmp_path / 'heads', [(BEFORE, 1), (BEFORE, 1), (NONE, 1), (NONE, 1)])) == []
    assert drawn_heads(evidence.gather(studies.write(tmp_path / 'none'))) == []
