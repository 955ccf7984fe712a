"""Splits that never tear a group apart."""

import os

import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import optimize

from bhcnet_jax.datasets import input_pipeline
from bhcnet_jax.plan import splits
from bhcnet_jax.plan.groups import find_groups


@pytest.fixture(scope='module')
def head_ct(tmp_path_factory):
    if not os.environ.get('HEAD_CT_DIR'):
        pytest.skip('HEAD_CT_DIR is not set')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TFDS_DATA_DIR', str(tmp_path_factory.mktemp('tfds')))
        return input_pipeline.load(ConfigDict({'name': 'head_ct', 'dir': '', 'image_size': 128}))


def test_the_real_set_splits_exactly_for_every_seed(head_ct):
    groups = find_groups(head_ct).groups
    for seed in range(10):
        for scheme, folds in (('holdout', range(1)), ('kfold', range(10))):
            for fold in folds:
                split = splits.split(head_ct.labels, groups, scheme, 10, fold, seed)
                assert np.bincount(head_ct.labels[split.test]).tolist() == [10, 10]
                assert np.bincount(head_ct.labels[split.train]).tolist() == [90, 90]


def _grouped(seed, sizes=(1, 1, 1, 2, 3), images=120, mixed=False):
    """Labels and groups of about so many images; with mixed, a group holds both labels."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(images), rng.choice(sizes, images))[:images]
    labels = rng.integers(0, 2, images) if mixed else rng.integers(0, 2, images)[groups]
    shuffled = rng.permutation(images)
    return labels[shuffled].astype(np.int32), groups[shuffled].astype(np.int32)


def _counts(labels, split):
    return np.bincount(labels[split.test], minlength=2)


@pytest.mark.parametrize('mixed', [False, True])
@pytest.mark.parametrize('seed', range(10))
def test_no_group_crosses_a_split_and_every_image_is_in_one_part(seed, mixed):
    labels, groups = _grouped(seed, mixed=mixed)
    for scheme, fold in (('holdout', 0), ('kfold', 0), ('kfold', 3)):
        split = splits.split(labels, groups, scheme, 5, fold, seed)
        assert not set(groups[split.train]) & set(groups[split.test])
        np.testing.assert_array_equal(np.sort(np.r_[split.train, split.test]), np.arange(len(labels)))
        for part in (split.train, split.test):
            assert part.dtype == np.int32
            assert (np.diff(part) > 0).all()


@pytest.mark.parametrize('mixed', [False, True])
@pytest.mark.parametrize('seed', range(10))
def test_folds_cover_all_images_once_in_equal_shares(seed, mixed):
    labels, groups = _grouped(seed, mixed=mixed)
    parts = [splits.split(labels, groups, 'kfold', 6, fold, seed) for fold in range(6)]
    tested = np.concatenate([part.test for part in parts])
    np.testing.assert_array_equal(np.sort(tested), np.arange(len(labels)))
    counts = np.array([_counts(labels, part) for part in parts])
    assert np.ptp(counts, axis=0).max() <= 1
    assert np.ptp(counts.sum(axis=1)) <= 1


@pytest.mark.parametrize('seed', range(20))
def test_a_holdout_takes_the_rounded_share_of_each_class(seed):
    labels, groups = _grouped(seed, images=90 + seed)
    share = np.floor(np.bincount(labels) / 10 + 0.5).astype(int)
    split = splits.split(labels, groups, 'holdout', 10, 0, seed)
    np.testing.assert_array_equal(_counts(labels, split), share)


def _best_folds_exist(labels, groups, folds):
    """By mixed-integer programming: can every count be its share, rounded up or down?"""
    groups = np.unique(groups, return_inverse=True)[1]
    sizes = np.stack([np.bincount(groups, kept) for kept in (labels == 0, labels == 1, labels >= 0)])
    shares = np.repeat(sizes.sum(axis=1) / folds, folds)
    limits = optimize.LinearConstraint(np.kron(sizes, np.eye(folds)), np.floor(shares), np.ceil(shares))
    once = optimize.LinearConstraint(np.kron(np.eye(sizes.shape[1]), np.ones((1, folds))), 1, 1)
    variables = sizes.shape[1] * folds
    binary = {'integrality': np.ones(variables), 'bounds': optimize.Bounds(0, 1)}
    return optimize.milp(np.zeros(variables), constraints=[limits, once], **binary).status == 0


def test_folds_are_exact_wherever_an_optimizer_finds_exact_ones():
    solvable = 0
    for seed in range(12):
        labels, groups = _grouped(seed, sizes=(3, 4, 5, 6), images=150 + seed)
        counts = [_counts(labels, splits.split(labels, groups, 'kfold', 5, fold, seed)) for fold in range(5)]
        exact = max(np.ptp(counts, axis=0).max(), np.ptp(np.sum(counts, axis=1))) <= 1
        solvable += exact
        assert exact or not _best_folds_exist(labels, groups, 5)
    assert solvable > 6


def test_a_split_is_a_pure_function_of_its_arguments():
    labels, groups = _grouped(0)
    np.random.seed(1)
    first = splits.split(labels, groups, 'kfold', 5, 2, 7)
    np.random.seed(2)
    state = np.random.get_state()[1].copy()
    again = splits.split(labels.tolist(), groups.astype(np.int64), 'kfold', np.int64(5), np.int32(2), 7)
    np.testing.assert_array_equal(first.test, again.test)
    assert first.digest == again.digest
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_known_splits_do_not_change_with_numpy_or_scipy():
    labels, groups = np.arange(24) % 2, np.r_[0, 0, 0, np.arange(21)]
    assert splits.split(labels, groups, 'holdout', 4, 0, 0).test.tolist() == [5, 6, 14, 16, 21, 23]
    assert splits.split(labels, groups, 'kfold', 4, 1, 0).test.tolist() == [6, 7, 8, 11, 18, 21]


def test_two_seeds_give_different_splits():
    labels, groups = _grouped(0)
    for scheme in ('holdout', 'kfold'):
        tests = {tuple(splits.split(labels, groups, scheme, 5, 0, seed).test) for seed in range(20)}
        assert len(tests) == 20


def test_every_image_gets_into_the_test_part_of_some_holdout():
    labels, groups = _grouped(0)
    drawn = [splits.split(labels, groups, 'holdout', 5, 0, seed).test for seed in range(150)]
    share = np.bincount(np.concatenate(drawn), minlength=len(labels)) / 150
    assert share.min() > 0.04
    assert share.mean() == pytest.approx(0.2, abs=0.01)


def test_the_digest_changes_with_everything_that_fixes_a_split():
    labels, groups = _grouped(0)
    other_labels, other_groups = labels.copy(), groups + 1  # the same split from other groups
    other_labels[:2] = 1 - other_labels[:2]
    variants = [(labels, groups, 'kfold', 5, 0, 0), (other_labels, groups, 'kfold', 5, 0, 0)]
    variants += [(labels, other_groups, 'kfold', 5, 0, 0), (labels, groups, 'holdout', 5, 0, 0)]
    variants += [(labels, groups, 'kfold', 6, 0, 0), (labels, groups, 'kfold', 5, 1, 0)]
    variants += [(labels, groups, 'kfold', 5, 0, 1)]
    digests = {splits.split(*variant).digest for variant in variants}
    assert len(digests) == len(variants)
    assert all(len(digest) == 64 for digest in digests)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'fold': 12}, r'split.fold is 12 of 10 folds: expected 0 to 9'),
        ({'fold': -1}, r'split.fold is -1 of 10'),
        ({'folds': 1}, r'split.folds is 1: expected 2 or more'),
        ({'folds': 51}, r'split.folds is 51: a class has only 50 groups'),
        ({'scheme': 'loo'}, r"Unknown split.scheme 'loo': expected 'holdout' or 'kfold'"),
        ({'scheme': 'holdout', 'fold': 1}, r'a holdout has fold 0 only'),
        ({'seed': -1}, r'split.seed is -1'),
        ({'labels': np.zeros(100, int)}, r'Labels \[0\]: expected both classes'),
        ({'labels': np.arange(100) % 3}, r'Labels \[0, 1, 2\]'),
        ({'groups': np.arange(99)}, r'labels \(100,\) and groups \(99,\)'),
        ({'groups': np.maximum(np.arange(100), 60)}, r'A group is too large: 31 of the 50 images of class 0'),
        ({'labels': np.array([]), 'groups': np.array([])}, r'Labels \[\]'),
    ],
)
def test_impossible_splits_end_in_one_line(change, message):
    arguments = {'labels': np.arange(100) % 2, 'groups': np.arange(100), 'scheme': 'kfold', 'folds': 10}
    with pytest.raises(ValueError, match=message) as caught:
        splits.split(**(arguments | {'fold': 0, 'seed': 0} | change))
    assert '\n' not in str(caught.value)


def test_folds_that_lack_a_class_are_refused():
    normal = np.repeat([0, 1, 2, 3], [500, 250, 250, 10])  # groups of the normal images
    labels, groups = np.r_[np.zeros(1010, int), 1, 1, 1], np.r_[normal, 1, 2, 3]
    for fold in range(3):
        with pytest.raises(ValueError, match='Groups of up to 500 images are too large for 3 folds'):
            splits.split(labels, groups, 'kfold', 3, fold, 0)


def test_the_validation_part_is_taken_from_the_training_part_and_tears_no_group():
    groups = np.arange(200) // 4  # of four, two of each class
    labels = np.arange(200) % 2
    whole = splits.split(labels, groups, 'kfold', 10, 3, 0)
    split = splits.hold_out_validation(whole, labels, groups, 5, 0)
    np.testing.assert_array_equal(split.test, whole.test)
    np.testing.assert_array_equal(np.sort(np.concatenate([split.train, split.val])), whole.train)
    assert not set(groups[split.val]) & set(groups[split.train])
    assert abs(len(split.val) - len(whole.train) / 5) <= 4
    assert abs(labels[split.val].mean() - 0.5) < 0.1
    assert split.digest not in (whole.digest, splits.hold_out_validation(whole, labels, groups, 5, 1).digest)
