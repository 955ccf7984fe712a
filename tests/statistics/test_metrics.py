"""counts, metrics, intervals and calibration against scikit-learn, scipy and statsmodels."""

import functools
import math

import numpy as np
import pytest
import sklearn.metrics
import statsmodels.api as sm
from scipy import special, stats
from statsmodels.stats.proportion import proportion_confint

from bhcnet_jax.statistics import metrics


def _predictions(seed, digits=2):
    """Labels of both classes and probabilities with ties."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.r_[0, 1, rng.integers(0, 2, rng.integers(1, 60))])
    return labels, np.round(rng.random(len(labels)), digits)


@pytest.mark.parametrize('seed', range(40))
def test_all_metrics_agree_with_scikit_learn(seed):
    labels, probabilities = _predictions(seed, digits=1 + seed % 3)
    called = probabilities >= 0.5
    (tn, fp), (fn, tp) = sklearn.metrics.confusion_matrix(labels, called)
    expected = {
        'tp': tp,
        'tn': tn,
        'fp': fp,
        'fn': fn,
        'accuracy': sklearn.metrics.accuracy_score(labels, called),
        'precision': sklearn.metrics.precision_score(labels, called, zero_division=np.nan),
        'sensitivity': sklearn.metrics.recall_score(labels, called),
        'specificity': sklearn.metrics.recall_score(labels, called, pos_label=0),
        'f1': sklearn.metrics.f1_score(labels, called),
        'auc': sklearn.metrics.roc_auc_score(labels, probabilities),
        'log_loss': sklearn.metrics.log_loss(labels, probabilities),
        'brier': sklearn.metrics.brier_score_loss(labels, probabilities),
    }
    found = metrics.evaluate(labels, probabilities)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, err_msg=name)


def test_a_probability_at_the_threshold_is_positive():
    assert metrics.counts([0, 1, 0, 1], [0.5, 0.5, 0.499, 0.501]) == (2, 1, 1, 0)
    assert metrics.counts([1, 0], [0.7, 0.7], threshold=0.71) == (0, 1, 0, 1)


def test_auc_counts_ties_as_half():
    labels, probabilities = _predictions(3, digits=1)
    wins = np.subtract.outer(probabilities[labels == 1], probabilities[labels == 0])
    expected = np.mean((wins > 0) + 0.5 * (wins == 0))
    assert metrics.evaluate(labels, probabilities)['auc'] == pytest.approx(expected)
    assert metrics.delong(labels, probabilities)[0] == pytest.approx(expected)
    assert metrics.evaluate([0, 1, 1], [0.3, 0.3, 0.3])['auc'] == 0.5


def test_a_certain_and_wrong_probability_costs_a_finite_log_loss():
    for dtype in (np.float32, np.float64):
        found = metrics.evaluate([1, 0], np.array([0, 0], dtype))
        assert found['log_loss'] == pytest.approx(-math.log(np.finfo(np.float64).eps) / 2)


def _undefined(found):
    return {name for name, value in found.items() if math.isnan(value)}


def test_undefined_metrics_are_nan_and_the_others_are_not():
    found = metrics.evaluate([0, 0, 0], [0.1, 0.2, 0.3])
    assert _undefined(found) == {'precision', 'sensitivity', 'f1', 'auc'}
    found = metrics.evaluate([1, 1], [0.9, 0.1])
    assert _undefined(found) == {'specificity', 'auc'}
    found = metrics.evaluate([0, 1], [0.1, 0.2])
    assert _undefined(found) == {'precision'}
    assert found['f1'] == 0


def test_intervals_of_undefined_proportions_are_nan():
    ends = metrics.intervals(metrics.Counts(tp=0, tn=7, fp=0, fn=3))
    assert all(map(math.isnan, ends['precision']))
    defined = ends['accuracy'] + ends['sensitivity'] + ends['specificity']
    assert not any(map(math.isnan, defined))


@pytest.mark.parametrize('seed', range(20))
def test_intervals_are_wilson_intervals_around_their_metric(seed):
    labels, probabilities = _predictions(seed)
    found = metrics.evaluate(labels, probabilities)
    tp, tn, fp, fn = counts = metrics.counts(labels, probabilities)
    totals = {'accuracy': (tp + tn, len(labels)), 'precision': (tp, tp + fp), 'sensitivity': (tp, tp + fn)}
    totals['specificity'] = (tn, tn + fp)
    ends = metrics.intervals(counts)
    assert set(ends) == set(totals)
    for name, (hits, n) in totals.items():
        if n:
            interval = stats.binomtest(hits, n).proportion_ci(0.95, 'wilson')
            np.testing.assert_allclose(ends[name], (interval.low, interval.high), atol=1e-12)
            assert ends[name][0] <= found[name] <= ends[name][1]


@pytest.mark.parametrize(('hits', 'n'), [(0, 20), (20, 20), (19, 20), (3, 7)])
def test_clopper_pearson_on_request(hits, n):
    exact = stats.binomtest(hits, n).proportion_ci(0.95, 'exact')
    low, high = metrics.proportion_interval(hits, n, 'clopper_pearson')
    np.testing.assert_allclose((low, high), exact, atol=1e-12)
    assert high - low > np.subtract(*metrics.wilson(hits, n)[::-1])
    counts = metrics.Counts(tp=hits, tn=0, fp=0, fn=n - hits)
    assert metrics.intervals(counts, 'clopper_pearson')['sensitivity'] == pytest.approx(exact)


def test_an_unknown_interval_is_refused():
    with pytest.raises(ValueError, match="'wald': expected one of wilson, clopper_pearson"):
        metrics.proportion_interval(1, 2, 'wald')


def test_wilson_takes_arrays_and_stays_within_0_and_1():
    hits, n = np.array([0, 20, 19, 5]), np.array([20, 20, 20, 7])
    low, high = metrics.wilson(hits, n)
    np.testing.assert_allclose((low, high), proportion_confint(hits, n, method='wilson'), atol=1e-12)
    assert (low >= 0).all() and (high <= 1).all()
    assert low[1] == pytest.approx(0.84, abs=0.005)  # 20 right of 20


@pytest.mark.parametrize(('hits', 'n'), [(0, 0), (3, 2), (-1, 5), ([1, 1], [2, 0])])
def test_wilson_refuses_impossible_counts(hits, n):
    with pytest.raises(ValueError, match='expected 0 <= hits <= n'):
        metrics.wilson(hits, n)


@pytest.mark.parametrize('seed', range(20))
def test_delong_agrees_with_its_definition_over_all_pairs(seed):
    labels, scores = _predictions(seed, digits=1)
    labels, scores = np.r_[labels, 0, 0, 1, 1], np.r_[scores, 0.2, 0.6, 0.5, 0.9]
    auc, low, high = metrics.delong(labels, scores)
    difference = np.subtract.outer(scores[labels == 1], scores[labels == 0])
    wins = (difference > 0) + 0.5 * (difference == 0)
    variance = sum(np.var(wins.mean(axis=axis), ddof=1) / wins.shape[1 - axis] for axis in (0, 1))
    expected = stats.norm.ppf([0.025, 0.975], wins.mean(), np.sqrt(variance))
    np.testing.assert_allclose((auc, low, high), (wins.mean(), *np.clip(expected, 0, 1)), atol=1e-12)


def test_the_delong_interval_is_about_that_of_the_bootstrap():
    rng = np.random.default_rng(0)
    normal, hemorrhage = rng.normal(0, 1, 80), rng.normal(1, 1, 60)

    def auc(a, b):
        return stats.mannwhitneyu(b, a).statistic / (len(a) * len(b))

    reference = stats.bootstrap(
        (normal, hemorrhage), auc, vectorized=False, n_resamples=999, method='percentile', rng=rng
    ).confidence_interval
    labels = np.r_[np.zeros(80, int), np.ones(60, int)]
    _, low, high = metrics.delong(labels, np.r_[normal, hemorrhage])
    np.testing.assert_allclose((low, high), reference, atol=0.015)


@pytest.mark.parametrize('scores', [[0, 1, 2, 3], [3, 2, 1, 0], [1, 1, 1, 1]])
def test_delong_gives_no_interval_where_its_variance_is_zero(scores):
    auc, low, high = metrics.delong([0, 0, 1, 1], scores)
    assert auc in (0, 0.5, 1) and math.isnan(low) and math.isnan(high)


def test_delong_of_one_class_is_nan():
    assert all(map(math.isnan, metrics.delong([1, 1, 1], [1.0, 2.0, 3.0])))


@pytest.mark.parametrize(
    ('labels', 'probabilities', 'message'),
    [
        ([0, 1], [0.1, np.nan], '1 of 2 values are not finite'),
        ([0, 1], [np.inf, 0.2], '1 of 2 values are not finite'),
        ([], [], 'No images'),
        ([0, 2], [0.1, 0.2], r'Labels \[0, 2\]'),
        ([0, 1], [0.1], r'labels \(2,\) and values \(1,\)'),
        ([[0, 1]], [[0.1, 0.2]], r'labels \(1, 2\)'),
        ([0, 1], [-2.0, 3.0], 'Values from -2 to 3'),
    ],
)
def test_bad_predictions_end_in_one_line(labels, probabilities, message):
    functions = (metrics.counts, metrics.evaluate, metrics.calibration)
    for function in functions:
        with pytest.raises(ValueError, match=message) as caught:
            function(labels, probabilities)
        assert '\n' not in str(caught.value)


def _calibrated(images, seed=0, slope=1.0, intercept=0.0):
    """Probabilities, and labels that come from logits of which they are off by a slope and an intercept."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, images)
    labels = rng.random(images) < special.expit(intercept + slope * logits)
    return labels.astype(int), special.expit(logits)


