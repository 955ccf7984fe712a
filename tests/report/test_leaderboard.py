"""The leaderboard's numbers are those of scikit-learn on the predictions, and its intervals follow one rule."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as reference

import studies
from bhcnet_jax.records import merge, recipes
from bhcnet_jax.report import __main__ as report
from bhcnet_jax.report import evidence
from bhcnet_jax.statistics import metrics
from studies import numbers, recipe_id_of, section

SCORES = {  # column -> scikit-learn's metric of labels, probabilities and weights, and the class that it is of
    'accuracy': (lambda y, p, w: reference.accuracy_score(y, p >= 0.5, sample_weight=w), None),
    'sensitivity': (lambda y, p, w: reference.recall_score(y, p >= 0.5, sample_weight=w), 1),
    'specificity': (lambda y, p, w: reference.recall_score(y, p >= 0.5, sample_weight=w, pos_label=0), 0),
    'AUC': (lambda y, p, w: reference.roc_auc_score(y, p, sample_weight=w), None),
    'precision': (lambda y, p, w: reference.precision_score(y, p >= 0.5, sample_weight=w), None),
    'F1': (lambda y, p, w: reference.f1_score(y, p >= 0.5, sample_weight=w), None),
    'log-loss (nats)': (lambda y, p, w: reference.log_loss(y, p, sample_weight=w), None),
    'Brier score': (lambda y, p, w: reference.brier_score_loss(y, p, sample_weight=w), None),
}
DRAWS = 8


def test_every_number_of_the_leaderboard_is_that_of_scikit_learn(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, 'DRAWS', DRAWS)
    directories = studies.write(tmp_path)
    found = report.make(evidence.gather(directories), with_images=False)
    report.write(found, tmp_path / 'report.html')
    board = pd.concat([numbers(tmp_path, 'leaderboard'), numbers(tmp_path, 'scores')])
    spread = numbers(tmp_path, 'spread').value
    scored = studies.predictions(directories)
    seen = set()
    for name, rows in board.groupby('row'):
        expected = recompute(scored[scored.recipe_id == recipe_id_of(name, scored)])
        for (_, column), row in rows.iterrows():
            values, low, high, n = expected[column]
            assert tuple(row) == pytest.approx((np.mean(values), low, high, n)), (name, column)
            seen.add((name, column))
        for column in ('accuracy', 'sensitivity', 'specificity', 'AUC'):
            assert spread[name, column] == pytest.approx(np.std(expected[column][0], ddof=1))
        assert spread[name, 'seeds'] == 2
    assert len(seen) == 6 * len(SCORES)


def recompute(scored):
    """column -> its values by seed, ends of its interval over groups of look-alikes, images that it is of."""
    seeds = [rows.sort_values('image_id') for _, rows in scored.groupby('seed')]
    truth = seeds[0].label.to_numpy()
    groups = len(truth) // 2
    drawn = np.random.default_rng(0).multinomial(groups, np.full(groups, 1 / groups), size=DRAWS).repeat(2, axis=1)
    found = {}
    for name, (score, of) in SCORES.items():
        probabilities = [rows.probability.to_numpy() for rows in seeds]
        values = [score(truth, each, None) for each in probabilities]
        draws = [np.mean([score(truth, each, weights) for each in probabilities]) for weights in drawn]
        n = len(truth) if of is None else np.sum(truth == of)
        if name == 'precision':
            n = round(np.mean([np.sum(each >= 0.5) for each in probabilities]))
        found[name] = (values, *np.percentile(draws, (2.5, 97.5)), n)
    return found


def test_an_ensemble_answers_with_the_mean_probability_over_seeds(real):
    scored = studies.predictions([real / 'networks', real / 'baselines'])
    found = numbers(real, 'ensembles').value
    assert len(found) == 6 * 5  # seeds and four metrics
    for label in found.index.unique('row'):
        mine = scored[scored.recipe_id == recipe_id_of(label, scored)]
        mean = mine.groupby('image_id')[['label', 'probability']].mean()
        for column in ('accuracy', 'sensitivity', 'specificity', 'AUC'):
            expected = SCORES[column][0](mean.label == 1, mean.probability, None)
            assert found[label, column] == pytest.approx(expected)


def test_without_baselines_their_command_is_named(tmp_path):
    networks, _ = studies.write(tmp_path)
    studies.make_report(tmp_path, networks)
    command = (
        "python -m bhcnet_jax.baselines --config=balanced --config.split.scheme=kfold --config.split.folds=4 "
        "--sweep='seed=0:2 split.fold=0:4'"
    )
    assert command in section(tmp_path, 'Answer') and command in section(tmp_path, 'Leaderboard')


def test_the_report_and_the_results_command_give_the_same_intervals(tmp_path):
    directories = studies.write(tmp_path, seeds=1)
    for grouped in (True, False):
        if not grouped:
            for directory in directories:
                data = json.loads((directory / 'data.json').read_text())
                (directory / 'data.json').write_text(json.dumps({**data, 'groups': []}))
        board = recipes.make(merge.merge(directories)).set_index('recipe_id')
        for recipe in evidence.gather(directories).recipes:
            row = board.loc[recipe.recipe_id]
            for name in recipes.METRICS:
                found = recipe.scores[name]
                assert found[:3] == pytest.approx(tuple(row[[name, f'{name}_low', f'{name}_high']]), nan_ok=True)
            wilson = metrics.wilson(round(row.accuracy * 48), 48)
            assert grouped != (recipe.scores['accuracy'][1:3] == pytest.approx(wilson))
            assert row.folds == recipe.folds_done == '4/4'
