"""Splits that never tear a group apart."""

import contextlib
import json
import os
import pathlib
import sqlite3

import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import optimize
from sklearn import model_selection

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


@pytest.mark.slow
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
        ({'folds': 51}, r'split.folds is 51: class 0 has only 50 groups .* use split.folds=50'),
        ({'scheme': 'loo'}, r"Unknown split.scheme 'loo': expected 'holdout' or 'kfold'"),
        ({'scheme': 'holdout', 'fold': 1}, r'a holdout has fold 0 only'),
        ({'seed': -1}, r'split.seed is -1'),
        ({'labels': np.zeros(100, int)}, r'Labels \[0\]: expected both classes'),
        ({'labels': np.arange(100) % 3}, r'Labels \[0, 1, 2\]'),
        ({'groups': np.arange(99)}, r'labels \(100,\) and groups \(99,\)'),
        ({'groups': np.minimum(np.arange(100), 1)}, r'class 1 has only 1 group of images.*; add images of class 1\.'),
        ({'labels': np.array([]), 'groups': np.array([])}, r'Labels \[\]'),
    ],
)
def test_impossible_splits_end_in_one_line(change, message):
    arguments = {'labels': np.arange(100) % 2, 'groups': np.arange(100), 'scheme': 'kfold', 'folds': 10}
    with pytest.raises(ValueError, match=message) as caught:
        splits.split(**(arguments | {'fold': 0, 'seed': 0} | change))
    assert '\n' not in str(caught.value)


def _lacking(labels, groups, folds, seed=0):
    """How many folds lack a class."""
    parts = [splits.split(labels, groups, 'kfold', folds, fold, seed) for fold in range(folds)]
    return sum(set(labels[part.test]) != {0, 1} or set(labels[part.train]) != {0, 1} for part in parts)


def test_folds_with_both_classes_are_found_where_the_most_even_ones_lack_a_class():
    # Even folds would be (5, 0), (0, 5), (2, 2), (2, 2), (1, 1).
    labels = np.array([0] * 10 + [1] * 10)
    groups = np.array([0] * 5 + [1, 2, 3, 4, 5] + [6] * 5 + [7, 8, 9, 10, 11])
    assert _lacking(labels, groups, 5) == 0
    # Three groups have a hemorrhage each, a fourth has half of the normal images and none.
    normal = np.repeat([0, 1, 2, 3], [500, 250, 250, 10])
    assert _lacking(np.r_[np.zeros(1010, int), 1, 1, 1], np.r_[normal, 1, 2, 3], 3) == 0


def test_no_random_set_is_refused_that_has_as_many_groups_of_each_class_as_folds():
    rng = np.random.default_rng(0)
    tried = 0
    while tried < 60:
        patients = rng.integers(12, 31)
        groups = np.repeat(np.arange(patients), rng.geometric(0.3, patients))
        labels = (rng.random(patients) < 0.4).astype(int)[groups]
        mixed = rng.random(len(labels)) < 0.1
        labels = np.where(mixed, 1 - labels, labels)
        folds = int(rng.integers(2, 8))
        if min(len(set(groups[labels == label])) for label in (0, 1)) >= folds:
            tried += 1
            assert _lacking(labels, groups, folds) == 0
            assert len(splits.split(labels, groups, 'holdout', folds, 0, 0).test)


def _deviations(labels, part, folds):
    """How far folds are from equal shares: chi-square over normal, hemorrhage and all; the largest of each."""
    counts = np.stack([np.bincount(part[kept], minlength=folds) for kept in (labels == 0, labels == 1, labels >= 0)])
    ideal = counts.sum(axis=1, keepdims=True) / folds
    return ((counts - ideal) ** 2 / ideal).sum(), np.abs(counts - ideal).max(axis=1)


