"""Groups that find duplicates and no more."""

import hashlib
import io
import os

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from scipy import ndimage

from bhcnet_jax.datasets import input_pipeline, preprocessing
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
        turned_sha256=tuple(map(preprocessing.turned_sha256, images)),
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
    'mirrored and smaller': lambda image: _smaller(image[:, ::-1]),
}
TURNS = {
    'mirrored': np.fliplr,
    'upside down': np.flipud,
    'turned 90': np.rot90,
    'turned 180': lambda image: np.rot90(image, 2),
    'turned 270': lambda image: np.rot90(image, 3),
    'transposed': np.transpose,
    'transposed the other way': lambda image: np.rot90(image, 2).T,
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


@pytest.mark.parametrize('turn', TURNS)
def test_turned_copies_are_kept_together(turn):
    images = _heads(30)
    copies = np.stack([TURNS[turn](image) for image in images[:6]])
    grouping = groups.find_groups(_image_set(np.concatenate([images, copies])))
    assert _reasons(grouping) == {(index, 30 + index): 'turned' for index in range(6)}
    assert len(set(grouping.groups)) == 30


def test_turned_copies_of_a_file_that_is_no_square_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    heads = [image[:90] for image in _heads(12)]
    for index, image in enumerate([*heads, heads[3].T, heads[5][::-1]]):
        Image.fromarray(np.ascontiguousarray(image)).save(tmp_path / f'{index:02d}.png')
    rows = ''.join(f'{index:02d}.png,{index % 2}\n' for index in range(14))
    (tmp_path / 'labels.csv').write_text(f'file,label\n{rows}')
    found = input_pipeline.load(ConfigDict({'name': 'folder', 'dir': str(tmp_path), 'image_size': 32}))
    assert _reasons(groups.find_groups(found)) == {(3, 12): 'turned', (5, 13): 'turned'}


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


def test_look_alikes_of_two_published_groups_stay_apart_and_are_listed():
    images = _heads(20)
    images[[12, 17]] = _smaller(images[2]), _smaller(images[3])
    published = tuple(f'p{index // 4}' if index < 16 else '' for index in range(20))
    grouping = groups.find_groups(_image_set(images, published))
    assert [pair[:3] for pair in grouping.apart] == [(2, 12, 'near')]
    np.testing.assert_array_equal(grouping.groups[:16], np.arange(16) // 4 * 4)
    assert grouping.groups[17] == 0  # an image without a group joins the one of its look-alike
    assert [line[:26] for line in grouping.warnings] == ['1 pairs of look-alikes are']


def test_an_image_without_a_group_ties_no_two_published_groups():
    images = _heads(20)
    images[[5, 19]] = _smaller(images[2]), _jpeg(images[2])  # 2 of p0, 5 of p1, 19 of none
    published = tuple(f'p{index // 4}' if index < 16 else '' for index in range(20))
    grouping = groups.find_groups(_image_set(images, published))
    assert grouping.groups[0] != grouping.groups[4]
    assert grouping.groups[19] in (0, 4)
    assert len(grouping.apart) == 2


def test_exact_copies_join_published_groups_and_that_is_said():
    images = _heads(20)
    images[9] = np.rot90(images[2])
    published = tuple(f'p{index // 4}' for index in range(20))
    grouping = groups.find_groups(_image_set(images, published))
    assert len(set(grouping.groups)) == 4
    (line,) = grouping.warnings
    assert '1 pairs of copies are in two published groups each' in line
    assert '002.png of p0 and 009.png of p2' in line


def _near(a, b, outlyingness):
    return groups._Near(a, b, 0.7, outlyingness)


def test_a_single_weak_pair_holds_no_chain_together():
    patients = [_near(0, 1, 7.0), _near(1, 2, 6.5), _near(3, 4, 7.0), _near(4, 5, 6.5)]
    single, none = np.arange(7, dtype=np.int32), [False] * 7

    def tied(*more):
        return groups._tie_near(single, none, [*patients, *more]).tolist()

    assert tied() == tied(_near(2, 3, 6.0)) == [0, 0, 0, 3, 3, 3, 6]
    assert tied(_near(2, 3, 6.0), _near(1, 3, 5.5)) == [0, 0, 0, 0, 0, 0, 6]  # held by two
    assert tied(_near(2, 3, 9.0)) == [0, 0, 0, 0, 0, 0, 6]  # held by a copy
    assert tied(_near(5, 6, 5.5)) == [0, 0, 0, 3, 3, 3, 3]  # an image by itself is no chain


def _slices(patients, likeness, seed=0):
    """uint8 [10 * patients, 128, 128]: ten slices of each, whose texture has this correlation with the one before."""
    rng = np.random.default_rng(seed)
    slices = []
    for ring in _heads(patients):
        textures = ndimage.gaussian_filter(rng.normal(size=(10, 128, 128)), (0, 4, 4)) * 300
        texture = textures[0]
        for new in textures:
            texture = likeness * texture + (1 - likeness**2) ** 0.5 * new
            slices.append(np.where((ring == 0) | (ring == 250), ring, np.clip(texture + 90, 30, 200)))
    return np.stack(slices).astype(np.uint8)


@pytest.mark.parametrize('likeness', [0.6, 0.7, 0.8, 0.9])
def test_consecutive_slices_ask_for_a_group_column(likeness):
    images = _slices(12, likeness)
    assert 'Add a column `group`' in groups.find_groups(_image_set(images)).warnings[0]
    published = tuple(f'p{index // 10}' for index in range(120))
    assert not any('column' in line for line in groups.find_groups(_image_set(images, published)).warnings)


def test_a_set_of_copies_asks_for_no_group_column():
    copies = np.concatenate([_heads(60), np.stack([_smaller(image) for image in _heads(60)])])
    assert groups.find_groups(_image_set(copies)).warnings == ()


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


@pytest.mark.slow
def test_the_real_copies_are_found_and_different_patients_are_not(head_ct):
    grouping = groups.find_groups(head_ct)
    reasons = _reasons(grouping)
    assert [pair for pair in REAL_COPIES if pair not in reasons] == []
    assert [pair for pair, reason in reasons.items() if reason == 'exact'] == [(188, 189)]
    assert [pair for pair in DIFFERENT_PATIENTS if grouping.groups[pair[0]] == grouping.groups[pair[1]]] == []
    assert np.bincount(grouping.groups).max() <= 12
    assert (grouping.apart, grouping.warnings) == ((), ())


@pytest.mark.skipif('HEAD_CT_DIR' not in os.environ, reason='HEAD_CT_DIR is not set: no real images')
@pytest.mark.slow
def test_groups_do_not_depend_on_the_image_size_of_a_recipe(tmp_path, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    found = []
    for size in (16, 128):
        dataset = ConfigDict({'name': 'head_ct', 'dir': '', 'image_size': size})
        found.append(groups.find_groups(input_pipeline.load(dataset)).groups)
    np.testing.assert_array_equal(*found)