@pytest.mark.parametrize('seed', range(10))
def test_calibration_is_the_logistic_regression_of_statsmodels(seed):
    labels, probabilities = _calibrated(80, seed, slope=0.6, intercept=0.3)
    fit = sm.Logit(labels, sm.add_constant(special.logit(probabilities))).fit(disp=False)
    expected = np.column_stack([fit.params, fit.conf_int()])
    np.testing.assert_allclose(metrics.calibration(labels, probabilities), expected, rtol=1e-5)


def test_calibration_finds_what_is_wrong_with_the_probabilities():
    for slope, intercept in ((1, 0), (0.5, 0), (1.5, -1)):
        found = metrics.calibration(*_calibrated(20_000, 1, slope, intercept))
        # Standard errors are about 0.02.
        np.testing.assert_allclose((found.slope[0], found.intercept[0]), (slope, intercept), atol=0.08)
        assert found.slope[1] < found.slope[0] < found.slope[2]


@pytest.mark.parametrize(
    ('labels', 'probabilities'),
    [
        ([0, 0, 1, 1], [0.1, 0.2, 0.7, 0.8]),  # separated
        ([1, 1, 0, 0], [0.1, 0.2, 0.7, 0.8]),  # separated, the wrong way round
        ([0, 0, 1, 1], [0.1, 0.5, 0.5, 0.8]),  # but for one value
        ([0, 1, 0, 1], [0.5, 0.5, 0.5, 0.5]),
        ([0, 1, 0, 1], [0.0, 1.0, 0.0, 1.0]),
        ([1, 1, 1], [0.1, 0.5, 0.9]),
        ([0], [0.1]),
    ],
)
def test_calibration_is_nan_where_it_does_not_exist(labels, probabilities):
    found = metrics.calibration(labels, probabilities)
    assert np.isnan(found).all() and np.shape(found) == (2, 3)


