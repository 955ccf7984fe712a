"""Calibration, operating point and abstention, on logits whose truth is known."""

import numpy as np
import pytest
from scipy import special, stats

import bhcnet_jax
from bhcnet_jax.errors import UserError
from bhcnet_jax.inference import calibration, trained
from bhcnet_jax.inference.calibration import OutOfFold
from bhcnet_jax.statistics import metrics


def drawn(count, slope, intercept=0.0, seed=0):
    """Images whose logits are calibrated by slope and intercept."""
    generator = np.random.default_rng(seed)
    true = generator.normal(0, 2, count)
    labels = generator.random(count) < special.expit(true)
    return OutOfFold((true - intercept) / slope, labels, np.arange(count), 1)


def labels_at_random(count=90, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(count) % 2 == 1)
    return OutOfFold(generator.normal(0, 3, count), labels, np.arange(count), 1)


@pytest.mark.parametrize('slope', [0.4, 1.0, 2.5])
def test_a_known_temperature_is_found(slope):
    found = calibration.fit(drawn(6000, slope))
    assert found.slope == pytest.approx(slope, rel=0.08)
    assert found.intercept == pytest.approx(0, abs=0.1)


def test_a_known_shift_is_found_and_needs_platt():
    found = calibration.fit(drawn(6000, 0.5, 1.5))
    assert found.method == 'platt'
    assert (found.slope, found.intercept) == (pytest.approx(0.5, rel=0.08), pytest.approx(1.5, abs=0.15))
    data = drawn(6000, 0.5, 1.5, seed=1)
    calibrated = found.probabilities(data.logits)
    assert calibrated[data.labels].size and np.mean(calibrated) == pytest.approx(data.labels.mean(), abs=0.02)


def test_classes_without_an_overlap_get_finite_numbers_and_answers_without_an_error():
    data = OutOfFold(np.linspace(-9, 9, 80), np.arange(80) >= 40, np.arange(80), 1)
    found = calibration.fit(data)
    assert 0 < found.slope < 10 and np.isfinite(found.intercept)
    assert (found.decide(found.probabilities(data.logits)) == data.labels).all()


def test_networks_that_know_nothing_keep_their_order_and_a_probability_near_the_share_of_positives():
    data = labels_at_random()
    found = calibration.fit(data._replace(logits=np.where(data.labels, -1.0, 1.0) + 0.1 * data.logits))
    calibrated = found.probabilities(np.array([-3.0, 0.0, 3.0]))
    assert calibrated == pytest.approx(0.5, abs=0.01) and (np.diff(calibrated) > 0).all()


def test_the_operating_point_has_the_promised_sensitivity_and_no_higher_threshold_has_it():
    data = drawn(400, 1.0)
    found = calibration.fit(data, 'sensitivity>=0.95')
    calibrated = found.probabilities(data.logits)
    assert np.mean(calibrated[data.labels] >= found.threshold) >= 0.95
    higher = np.min(calibrated[data.labels & (calibrated >= found.threshold)]) + 1e-9
    assert np.mean(calibrated[data.labels] >= higher) < 0.95


def test_youden_has_the_largest_sum_of_sensitivity_and_specificity():
    data = drawn(300, 1.0)
    found = calibration.fit(data)
    calibrated = found.probabilities(data.logits)

    def youden(threshold):
        return np.mean(calibrated[data.labels] >= threshold) + np.mean(calibrated[~data.labels] < threshold)

    assert youden(found.threshold) == max(map(youden, calibrated))


def test_on_random_labels_what_is_reported_is_worse_than_on_the_images_that_were_fitted():
    losses, gaps = [], []
    for seed in range(5):
        data = labels_at_random(seed=seed)
        found, shown = calibration.fit(data), calibration.evidence(data, 'youden', 0.1)['after']
        calibrated = found.probabilities(data.logits)
        fitted = metrics.evaluate(data.labels, calibrated)['log_loss']
        counts = metrics.counts(data.labels, calibrated, found.threshold)
        youden = counts.tp / 45 + counts.tn / 45 - 1
        losses.append(shown['log_loss']['value'] - fitted)
        gaps.append(youden - (shown['sensitivity']['value'] + shown['specificity']['value'] - 1))
        assert youden >= 0 and found.threshold < 1
    assert np.mean(gaps) > 0.1 and min(losses) > -1e-9 and np.mean(losses) > 0.001


