"""Comparisons are those of the predictions, and of the database for validation images."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest

import studies
from bhcnet_jax.report import evidence
from bhcnet_jax.report.page import Table
from bhcnet_jax.report.sections import comparisons as sections
from studies import numbers, recipe_id_of, section


def comparisons(folder):
    return section(folder, 'Comparisons and ablations')


def test_differences_and_disagreements_are_those_of_the_predictions(real):
    reference_label = re.search(r'minus the reference, (.*\))\*\*', comparisons(real))[1]
    scored = studies.predictions([real / 'networks', real / 'baselines'])
    right = {}
    for label in numbers(real, 'leaderboard').index.unique('row'):
        mine = scored[scored.recipe_id == recipe_id_of(label, scored)]
        mean = mine.groupby('image_id')[['label', 'probability']].mean()
        of_trials = np.mean((mine.probability >= 0.5) == (mine.label == 1))
        right[label] = (of_trials, (mean.probability >= 0.5) == (mean.label == 1))
    first, first_right = right.pop(reference_label)
    found = numbers(real, 'comparisons')
    for label, (accuracy, is_right) in right.items():
        assert found.value[label, 'accuracy difference'] == pytest.approx(accuracy - first)
        row = next(line for line in comparisons(real).splitlines() if line.startswith(f'| {label} |'))
        only = [str((is_right & ~first_right).sum()), str((~is_right & first_right).sum())]
        assert [cell.strip() for cell in row.split('|')][5:7] == only
    adjusted = found.value.xs('after Holm, 5 tests', level='column')
    assert (adjusted >= found.value.xs('McNemar mid-p', level='column')).all()


def test_ablations_differ_from_the_reference_in_one_setting(real):
    names = set(numbers(real, 'ablation-differences').index.get_level_values('row'))
    assert len(names) == 2  # of three other networks one differs in both
    assert {name.partition(':')[0] for name in names} == {'model.dropout', 'optimizer.peak_lr'}


def test_validation_scores_are_those_of_the_database_with_losses_paired_by_seed_and_fold(real):
    reference_label = re.search(r'minus the reference, (.*\))\*\*', comparisons(real))[1]
    studies.predictions([real / 'networks'])  # exports results.csv
    results = pd.read_csv(real / 'networks/results.csv')
    found = numbers(real, 'validation')
    labels = list(dict.fromkeys(found.index.get_level_values('row')))
    trials = {label: results[results.recipe_id == recipe_id_of(label, results)].set_index(['seed', 'fold'])
              for label in labels}  # fmt: skip
    assert len(labels) == 4  # without the baselines
    assert labels == sorted(labels, key=lambda label: trials[label].val_loss.mean())
    for label, mine in trials.items():
        n = studies.VAL_IMAGES * len(mine)
        assert found.value[label, 'accuracy'] == pytest.approx(mine.val_accuracy.mean())
        assert (found.n[label, 'accuracy'], found.n[label, 'log-loss (nats)']) == (n, n)
        assert found.value[label, 'log-loss (nats)'] == pytest.approx(mine.val_loss.mean())
        change = mine.val_loss - trials[reference_label].val_loss
        assert found.value[label, 'log-loss minus the reference'] == pytest.approx(change.mean())
        lower = '-' if label == reference_label else f'{(change < 0).sum()} of {len(change)}'
        row = next(line for line in comparisons(real).splitlines() if line.startswith(f'| {label} |') and lower in line)
        assert row.split('|')[-2].strip() == lower


def test_what_was_not_scored_on_its_validation_images_has_no_row_of_them(tmp_path):
    found = evidence.gather(studies.write(tmp_path)[:1])
    one, *_ = found.recipes
    first, second, unscored = (
        dataclasses.replace(one, recipe_id=name, label=name, trials=one.trials.assign(n_val=4, **scores))
        for name, scores in (
            ('first', {'val_loss': 0.1, 'val_accuracy': 1.0}),
            ('second', {'val_loss': 0.2, 'val_accuracy': 0.5}),
            ('unscored', {'val_loss': np.nan, 'val_accuracy': np.nan}),
        )
    )
    shown = sections.comparisons(dataclasses.replace(found, recipes=[first, second, unscored]), first)
    (table,) = (each for each in shown.blocks if isinstance(each, Table) and each.name == 'validation')
    assert [row[0] for row in table.rows] == ['first', 'second']


def test_the_reference_may_be_named(tmp_path):
    directories = studies.write(tmp_path)
    studies.make_report(tmp_path, *directories, '--reference', 'random forest on all shortcuts')
    assert 'minus the reference, random forest on all shortcuts' in comparisons(tmp_path)


def test_a_hint_at_ablations_names_the_config_of_the_reference(tmp_path):
    networks, baselines = studies.write(tmp_path)
    (networks / 'config.json').unlink()  # so that no settings are known
    studies.make_report(tmp_path, networks, baselines)
    hint = re.search(r'Missing: recipes that differ from the reference in one setting\. `(.*)`', comparisons(tmp_path))
    assert hint[1].startswith('python -m bhcnet_jax.main --config=imbalanced ')
