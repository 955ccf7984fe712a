"""Curves and their bands are those of scikit-learn, or of their definitions, on the same draws."""

import dataclasses

import numpy as np
import pytest
from sklearn import calibration
from sklearn import metrics as reference

import studies
from bhcnet_jax.records import recipes
from bhcnet_jax.report import bands, evidence
from bhcnet_jax.statistics import metrics

DRAWS = 30


@pytest.fixture(scope='module')
def recipe(tmp_path_factory):
    """Two seeds with ties between probabilities, look-alikes in groups of two."""
    found = evidence.gather(studies.write(tmp_path_factory.mktemp('study'), skill=1.5)).best('network')
    pooled = found.pooled._replace(probabilities=found.pooled.probabilities.round(2))
    return dataclasses.replace(found, pooled=pooled)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(recipes, 'DRAWS', DRAWS)


def seeds(recipe):
    return recipe.pooled.labels, list(recipe.pooled.probabilities)


def check(curve, recipe, expected):
    """expected: of labels, probabilities of a seed, and weights; a value for each point of the curve."""
    labels, of_seeds = seeds(recipe)
    once = np.ones(len(labels))
    np.testing.assert_allclose(curve.y, np.mean([expected(labels, each, once) for each in of_seeds], axis=0))
    groups = len(labels) // 2
    drawn = np.random.default_rng(0).multinomial(groups, np.full(groups, 1 / groups), size=DRAWS).repeat(2, axis=1)
    values = [np.mean([expected(labels, each, weights) for each in of_seeds], axis=0) for weights in drawn]
    low, high = np.percentile(values, (2.5, 97.5), axis=0)
    spread = np.ptp(values, axis=0) > 1e-9  # where all draws agree there is no band
    np.testing.assert_allclose(curve.low[spread], low[spread])
    np.testing.assert_allclose(curve.high[spread], high[spread])
    assert np.isnan(curve.low[~spread]).all() and spread.sum() > len(spread) / 2


def test_the_roc_curve_is_that_of_scikit_learn(recipe):
    def expected(labels, probabilities, weights):
        alarms, hits, _ = reference.roc_curve(labels, probabilities, sample_weight=weights, drop_intermediate=False)
        return [hits[alarms <= share + 1e-9].max() for share in bands.SHARES]

    check(bands.roc(recipe), recipe, expected)


def test_precision_over_sensitivity_is_that_of_scikit_learn(recipe):
    def expected(labels, probabilities, weights):
        seen = weights > 0  # scikit-learn has a threshold for images that a draw lacks, too
        precision, sensitivity, _ = reference.precision_recall_curve(
            labels[seen], probabilities[seen], sample_weight=weights[seen]
        )
        precision, sensitivity = precision[-2::-1], sensitivity[-2::-1]  # highest threshold first
        return [precision[np.argmax(sensitivity >= share - 1e-9)] for share in bands.SHARES[1:]]

    check(bands.precision_recall(recipe), recipe, expected)


def test_net_benefit_weighs_false_alarms_by_the_odds_of_the_threshold(recipe):
    def expected(labels, probabilities, weights):
        values = []
        for threshold in bands.THRESHOLDS:
            hits = alarms = 0.0
            for label, probability, weight in zip(labels, probabilities, weights, strict=True):
                if probability >= threshold:
                    hits, alarms = (hits + weight, alarms) if label else (hits, alarms + weight)
            values.append((hits - alarms * threshold / (1 - threshold)) / weights.sum())
        return values

    check(bands.net_benefit(recipe), recipe, expected)


def off_the_edges(recipe):
    """Without probabilities on the edges of bins, which scikit-learn puts into the bin above."""
    pooled = recipe.pooled._replace(probabilities=recipe.pooled.probabilities.clip(0.01, 0.98) + 0.005)
    return dataclasses.replace(recipe, pooled=pooled)


def test_reliability_is_scikit_learns_calibration_curve(recipe):
    recipe = off_the_edges(recipe)
    labels, of_seeds = seeds(recipe)
    curve, n = bands.reliability(recipe)
    observed, filled = np.zeros(bands.BINS), np.zeros(bands.BINS)
    for each in of_seeds:
        counts, _ = np.histogram(each, np.linspace(0, 1, bands.BINS + 1))
        shares, _ = calibration.calibration_curve(labels, each, n_bins=bands.BINS)
        observed[counts > 0] += shares
        filled += counts > 0
    there = filled > 0
    np.testing.assert_allclose(curve.y[there], observed[there] / filled[there])  # the mean over seeds with images there
    together = np.concatenate(of_seeds)
    _, predicted = calibration.calibration_curve(np.tile(labels, len(of_seeds)), together, n_bins=bands.BINS)
    np.testing.assert_allclose(curve.x[there], predicted)
    counts, _ = np.histogram(together, np.linspace(0, 1, bands.BINS + 1))
    np.testing.assert_allclose(n, counts / len(of_seeds))
    assert there.sum() > 5 and np.isnan(curve.y[~there]).all()
    assert (curve.low[there] <= curve.y[there] + 1e-9).all() and (curve.y[there] <= curve.high[there] + 1e-9).all()


def test_bins_of_one_to_three_images_show_their_uncertainty(recipe):
    labels = recipe.pooled.labels
    probabilities = np.where(labels, 0.95, 0.05)
    ones, zeros = np.flatnonzero(labels), np.flatnonzero(~labels)
    probabilities[ones[0]] = 0.35  # a bin of one
    probabilities[[ones[1], ones[2]]] = 0.55  # of two alike
    probabilities[[ones[3], zeros[0], zeros[1]]] = 0.75  # of three, mixed
    pooled = recipe.pooled._replace(seeds=recipe.pooled.seeds[:1], probabilities=probabilities[None])
    curve, n = bands.reliability(dataclasses.replace(recipe, pooled=pooled))
    for place, (hits, images) in {3: (1, 1), 5: (2, 2), 7: (1, 3)}.items():
        assert n[place] == images
        expected = metrics.wilson(hits, images)
        np.testing.assert_allclose([curve.low[place], curve.high[place]], expected)
        assert curve.high[place] - curve.low[place] > 0.6


def test_the_calibration_error_is_the_weighted_gap_of_the_bins(recipe):
    recipe = off_the_edges(recipe)
    labels, of_seeds = seeds(recipe)
    weights = np.random.default_rng(3).integers(0, 4, (3, len(labels))).astype(float)
    found = bands.calibration_error(labels, np.array(of_seeds), weights)
    for value, draw in zip(found, weights, strict=True):
        errors = []
        for each in of_seeds:
            repeated = np.repeat(np.arange(len(labels)), draw.astype(int))
            y, p = labels[repeated], each[repeated]
            observed, predicted = calibration.calibration_curve(y, p, n_bins=bands.BINS)
            counts, _ = np.histogram(p, np.linspace(0, 1, bands.BINS + 1))
            errors.append(np.sum(counts[counts > 0] * np.abs(observed - predicted)) / len(p))
        assert value == pytest.approx(np.mean(errors))