def test_each_true_class_is_possible_as_often_as_promised_on_new_images():
    data, new = drawn(600, 1.0), drawn(40000, 1.0, seed=1)
    for level in (0.05, 0.2):
        found = calibration.fit(data, error_level=level)
        possible = found.possible(found.probabilities(new.logits))
        for label in (0, 1):
            true = new.labels == label
            n = int((data.labels == label).sum())
            allowed = int(np.floor(level * (n + 1)))  # of so many calibration images plus the new one (Vovk, 2012)
            low, high = stats.beta.interval(0.9999, n + 1 - allowed, allowed)
            assert low - 0.01 < possible[true, label].mean() < high + 0.01


def test_the_reported_coverage_is_within_binomial_bounds_of_the_promise():
    shown = calibration.evidence(drawn(1000, 0.7), 'youden', 0.1)['abstention']
    for each in shown['possible']:
        low, high = stats.binom.interval(0.9999, each['images'], 0.9)
        assert low <= round(each['value'] * each['images']) <= high
        assert each['low'] < each['value'] < each['high']
    for answered, right in zip(shown['answered'], shown['right'], strict=True):
        assert right['images'] == round(answered['value'] * answered['images'])


def test_it_answers_where_one_class_is_possible_and_is_the_one_decided_for():
    made = calibration.Calibration('platt', 1.0, 0.0, 'youden', 0.5, 0.1, negative_up_to=0.6, positive_from=0.3)
    calibrated = np.array([0.1, 0.29, 0.3, 0.5, 0.6, 0.61, 0.9])
    assert made.answers(calibrated).tolist() == [True, True, False, False, False, True, True]
    neither = calibration.Calibration('platt', 1.0, 0.0, 'youden', 0.5, 0.1, negative_up_to=0.3, positive_from=0.6)
    assert neither.answers(calibrated).tolist() == [True, True, True, False, True, True, True]
    low = calibration.Calibration('platt', 1.0, 0.0, 'youden', 0.2, 0.1, negative_up_to=0.4, positive_from=0.4)
    assert low.answers(calibrated).tolist() == [True, False, False, True, True, True, True]


def test_images_of_a_group_are_fitted_or_reported_on_together():
    data = drawn(200, 1.0)
    grouped = data._replace(groups=np.arange(200) // 4)
    for fitted, held in calibration.parts_of(grouped.labels, grouped.groups):
        assert not set(grouped.groups[fitted]) & set(grouped.groups[held])
        assert (fitted ^ held).all()


def test_one_holdout_of_the_paper_is_too_little_and_stays_as_it_is():
    data = drawn(20, 1.0)
    assert calibration.fit(data) is None
    assert '20 out-of-fold images' in calibration.lacking(data)
    few_patients = drawn(400, 1.0)._replace(groups=np.arange(400) % 8)
    assert 'in 8 groups' in calibration.lacking(few_patients) and calibration.fit(few_patients) is None


def test_an_error_level_that_the_images_do_not_allow_is_refused():
    with pytest.raises(UserError, match=r'error_level=0.01: needs 99 .* of each class'):
        calibration.fit(labels_at_random(), error_level=0.01)


def test_an_image_counts_once_with_the_mean_logit_of_its_seeds(crossed):
    chosen = trained.select(crossed)
    data = calibration.out_of_fold(chosen)
    assert (len(data.labels), data.seeds) == (12, 2)
    per_image = chosen.predictions.groupby('image_id', sort=True).probability
    np.testing.assert_allclose(data.logits, per_image.apply(lambda p: special.logit(p).mean()).to_numpy())
    assert bhcnet_jax.load(crossed).calibration is None
