"""Groups that find duplicates and no more."""

import hashlib
import io
import os

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from scipy import ndimage

from bhcnet_jax.datasets import input_pipeline
from bhcnet_jax.plan import groups

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
        class_names=('negative', 'positive'),
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
    grouping = groups.find_groups(_image_set(_heads(60)))
    assert grouping.pairs == ()
    np.testing.assert_array_equal(grouping.groups, np.arange(60))
    assert grouping.groups.dtype == np.int32


def test_exact_duplicates_are_found():
    images = _heads(30)
    images[[7, 20]] = images[3]
    grouping = groups.find_groups(_image_set(images))
    assert _reasons(grouping) == {(3, 7): 'exact', (3, 20): 'exact', (7, 20): 'exact'}
    assert {pair.similarity for pair in grouping.pairs} == {1.0}
    np.testing.assert_array_equal(np.flatnonzero(grouping.groups == 3), [3, 7, 20])


@pytest.mark.parametrize('alteration', ALTERATIONS)
def test_altered_copies_are_near(alteration):
    images = _heads(40)
    copies = np.stack([ALTERATIONS[alteration](image) for image in images[:8]])
    grouping = groups.find_groups(_image_set(np.concatenate([images, copies])))
    assert _reasons(grouping) == {(index, 40 + index): 'near' for index in range(8)}
    assert min(pair.similarity for pair in grouping.pairs) > 0.5


def test_blank_images_are_grouped_only_where_they_are_equal():
    images = _heads(20)
    images[[2, 9]], images[5] = 0, 255
    assert _reasons(groups.find_groups(_image_set(images))) == {(2, 9): 'exact'}


def test_published_groups_merge_with_duplicates():
    images = _heads(20)
    images[9] = images[4]
    published = ['', 'p1', '', '', 'p1', '', '', 'p2', 'p2'] + [''] * 11
    grouping = groups.find_groups(_image_set(images, tuple(published)))
    assert _reasons(grouping) == {(1, 4): 'published', (4, 9): 'exact', (7, 8): 'published'}
    assert grouping.groups[[1, 4, 9]].tolist() == [1, 1, 1]
    assert grouping.groups[[7, 8]].tolist() == [7, 7]


def test_a_block_boundary_hides_no_pair(monkeypatch):
    images = _heads(30)
    images[[17, 29]] = _smaller(images[0]), _smaller(images[8])
    whole = groups.find_groups(_image_set(images))
    monkeypatch.setattr(groups, 'BLOCK', 7)
    blocks = groups.find_groups(_image_set(images))
    assert _reasons(blocks) == _reasons(whole) == {(0, 17): 'near', (8, 29): 'near'}


@pytest.mark.parametrize('count', [1, 2, 3])
def test_tiny_sets_are_grouped_without_an_error(count):
    assert len(groups.find_groups(_image_set(_heads(count))).groups) == count


@pytest.fixture(scope='module')
def head_ct(tmp_path_factory):
    if not os.environ.get('HEAD_CT_DIR'):
        pytest.skip('HEAD_CT_DIR is not set')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TFDS_DATA_DIR', str(tmp_path_factory.mktemp('tfds')))
        return input_pipeline.load(ConfigDict({'name': 'head_ct', 'dir': '', 'image_size': 128}))


def test_the_real_copies_are_found_and_different_patients_are_not(head_ct):
    grouping = groups.find_groups(head_ct)
    reasons = _reasons(grouping)
    assert [pair for pair in REAL_COPIES if pair not in reasons] == []
    assert [pair for pair, reason in reasons.items() if reason == 'exact'] == [(188, 189)]
    assert [pair for pair in DIFFERENT_PATIENTS if grouping.groups[pair[0]] == grouping.groups[pair[1]]] == []
    assert np.bincount(grouping.groups).max() <= 12


@pytest.mark.skipif('HEAD_CT_DIR' not in os.environ, reason='HEAD_CT_DIR is not set: no real images')
def test_groups_do_not_depend_on_the_image_size_of_a_recipe(tmp_path, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    found = []
    for size in (16, 128):
        dataset = ConfigDict({'name': 'head_ct', 'dir': '', 'image_size': size})
        found.append(groups.find_groups(input_pipeline.load(dataset)).groups)
    np.testing.assert_array_equal(*found)