def _nearly_separated():
    """Two images in the middle are on the wrong sides, so that the fit is steep."""
    labels = np.arange(20) >= 10
    labels[[9, 10]] = labels[[10, 9]]
    return labels.astype(int), special.expit(20 * np.linspace(-1, 1, 20) ** 3)


def test_calibration_of_nearly_separated_classes_is_the_most_likely_one():
    labels, probabilities = _nearly_separated()
    found = metrics.calibration(labels, probabilities)
    fitted = special.expit(found.intercept[0] + found.slope[0] * special.logit(probabilities))
    # There the likelihood has no slope.
    assert np.sum(labels - fitted) == pytest.approx(0, abs=1e-6)
    assert np.sum((labels - fitted) * special.logit(probabilities)) == pytest.approx(0, abs=1e-6)


def test_calibration_is_nan_where_the_fit_does_not_converge(monkeypatch):
    monkeypatch.setattr(sm.GLM, 'fit', functools.partialmethod(sm.GLM.fit, maxiter=1))
    assert np.isnan(metrics.calibration(*_nearly_separated())).all()


def test_calibration_takes_saturated_probabilities():
    """A network's probability can be 0 or 1 in floating point, and wrong."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        labels = np.r_[0, 1, rng.integers(0, 2, 20)]
        probabilities = np.where(rng.random(22) < 0.1, 1 - labels, labels).astype(np.float32)
        found = metrics.calibration(labels, probabilities)
        assert np.isfinite(found).all() or np.isnan(found).all()
