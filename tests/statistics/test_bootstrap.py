"""The bootstrap over groups of images against scikit-learn, scipy and plain loops."""

import math
import time

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from bhcnet_jax.statistics import bootstrap, metrics


def scores(seeds=1, images=60, seed=0, digits=8):
    """Labels [N], and probabilities [S, N] that agree with them more often than not."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(images) % 2)
    shared = generator.normal(size=images)  # the seeds are wrong on the same images
    logits = 2 * labels - 1 + shared + 0.5 * generator.normal(size=(seeds, images))
    return labels, (1 / (1 + np.exp(-logits))).round(digits)


SCIKIT_LEARN = {
    'accuracy': lambda y, p, w: reference.accuracy_score(y, p >= 0.5, sample_weight=w),
    'precision': lambda y, p, w: reference.precision_score(y, p >= 0.5, sample_weight=w),
    'sensitivity': lambda y, p, w: reference.recall_score(y, p >= 0.5, sample_weight=w),
    'specificity': lambda y, p, w: reference.recall_score(y, p >= 0.5, pos_label=0, sample_weight=w),
    'f1': lambda y, p, w: reference.f1_score(y, p >= 0.5, sample_weight=w),
    'auc': lambda y, p, w: reference.roc_auc_score(y, p, sample_weight=w),
    'log_loss': lambda y, p, w: reference.log_loss(y, p, sample_weight=w),
    'brier': lambda y, p, w: reference.brier_score_loss(y, p, sample_weight=w),
}


@pytest.mark.parametrize('name', bootstrap.METRICS)
def test_each_draw_has_the_metric_of_scikit_learn_averaged_over_seeds(name, monkeypatch):
    monkeypatch.setattr(bootstrap, '_PART_SIZE', 50)  # an AUC in several parts
    labels, probabilities = scores(seeds=3, digits=1)
    weights = np.random.default_rng(1).multinomial(60, np.full(60, 1 / 60), size=20).astype(float)
    expected = [np.mean([SCIKIT_LEARN[name](labels, each, w) for each in probabilities]) for w in weights]
    found = bootstrap.METRICS[name](labels.astype(bool), probabilities, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_metrics_are_those_of_a_single_evaluation():
    labels, probabilities = scores(digits=1)
    expected = metrics.evaluate(labels, probabilities[0])
    found = bootstrap.bootstrap(labels, probabilities[0], draws=10)
    assert set(found) == set(expected) - set(metrics.Counts._fields)
    for name, each in found.items():
        assert each.mean == pytest.approx(expected[name], rel=1e-12)


def test_means_and_spreads_are_over_seeds():
    labels, probabilities = scores(seeds=4)
    found = bootstrap.bootstrap(labels, probabilities, draws=10)
    for name, each in found.items():
        values = [metrics.evaluate(labels, one)[name] for one in probabilities]
        assert (each.mean, each.spread) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert math.isnan(bootstrap.bootstrap(labels, probabilities[0], draws=10)['auc'].spread)


def test_the_interval_is_that_of_scipys_percentile_bootstrap():
    labels, probabilities = scores(images=200)
    right = ((probabilities[0] >= 0.5) == labels).astype(float)
    expected = stats.bootstrap(
        (right,), np.mean, n_resamples=10_000, method='percentile', rng=np.random.default_rng(1)
    ).confidence_interval
    found = bootstrap.bootstrap(labels, probabilities, draws=10_000)['accuracy']
    # Quantiles of 10 000 draws have a standard error of about 0.0006 here; the steps of 200 images are 0.005.
    np.testing.assert_allclose((found.low, found.high), expected, atol=0.0051)


def test_draws_take_whole_groups():
    """Against a loop that picks groups and puts their images together."""
    labels, probabilities = scores(images=24)
    groups = np.array(list('aabbbcdeeffgghhhhiijjkkl'))
    generator = np.random.default_rng(7)
    ids = np.unique(groups)
    drawn = generator.multinomial(len(ids), np.full(len(ids), 1 / len(ids)), size=300)
    expected = []
    for each in drawn:
        images = np.concatenate([np.repeat(np.flatnonzero(groups == name)[None], n, 0).ravel()
                                 for name, n in zip(ids, each, strict=True)])  # fmt: skip
        expected.append(reference.roc_auc_score(labels[images], probabilities[0, images]))
    found = bootstrap.bootstrap(labels, probabilities, groups=groups, draws=300, seed=7)['auc']
    assert (found.low, found.high) == pytest.approx(np.percentile(expected, (2.5, 97.5)))


def test_copies_of_images_in_groups_do_not_narrow_the_interval():
    labels, probabilities = scores(images=40)
    once = bootstrap.bootstrap(labels, probabilities)
    copied, groups = (labels.repeat(5), probabilities.repeat(5, axis=1)), np.arange(40).repeat(5)
    grouped, loose = bootstrap.bootstrap(*copied, groups=groups), bootstrap.bootstrap(*copied)
    for name in bootstrap.METRICS:
        assert grouped[name] == pytest.approx(once[name], nan_ok=True)
    assert loose['auc'].high - loose['auc'].low < 0.6 * (once['auc'].high - once['auc'].low)


def test_equal_seeds_give_equal_intervals_and_others_do_not():
    labels, probabilities = scores(images=200)
    first, again, other = (bootstrap.bootstrap(labels, probabilities, seed=seed)['brier'] for seed in (0, 0, 1))
    assert first[:3] == again[:3]
    assert first.low != other.low and first.high != other.high


def test_draws_without_a_class_are_left_out_and_counted():
    labels, probabilities = np.array([1, 0, 0, 0]), np.array([0.6, 0.7, 0.2, 0.1])
    found = bootstrap.bootstrap(labels, probabilities, draws=4000)
    # No hemorrhage among 4 draws of 4: 0.75 ** 4 = 0.316; only hemorrhages: 0.25 ** 4 = 0.004.
    assert found['sensitivity'].undefined / 4000 == pytest.approx(0.316, abs=0.02)
    assert found['auc'].undefined == found['sensitivity'].undefined + found['specificity'].undefined
    assert found['accuracy'].undefined == 0
    assert (found['auc'].low, found['auc'].high) == pytest.approx((0, 1))


def test_draws_that_are_all_the_same_give_no_interval():
    labels = np.arange(20) % 2
    found = bootstrap.bootstrap(labels, labels * 0.8 + 0.1)
    assert found['accuracy'].mean == found['auc'].mean == 1
    assert all(math.isnan(found[name].low) and math.isnan(found[name].high) for name in ('accuracy', 'auc'))


def test_a_missing_class_leaves_a_metric_undefined():
    found = bootstrap.bootstrap(np.ones(4), np.array([0.9, 0.8, 0.2, 0.7]), draws=50)
    assert all(np.isnan(found[name][:3]).all() and found[name].undefined == 50 for name in ('specificity', 'auc'))
    assert found['sensitivity'].mean == 0.75


def test_a_seed_that_calls_nothing_positive_has_no_part_in_the_precision():
    labels, probabilities = scores()
    both = np.concatenate([probabilities, np.full_like(probabilities, 0.2)])
    one, two = (bootstrap.bootstrap(labels, each, draws=200)['precision'] for each in (probabilities, both))
    assert one[:3] == pytest.approx(two[:3])
    assert bootstrap.bootstrap(labels, both, draws=200)['f1'].mean < 0.5  # it has one in F1: 0


def test_a_measure_of_ones_own_is_bootstrapped_too():
    def calls(labels, probabilities, weights):
        return weights @ (probabilities >= 0.5).mean(axis=0) / weights.sum(axis=1)

    labels, probabilities = scores()
    found = bootstrap.bootstrap(labels, probabilities, {'calls': calls})
    assert set(found) == {'calls'}
    assert found['calls'].low < found['calls'].mean == np.mean(probabilities >= 0.5) < found['calls'].high


def test_a_difference_is_that_of_a_loop_over_the_same_draws():
    labels, first = scores(seeds=2)
    _, second = scores(seeds=3, seed=0, digits=1)
    weights = np.random.default_rng(0).multinomial(60, np.full(60, 1 / 60), size=100)
    for name in ('accuracy', 'auc'):
        drawn = [
            np.mean([SCIKIT_LEARN[name](labels, each, w) for each in second])
            - np.mean([SCIKIT_LEARN[name](labels, each, w) for each in first])
            for w in weights
        ]
        found = bootstrap.difference(labels, first, second, draws=100)[name]
        assert (found.low, found.high) == pytest.approx(np.percentile(drawn, (2.5, 97.5)))
        values = [np.mean([metrics.evaluate(labels, each)[name] for each in both]) for both in (first, second)]
        assert found.mean == pytest.approx(values[1] - values[0])


def test_a_paired_difference_is_narrower_than_one_of_other_images():
    labels, both = scores(seeds=2, images=200)
    paired = bootstrap.difference(labels, *both)['auc']
    alone = [bootstrap.bootstrap(labels, each)['auc'] for each in both]
    widths = [each.high - each.low for each in alone]
    assert paired.high - paired.low < 0.8 * math.hypot(*widths)


def test_recipes_that_are_alike_differ_by_nothing():
    labels, probabilities = scores()
    found = bootstrap.difference(labels, probabilities, probabilities)
    assert all(each.mean == 0 and math.isnan(each.low) and math.isnan(each.high) for each in found.values())


def test_ten_thousand_draws_of_two_hundred_images_take_seconds():
    labels, probabilities = scores(seeds=10, images=200)
    bootstrap._resample.cache_clear()
    start = time.process_time()
    bootstrap.bootstrap(labels, probabilities, groups=np.arange(200) // 2, draws=10_000)
    assert time.process_time() - start < 10  # 0.6 s measured on 2 cores


@pytest.mark.parametrize(
    ('labels', 'probabilities', 'groups', 'message'),
    [
        ([0, 1], [0.1, 0.9], ['a'], '1 groups for 2 images'),
        ([0, 1], [0.1, 0.9], ['a', None], '1 of 2 images have no group'),
        ([0, 1, 1], [0.1, 0.9], None, r'labels \(3,\) and values \(2,\)'),
        ([0, 2], [0.1, 0.9], None, r'Labels \[0, 2\]'),
        ([0, 1], [[0.1, 0.9], [0.1, 1.9]], None, 'expected probabilities'),
        ([0, 1], [[0.1, 0.9], [0.1, np.inf]], None, 'not finite'),
        ([], [], None, 'No images'),
    ],
)
def test_bad_input_ends_in_one_line(labels, probabilities, groups, message):
    with pytest.raises(ValueError, match=message) as caught:
        bootstrap.bootstrap(labels, probabilities, groups=groups, draws=10)
    assert '\n' not in str(caught.value)