def test_folds_are_as_even_as_those_of_scikit_learn_and_within_a_group_of_the_ideal():
    rng = np.random.default_rng(1)
    for _ in range(40):
        patients, folds = 40, int(rng.choice([3, 5, 10]))
        groups = np.repeat(np.arange(patients), rng.geometric(0.15, patients))
        labels = (rng.random(len(groups)) < np.where(rng.random(patients) < 0.4, 0.6, 0.05)[groups]).astype(int)
        sizes = splits.fold_sizes(labels, groups, folds, 0)
        ours, theirs = np.empty(len(labels), int), np.empty(len(labels), int)
        known = model_selection.StratifiedGroupKFold(folds, shuffle=True, random_state=0)
        for fold, (_, test) in enumerate(known.split(labels, labels, groups)):
            theirs[test] = fold
            ours[splits.split(labels, groups, 'kfold', folds, fold, 0).test] = fold
        np.testing.assert_array_equal(sizes, [np.bincount(ours[labels == label], minlength=folds) for label in (0, 1)])
        (misfit, largest), (their_misfit, _) = (_deviations(labels, part, folds) for part in (ours, theirs))
        assert misfit <= their_misfit + 1e-9
        assert (largest[1:] <= [np.bincount(groups, labels).max(), np.bincount(groups).max()]).all()


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


def test_an_impossible_validation_part_names_its_own_key():
    labels, groups = np.arange(24) % 2, np.arange(24)
    whole = splits.split(labels, groups, 'holdout', 4, 0, 0)
    with pytest.raises(ValueError, match=r'split.val_folds is 50: class 0 .* 9 groups .* use split.val_folds=9 or'):
        splits.hold_out_validation(whole, labels, groups, 50, 0)
    single = splits.split(np.r_[labels[:22:2], 1, 1], np.arange(13), 'holdout', 2, 0, 0)
    with pytest.raises(ValueError, match=r'only 1 group of images in the training.*; use split.val_folds=0 for no'):
        splits.hold_out_validation(single, np.r_[labels[:22:2], 1, 1], np.arange(13), 2, 0)


def test_a_thinned_training_part_keeps_its_share_of_both_classes_and_whole_groups():
    groups = np.arange(200) // 4
    labels = np.arange(200) % 2
    whole = splits.hold_out_validation(splits.split(labels, groups, 'kfold', 10, 3, 0), labels, groups, 5, 0)
    for folds in (2, 4, 9):
        split = splits.thin_out(whole, labels, groups, folds, 0)
        np.testing.assert_array_equal(split.test, whole.test)
        np.testing.assert_array_equal(split.val, whole.val)
        assert set(split.train) < set(whole.train)
        assert not set(groups[split.train]) & set(groups[np.setdiff1d(whole.train, split.train)])
        assert abs(len(split.train) - len(whole.train) / folds) <= 2
        assert labels[split.train].mean() == 0.5
        assert split.digest not in (whole.digest, splits.thin_out(whole, labels, groups, folds, 1).digest)


def test_an_impossible_thinning_names_its_own_key():
    labels, groups = np.arange(24) % 2, np.arange(24)
    whole = splits.split(labels, groups, 'holdout', 4, 0, 0)
    with pytest.raises(ValueError, match=r'split.train_folds is 50: class 0 .* in the training part, .*=1 for all of'):
        splits.thin_out(whole, labels, groups, 50, 0)


STUDY = pathlib.Path(__file__).parents[2] / 'docs' / 'study'


def test_the_published_splits_are_the_same_digest_by_digest(head_ct):
    groups, checked = find_groups(head_ct).groups, 0
    for path in sorted(STUDY.glob('*/results.sqlite')):
        val_folds = json.loads((path.parent / 'config.json').read_text())['config']['split'].get('val_folds', 0)
        with contextlib.closing(sqlite3.connect(f'file:{path}?mode=ro', uri=True)) as database:
            columns = 'scheme, folds, fold, split_seed, split_digest'
            for *outer, digest in database.execute(f'SELECT DISTINCT {columns} FROM trials WHERE scheme IS NOT NULL'):
                split = splits.split(head_ct.labels, groups, *outer)
                if val_folds:
                    split = splits.hold_out_validation(split, head_ct.labels, groups, val_folds, outer[-1])
                assert split.digest == digest
                checked += 1
    assert checked > 80
