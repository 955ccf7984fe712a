"""Groups that find duplicates and no more, and splits that never tear one apart."""

import hashlib
import io
import os

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from scipy import ndimage, optimize

from bhcnet_jax import input_pipeline, splits

# Seen by eye in the real set: one slice twice, in another size, window or crop.
REAL_COPIES = [(4, 57), (5, 22), (5, 58), (9, 65), (10, 66), (11, 61), (12, 30), (22, 58), (73, 95)]
REAL_COPIES += [(104, 186), (105, 187), (145, 148), (146, 149), (147, 150), (188, 189), (198, 199)]
DIFFERENT_PATIENTS = [(53, 190), (79, 80), (41, 148), (34, 47), (29, 145), (140, 158), (159, 190), (1, 78)]


def _heads(count, seed=0):
    """uint8 [count, 128, 128]: rings of different shape around smooth texture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:128, :128] - 63.5
    images = []
    for _ in range(count):
        radius = np.hypot(x / rng.uniform(42, 54), y / rng.uniform(48, 60))
        texture = ndimage.gaussian_filter(rng.normal(size=(128, 128)), 4) * 300 + 90
        images.append(np.where(radius > 1, 0, np.where(radius > 0.88, 250, np.clip(texture, 30, 200))))
    return np.stack(images).astype(np.uint8)


def _image_set(images, groups=None, labels=None):
    n = len(images)
    return input_pipeline.ImageSet(
        name='folder',
        synthetic=False,
        fingerprint='0' * 64,
        ids=tuple(f'{index:03d}.png' for index in range(n)),
        images=images,
        thumbnails=images,
        labels=np.arange(n, dtype=np.int32) % 2 if labels is None else labels,
        groups=groups or ('',) * n,
        pixel_sha256=tuple(hashlib.sha256(image.tobytes()).hexdigest() for image in images),
        heights=np.full(n, 128, np.int32),
        widths=np.full(n, 128, np.int32),
        modes=('L',) * n,
        coloured=np.zeros(n, bool),
        file_bytes=np.full(n, 5000, np.int32),
    )


def _smaller(image):
    small = Image.fromarray(image).resize((75, 80), Image.Resampling.BILINEAR)
    return np.asarray(small.resize((128, 128), Image.Resampling.BILINEAR))


def _jpeg(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'JPEG', quality=50)
    return np.asarray(Image.open(file))


ALTERATIONS = {
    'smaller': _smaller,
    'jpeg': _jpeg,
    'other window': lambda image: np.clip((image.astype(float) - 25) * 1.4, 0, 255).astype(np.uint8),
    'margin': lambda image: np.asarray(Image.fromarray(np.pad(image, 14)).resize((128, 128))),
    'turned by 2 degrees': lambda image: ndimage.rotate(image, 2, reshape=False, order=1),
    'mirrored': lambda image: np.ascontiguousarray(image[:, ::-1]),
}


def _reasons(grouping):
    return {(pair.a, pair.b): pair.reason for pair in grouping.pairs}


def test_different_images_are_not_grouped():
    grouping = splits.find_groups(_image_set(_heads(60)))
    assert grouping.pairs == ()
    np.testing.assert_array_equal(grouping.groups, np.arange(60))
    assert grouping.groups.dtype == np.int32


def test_exact_duplicates_are_found():
    images = _heads(30)
    images[[7, 20]] = images[3]
    grouping = splits.find_groups(_image_set(images))
    assert _reasons(grouping) == {(3, 7): 'exact', (3, 20): 'exact', (7, 20): 'exact'}
    assert {pair.similarity for pair in grouping.pairs} == {1.0}
    np.testing.assert_array_equal(np.flatnonzero(grouping.groups == 3), [3, 7, 20])


@pytest.mark.parametrize('alteration', ALTERATIONS)
def test_altered_copies_are_near(alteration):
    images = _heads(40)
    copies = np.stack([ALTERATIONS[alteration](image) for image in images[:8]])
    grouping = splits.find_groups(_image_set(np.concatenate([images, copies])))
    assert _reasons(grouping) == {(index, 40 + index): 'near' for index in range(8)}
    assert min(pair.similarity for pair in grouping.pairs) > 0.5


def test_blank_images_are_grouped_only_where_they_are_equal():
    images = _heads(20)
    images[[2, 9]], images[5] = 0, 255
    assert _reasons(splits.find_groups(_image_set(images))) == {(2, 9): 'exact'}


def test_published_groups_merge_with_duplicates():
    images = _heads(20)
    images[9] = images[4]
    groups = ['', 'p1', '', '', 'p1', '', '', 'p2', 'p2'] + [''] * 11
    grouping = splits.find_groups(_image_set(images, tuple(groups)))
    assert _reasons(grouping) == {(1, 4): 'published', (4, 9): 'exact', (7, 8): 'published'}
    assert grouping.groups[[1, 4, 9]].tolist() == [1, 1, 1]
    assert grouping.groups[[7, 8]].tolist() == [7, 7]


def test_a_block_boundary_hides_no_pair(monkeypatch):
    images = _heads(30)
    images[[17, 29]] = _smaller(images[0]), _smaller(images[8])
    whole = splits.find_groups(_image_set(images))
    monkeypatch.setattr(splits, 'BLOCK', 7)
    blocks = splits.find_groups(_image_set(images))
    assert _reasons(blocks) == _reasons(whole) == {(0, 17): 'near', (8, 29): 'near'}


@pytest.mark.parametrize('count', [1, 2, 3])
def test_tiny_sets_are_grouped_without_an_error(count):
    assert len(splits.find_groups(_image_set(_heads(count))).groups) == count


@pytest.fixture(scope='module')
def head_ct(tmp_path_factory):
    if not os.environ.get('HEAD_CT_DIR'):
        pytest.skip('HEAD_CT_DIR is not set')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TFDS_DATA_DIR', str(tmp_path_factory.mktemp('tfds')))
        return input_pipeline.load(ConfigDict({'name': 'head_ct', 'dir': '', 'image_size': 128}))


def test_the_real_copies_are_found_and_different_patients_are_not(head_ct):
    grouping = splits.find_groups(head_ct)
    reasons = _reasons(grouping)
    assert [pair for pair in REAL_COPIES if pair not in reasons] == []
    assert [pair for pair, reason in reasons.items() if reason == 'exact'] == [(188, 189)]
    assert [pair for pair in DIFFERENT_PATIENTS if grouping.groups[pair[0]] == grouping.groups[pair[1]]] == []
    assert np.bincount(grouping.groups).max() <= 12


def test_the_real_set_splits_exactly_for_every_seed(head_ct):
    groups = splits.find_groups(head_ct).groups
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


@pytest.mark.skipif('HEAD_CT_DIR' not in os.environ, reason='HEAD_CT_DIR is not set: no real images')
def test_groups_do_not_depend_on_the_image_size_of_a_recipe(tmp_path, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    groups = []
    for size in (16, 128):
        dataset = ConfigDict({'name': 'head_ct', 'dir': '', 'image_size': size})
        groups.append(splits.find_groups(input_pipeline.load(dataset)).groups)
    np.testing.assert_array_equal(*groups)


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
