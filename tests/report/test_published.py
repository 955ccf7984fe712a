"""The tables of docs/study.md say what the published predictions say, by scikit-learn and numpy alone."""

import contextlib
import functools
import json
import pathlib
import re
import sqlite3

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from bhcnet_jax.report import settings

DOCS = pathlib.Path(__file__).parents[2] / 'docs'
TEXT = (DOCS / 'study.md').read_text()
ESTIMATE = r'\| ([\d.]+) \([^|]*'  # accuracy, sensitivity, specificity, AUC
ROW = r'^\| `(\w+)`[^|]* \| (\w+(?: \+ \w+)*) \| (\d+) ' + ESTIMATE + r'\| ([\d.]+|-) ' + 3 * ESTIMATE + r'\|$'
ROWS = re.findall(ROW, TEXT, re.MULTILINE)
EPOCH_ROW = r'^\| (balanced(?: \+ imbalanced)?) \| (\d+) ' + 5 * r'\| ([\d.]+) ' + r'\| (\d+) \|$'
EPOCH_ROWS = re.findall(EPOCH_ROW, TEXT, re.MULTILINE)
OTHER_TABLES = {'baselines', 'epochs', 'ablations'}


@functools.cache
def published(part):
    """A row for each prediction of a finished trial of a part: of its trial, image_id, label, probability."""
    query = "SELECT * FROM predictions JOIN trials USING (trial_id) WHERE status = 'DONE'"
    with contextlib.closing(sqlite3.connect(f'file:{DOCS}/study/{part}/results.sqlite?mode=ro', uri=True)) as database:
        found = pd.read_sql_query(query, database)
    return found.assign(right=(found.probability >= 0.5) == found.label)


def of_phases(part, phases):
    found = published(part)
    return found[found.phases == phases.replace(' ', '')]


def told(text, value):
    """Whether a number as printed is the value, to half its last digit: 0.7655 may be told as 0.765 or as 0.766."""
    half_a_digit = 0.5 * 0.1 ** len(text.partition('.')[2])
    return abs(float(text) - value) < half_a_digit + 1e-9


@pytest.mark.parametrize('row', ROWS, ids=lambda row: f'{row[0]}, {row[1]}')
def test_a_row_of_the_study_is_that_of_its_predictions(row):
    part, phases, trials, accuracy, spread, *others = row
    mine = of_phases(part, phases)
    assert mine.recipe_id.nunique() == 1
    assert mine.trial_id.nunique() == int(trials)
    assert len(mine) == mine.image_id.nunique() * mine.seed.nunique()  # every image once for each seed
    assert mine.image_id.nunique() == 200 and mine.drop_duplicates('image_id').label.sum() == 100
    seeds = [of_seed for _, of_seed in mine.groupby('seed')]
    accuracies = [100 * metrics.accuracy_score(each.label, each.probability >= 0.5) for each in seeds]
    found = [
        [100 * metrics.recall_score(each.label, each.probability >= 0.5) for each in seeds],
        [100 * metrics.recall_score(each.label, each.probability >= 0.5, pos_label=0) for each in seeds],
        [metrics.roc_auc_score(each.label, each.probability) for each in seeds],
    ]
    assert told(accuracy, np.mean(accuracies))
    assert spread == '-' if len(seeds) == 1 else told(spread, np.std(accuracies, ddof=1))
    for text, values in zip(others, found, strict=True):
        assert told(text, np.mean(values))


def test_every_published_recipe_is_in_the_table():
    parts = {folder.name for folder in (DOCS / 'study').iterdir()} - OTHER_TABLES
    there = {(part, phases) for part in parts for phases in published(part).phases.unique()}
    assert {(part, phases.replace(' ', '')) for part, phases, *_ in ROWS} == there


def test_a_row_of_the_epochs_is_that_of_its_ten_splits():
    assert len(EPOCH_ROWS) == 12
    for phases, epochs, mean, lowest, median, highest, paper, reached in EPOCH_ROWS:
        mine = of_phases('epochs', phases)
        mine = mine[mine.epochs == int(epochs)]
        accuracies = 100 * mine.groupby('split_seed').right.mean()
        assert len(accuracies) == 10 and (mine.groupby('split_seed').image_id.nunique() == 20).all()
        assert told(mean, accuracies.mean())
        assert [float(lowest), float(median), float(highest)] == list(np.quantile(accuracies, (0, 0.5, 1)).round(6))
        assert int(reached) == np.sum(accuracies >= float(paper) - 1e-9)


CHANGE_ROW = r'^\| `(\S+)` ([^|]+) \| ([\d.]+) \| ([+-][\d.]+) \| ([\d.]+) \| (\d) of 5 \| ([\d.]+) \|'


@functools.cache
def ablations():
    """Trials of the ablations, of seed 0 but for those of the reference, and each recipe's change: key, value."""
    folder = DOCS / 'study' / 'ablations'
    trials = published('ablations').drop_duplicates('trial_id')
    written = [json.loads((folder / name).read_text()) for name in ('config.json', 'env.json')]
    known = settings.of_recipes([written], set(trials.recipe_id))
    reference = trials.recipe_id.value_counts().index[0]  # it alone has three seeds
    changes = {}
    for recipe_id in known.keys() - {reference}:
        key = settings.differing(known[reference], known[recipe_id])[0]
        changes[recipe_id] = key, settings.shown(known[recipe_id][key])
    return trials, reference, changes


def of_folds(recipe_id, column):
    """By fold, seed 0."""
    trials = ablations()[0]
    return trials[(trials.recipe_id == recipe_id) & (trials.seed == 0)].set_index('fold')[column].sort_index()


def test_a_row_of_the_ablations_is_that_of_its_five_folds():
    _, reference, changes = ablations()
    rows = {(key, value): numbers for key, value, *numbers in re.findall(CHANGE_ROW, TEXT, re.MULTILINE)}
    assert rows.keys() == set(changes.values())
    for recipe_id, change in changes.items():
        losses = of_folds(recipe_id, 'val_loss')
        differences = losses - of_folds(reference, 'val_loss')
        assert len(differences.dropna()) == len(losses) == 5
        loss, difference, error, lower, accuracy = rows[change]
        assert told(loss, losses.mean()) and told(difference, differences.mean())
        assert told(error, differences.std() / np.sqrt(5)) and int(lower) == (differences < 0).sum()
        assert told(accuracy, 100 * of_folds(recipe_id, 'val_accuracy').mean())
