"""Labels tell recipes apart, in few words; the reference is the recipe that others are near to."""

import dataclasses
import json

import numpy as np

import studies
from bhcnet_jax.configs import zoo
from bhcnet_jax.plan.written import recipes
from bhcnet_jax.report import differences, evidence, settings


def test_recipes_of_one_label_are_told_apart_by_what_both_have(tmp_path):
    networks, _ = studies.write(tmp_path)
    known = evidence.gather([networks]).recipes[0].settings
    without = {key: value for key, value in known.items() if not key.startswith('imbalanced.')}
    one, two = known, without | {'phases': ['balanced'], 'model.filters': (8, 16)}
    assert settings.varying([one, two]) == ['phases', 'model.filters']
    assert [settings.shown(two[key]) for key in ('phases', 'model.filters')] == ['balanced', '(8, 16)']
    assert settings.shown(one['phases']) == 'balanced + imbalanced'
    assert set(settings.varying([known, without])) == {key for key in known if key.startswith('imbalanced.')}


def labels(known, recipe='net'):
    keys = settings.varying(known)
    usual = settings.usual(known, keys)
    return [settings.label(recipe, each, keys, usual) for each in known]


def test_a_label_tells_what_is_not_as_in_most_of_the_recipes(tmp_path):
    networks, _ = studies.write(tmp_path)
    first = evidence.gather([networks]).recipes[0].settings
    changes = ({}, {'model.norm': 'group'}, {'phases': ['balanced']}, {'model.dtype': 'bfloat16', 'model.dropout': 0.1})
    known = [{**first, 'model.dropout': 0.5, **change} for change in changes]
    assert labels(known) == ['net', 'net (norm group)', 'net (balanced)', 'net (dropout 0.1, bfloat16)']
    two = [{'model.dropout': value} for value in (0.5, 0.1)]
    assert labels(two) == ['net (dropout 0.5)', 'net (dropout 0.1)']  # of two there is no majority


def test_a_label_has_no_key_that_its_network_has_not():
    config = zoo.get_config()
    config.model.width = 0.25
    written = json.loads(config.to_json_best_effort())
    every = dict(recipes(written, []))
    known = settings.of_recipes([({'config': written}, [])], set(every))
    of_rate = [each for each in known.values() if each['optimizer.peak_lr'] == 1e-4 and each['phases'][0] == 'balanced']
    norms = [', norm batch' if each.get('model.norm') == 'batch' else '' for each in of_rate]
    names = [each['model.name'] for each in of_rate]
    assert len(names) == 11
    assert labels(of_rate, 'zoo') == [f'zoo ({name}{norm})' for name, norm in zip(names, norms, strict=True)]


def test_a_label_tells_a_file_of_weights_by_the_beginning_of_its_digest():
    known = [{'model.name': name, 'model.weights_sha256': ''} for name in ('resnet18', 'resnet50')]
    with_file = {'model.name': 'resnet50', 'model.weights_sha256': '0123456789abcdef' * 4}
    assert labels([*known, with_file, {'model.name': 'cnn'}]) == [
        'net (resnet18)', 'net (resnet50)', 'net (resnet50, weights_sha256 01234567)', 'net (cnn)',
    ]  # fmt: skip
    assert settings.label('net', known[0], ['model.weights_sha256'], {}) == 'net (no weights_sha256)'


def test_a_label_does_not_repeat_the_phase_that_its_name_ends_with():
    both = {'phases': ['balanced', 'imbalanced'], 'balanced.epochs': 24, 'imbalanced.epochs': 4}
    one = {'phases': ['balanced'], 'balanced.epochs': 24}
    assert labels([one, both], 'balanced') == ['balanced', 'balanced + imbalanced']
    assert labels([one, both], 'gru_balanced') == ['gru_balanced', 'gru_balanced + imbalanced']
    assert labels([one, both], 'imbalanced') == ['imbalanced (balanced)', 'imbalanced (balanced + imbalanced)']


def test_a_label_tells_epochs_beside_their_phase():
    both = {'phases': ['balanced', 'imbalanced'], 'balanced.epochs': 24}
    known = [{**both, 'imbalanced.epochs': 4}, {**both, 'imbalanced.epochs': 8},
             {'phases': ['balanced'], 'balanced.epochs': 8}]  # fmt: skip
    assert labels(known[:2], 'balanced') == ['balanced + imbalanced 4 epochs', 'balanced + imbalanced 8 epochs']
    told = [settings.label('balanced', each, settings.varying(known), {}) for each in known]
    assert told == ['balanced 24 + imbalanced 4 epochs', 'balanced 24 + imbalanced 8 epochs', 'balanced 8 epochs']


def test_a_label_tells_whether_and_not_true_or_false():
    known = [{'dataset.equalise': value} for value in (False, True)]
    both = [{**each, 'model.dropout': dropout} for each in known for dropout in (0.1, 0.2)]
    assert labels(both, 'strong')[::2] == ['strong (no equalise, dropout 0.1)', 'strong (equalise, dropout 0.1)']


def test_the_one_recipe_with_nothing_on_keeps_its_name():
    known = [{'dataset.equalise': value} for value in (True, False)]
    assert labels(known, 'strong') == ['strong (equalise)', 'strong']


def reference_of(recipe, points):
    found = [dataclasses.replace(recipe, settings=each) for each in points]
    return found.index(differences.most_neighbours(found))


def test_the_reference_is_the_network_with_the_most_others_one_setting_away(tmp_path):
    recipe = evidence.gather(studies.write(tmp_path)).recipes[0]
    generator = np.random.default_rng(0)
    points = [{f'key{key}': int(value) for key, value in enumerate(row)} for row in generator.integers(0, 3, (40, 4))]
    lacking = [{'a': 2, 'b': 5, 'c': 7}, {'a': 2, 'b': 5, 'c': 8}, {'a': 1}, {'a': 1, 'b': 1}, {'a': 1, 'c': 1}]
    for each in (points, lacking):
        counts = [sum(len(settings.differing(one, other)) == 1 for other in each) for one in each]
        assert reference_of(recipe, each) == np.argmax(counts) > 0
    with_others = [dataclasses.replace(recipe, settings={'a': value}) for value in range(3)]
    elsewhere = dataclasses.replace(recipe, folds=recipe.folds * 0, settings={'a': 9})
    assert differences.most_neighbours([elsewhere, *with_others]) is with_others[0]
