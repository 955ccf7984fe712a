"""The networks' table in docs/study.md says what the published predictions say, by scikit-learn alone."""

import contextlib
import pathlib
import re
import sqlite3

import pandas as pd
import pytest
from sklearn import metrics

DOCS = pathlib.Path(__file__).parents[1] / 'docs'
ESTIMATE = r'\| ([\d.]+) [^|]*'  # accuracy, sensitivity, specificity, AUC
ROW = re.compile(r'^\| `(\w+)` \| (\w+(?: \+ \w+)*) \| (\d+) ' + 4 * ESTIMATE + r'\|$', re.MULTILINE)


def published():
    """A row for each prediction of a finished trial of a network: recipe, phases, image_id, label, probability."""
    query = (
        'SELECT recipe, phases, trial_id, image_id, label, probability, recipe_id, seed '
        "FROM predictions JOIN trials USING (trial_id) WHERE status = 'DONE'"
    )
    found = []
    for file in sorted({*(DOCS / 'study').rglob('results.sqlite')} - {DOCS / 'study/baselines/results.sqlite'}):
        with contextlib.closing(sqlite3.connect(f'file:{file}?mode=ro', uri=True)) as database:
            found.append(pd.read_sql_query(query, database))
    return pd.concat(found)


ROWS = ROW.findall((DOCS / 'study.md').read_text())


@pytest.mark.parametrize('row', ROWS, ids=lambda row: f'{row[0]}, {row[1]}')
def test_a_row_of_the_study_is_that_of_its_predictions(row):
    recipe, phases, trials, *told = row
    scored = published()
    mine = scored[(scored.recipe == recipe) & (scored.phases == phases.replace(' ', ''))]
    assert mine.recipe_id.nunique() == 1
    assert mine.trial_id.nunique() == int(trials)
    assert len(mine) == mine.image_id.nunique() * mine.seed.nunique()  # every image once for each seed
    assert mine.image_id.nunique() == 200 and mine.drop_duplicates('image_id').label.sum() == 100
    called = mine.probability >= 0.5
    found = [
        100 * metrics.accuracy_score(mine.label, called),
        100 * metrics.recall_score(mine.label, called),
        100 * metrics.recall_score(mine.label, called, pos_label=0),
        metrics.roc_auc_score(mine.label, mine.probability),
    ]
    for text, value, half_a_digit in zip(told, found, (0.05, 0.05, 0.05, 0.0005), strict=True):
        assert abs(float(text) - value) < half_a_digit + 1e-9  # 0.7655 may be told as 0.765 or as 0.766


def test_every_published_recipe_is_in_the_table():
    scored = published()
    told = {(recipe, phases.replace(' ', '')) for recipe, phases, *_ in ROWS}
    assert told == set(zip(scored.recipe, scored.phases, strict=True))
