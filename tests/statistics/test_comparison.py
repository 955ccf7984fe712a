"""Comparisons, pooled folds and the paper's protocol against statsmodels, scipy and enumeration."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from bhcnet_jax.statistics import comparison


def test_mid_p_is_that_of_the_published_example():
    """Fagerland, Lydersen, Laake (2013): 1 and 7 discordant pairs; 2 * (9 - 8 / 2) / 256."""
    assert comparison.mid_p(1, 7) == comparison.mid_p(7, 1) == pytest.approx(0.0390625)


@pytest.mark.parametrize(('first', 'second'), [(0, 5), (3, 4), (2, 9), (6, 6), (20, 41)])
def test_mid_p_is_the_exact_p_less_a_point_probability(first, second):
    n = first + second
    exact = mcnemar([[0, first], [second, 0]], exact=True).pvalue
    point = stats.binom.pmf(first, n, 0.5)
    expected = exact - point if first != second else 1 - point / 2
    assert comparison.mid_p(first, second) == pytest.approx(expected)


@pytest.mark.parametrize(('first', 'second'), [(0, 1), (1, 1), (2, 5), (4, 4), (0, 8)])
def test_mid_p_counts_the_outcomes(first, second):
    n = first + second
    uneven = [abs(2 * sum(outcome) - n) for outcome in itertools.product((0, 1), repeat=n)]
    found = abs(first - second)
    expected = (sum(each > found for each in uneven) + sum(each == found for each in uneven) / 2) / 2**n
    assert comparison.mid_p(first, second) == pytest.approx(expected)


def test_mcnemar_counts_images_that_one_recipe_has_right():
    labels = [1, 1, 0, 0, 1, 0]
    first = [0.9, 0.2, 0.1, 0.8, 0.5, 0.5]  # right: 0, 2, 4
    second = [0.9, 0.9, 0.6, 0.1, 0.1, 0.1]  # right: 0, 1, 3, 5
    assert comparison.mcnemar(labels, first, second) == (2, 3, comparison.mid_p(2, 3))
    assert comparison.mcnemar(labels, first, first) == (0, 0, 1.0)
    with pytest.raises(ValueError, match='expected one value per label'):
        comparison.mcnemar(labels, first, second[:5])
    with pytest.raises(ValueError, match='expected numbers of images'):
        comparison.mid_p(-1, 3)


def test_holm_steps_down():
    """By hand: 0.01 * 4, 0.02 * 3, then 0.03 * 2 and 0.04 * 1, none below the one before."""
    np.testing.assert_allclose(comparison.holm([0.04, 0.01, 0.03, 0.02]), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(comparison.holm([0.6, 0.9]), [1, 1])
    for wrong in ([], [0.1, np.nan], [1.2]):
        with pytest.raises(ValueError, match='expected one or more in'):
            comparison.holm(wrong)


def predictions(seeds=(3, 5), images=12, folds=3):
    """A row per prediction in the order of folds, as the results database has them; and labels and probabilities."""
    generator = np.random.default_rng(0)
    labels, probabilities = np.arange(images) % 2, generator.random((len(seeds), images))
    rows = [
        {'seed': seed, 'image_id': f'{image:03}', 'label': labels[image], 'probability': probabilities[row, image]}
        for row, seed in enumerate(seeds)
        for fold in range(folds)
        for image in range(fold, images, folds)
    ]
    return pd.DataFrame(rows), labels, probabilities


def test_folds_are_pooled_by_image_and_seed():
    scored, labels, probabilities = predictions()
    pooled = comparison.pivot(scored)
    assert list(pooled.seeds) == [3, 5]
    assert list(pooled.image_ids) == [f'{image:03}' for image in range(12)]
    np.testing.assert_array_equal(pooled.labels, labels == 1)
    np.testing.assert_array_equal(pooled.probabilities, probabilities)
    gap = comparison.pivot(scored[(scored.seed == 3) | (scored.image_id != '007')]).probabilities
    assert np.argwhere(np.isnan(gap)).tolist() == [[1, 7]]


def trainings(hits, n_test=20):
    hits = np.asarray(hits)
    return pd.DataFrame({'tp': hits // 2, 'tn': hits - hits // 2, 'n_test': n_test}).astype('Int64')


def test_the_protocol_reports_how_often_a_figure_is_reached():
    hits = np.r_[np.full(4, 20), np.full(6, 19), np.full(30, 12)]
    found = comparison.protocol(trainings(hits))
    assert (found.trainings, found.n_test, found.reached, found.share) == (40, 20, 4, 0.1)
    assert (found.low, found.high) == pytest.approx(stats.binomtest(4, 40).proportion_ci(0.95, 'wilson'))
    np.testing.assert_allclose(found.quantiles, np.quantile(hits / 20, comparison.QUANTILES))
    assert (found.quantiles[0], found.quantiles[-1]) == (0.6, 1)


def test_a_figure_between_two_counts_is_not_reached_by_the_lower():
    hits = [17, 18, 19, 20]
    assert [comparison.protocol(trainings(hits), figure).reached for figure in (0.85, 0.9, 0.95, 0.951)] == [4, 3, 2, 1]
    assert comparison.protocol(trainings([6, 7, 8], 25), 0.28).reached == 2  # 0.28 * 25 is 7.000000000000001


def test_the_protocol_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match=r'Test sets of \[10, 20\] images'):
        comparison.protocol(pd.concat([trainings([5], 10), trainings([5], 20)]))
    unfinished = trainings([5, 6])
    unfinished.loc[1, 'tp'] = pd.NA
    for rows in (trainings([]), unfinished):
        with pytest.raises(ValueError, match='expected one or more that are DONE'):
            comparison.protocol(rows)
