"""The synthetic set: what is drawn, that its classes differ by blood alone, and that tfds gives it back."""

import importlib.util
import inspect
import io
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from scipy import ndimage

from bhcnet_jax.datasets.phantom import drawing, phantom_dataset_builder, shortcuts, source


@pytest.fixture(scope='module')
def slices():
    return list(drawing.draw_set())


@pytest.fixture(scope='module')
def bleeding(slices):
    return [drawn for drawn in slices if drawn.kind]


def draw(**kwargs):
    return [drawing.draw_slice(index, **kwargs) for index in range(10)]  # both classes of every kind


def filled_head(image):
    """bool [H, W]: what the skull encloses, together with the image's edge where that cuts the head off."""
    bone = image > 200
    for edge in (bone[0], bone[-1], bone[:, 0], bone[:, -1]):
        cut = np.flatnonzero(edge)
        if len(cut):
            edge[cut[0] : cut[-1]] = True
    parts, count = ndimage.label(ndimage.binary_dilation(bone))
    skull = parts == 1 + np.argmax(ndimage.sum_labels(bone, parts, range(1, count + 1)))
    return ndimage.binary_fill_holes(skull)


@pytest.mark.slow
def test_the_same_seed_draws_the_same_pixels(slices):
    for index in range(10):
        again = drawing.draw_slice(index)
        np.testing.assert_array_equal(again.image, slices[index].image)
        np.testing.assert_array_equal(again.mask, slices[index].mask)


def test_another_seed_draws_other_pixels(slices):
    for ours, other in zip(slices, draw(seed=drawing.SEED + 1), strict=False):
        assert ours.image.shape != other.image.shape or (ours.image != other.image).any()


def test_no_two_slices_are_alike(slices):
    assert len({drawn.image.tobytes() for drawn in slices}) == drawing.NUM_SLICES


def test_half_of_the_set_bleeds_and_each_kind_has_20_slices(slices):
    kinds = [drawn.kind for drawn in slices]
    assert kinds.count('') == 100
    assert {kind: kinds.count(kind) for kind in drawing.KINDS} == dict.fromkeys(drawing.KINDS, 20)
    assert [drawn.id for drawn in slices] == [f'{index:03d}' for index in range(200)]


def test_images_and_masks_are_uint8_of_one_size_and_masks_are_0_or_255(slices):
    for drawn in slices:
        assert drawn.image.dtype == drawn.mask.dtype == np.uint8
        assert drawn.image.shape == drawn.mask.shape
        assert set(np.unique(drawn.mask)) <= {0, 255}


def test_masks_mark_blood_in_every_hemorrhage_and_in_no_normal_slice(slices):
    for drawn in slices:
        share = (drawn.mask > 0).mean()
        assert share > 0.003 if drawn.kind else share == 0, drawn.id


def test_blood_lies_inside_the_skull(bleeding):
    for drawn in bleeding:
        rows, columns = np.nonzero(drawn.mask)
        assert filled_head(drawn.image)[rows, columns].mean() > 0.99, drawn.id


def test_blood_is_brighter_than_the_brain_around_it(bleeding):
    contrasts = []
    for drawn in bleeding:
        blood = drawn.mask > 0
        near = ndimage.binary_dilation(blood, iterations=10) & ~ndimage.binary_dilation(blood, iterations=3)
        brain = near & (drawn.image > 25) & (drawn.image < 200)  # neither air nor skull
        contrasts.append(drawn.image[blood].mean() - drawn.image[brain].mean())
    assert min(contrasts) > 20, bleeding[int(np.argmin(contrasts))].id
    assert np.median(contrasts) > 40


def test_a_lens_is_shorter_than_a_crescent_and_thicker(bleeding):
    def thickness_and_extent(kind):
        masks = [drawn.mask > 0 for drawn in bleeding if drawn.kind == kind]
        thick = [2 * ndimage.distance_transform_edt(mask).max() / mask.shape[0] for mask in masks]
        tall = [np.ptp(np.nonzero(mask)[0]) / mask.shape[0] for mask in masks]
        return np.median(thick), np.median(tall)

    lens_thickness, lens_extent = thickness_and_extent('epidural')
    crescent_thickness, crescent_extent = thickness_and_extent('subdural')
    assert lens_thickness > crescent_thickness
    assert lens_extent < crescent_extent


@pytest.mark.parametrize('index', range(10))
def test_the_label_changes_nothing_but_the_bleeding_and_its_rim(index):
    normal, bleeds = (drawing.draw_slice(index, bleeds=bleeds) for bleeds in (False, True))
    assert normal.image.shape == bleeds.image.shape
    far = ndimage.distance_transform_edt(bleeds.mask == 0) > 0.1 * len(bleeds.mask)
    assert far.any()
    np.testing.assert_array_equal(normal.image[far], bleeds.image[far])
    assert (normal.image != bleeds.image)[bleeds.mask > 0].mean() > 0.8


def test_sizes_vary_within_those_of_published_slices(slices):
    heights, widths = np.array([drawn.image.shape for drawn in slices]).T
    assert heights.min() >= 130 and widths.min() >= 130 and heights.max() <= 500 and widths.max() <= 500
    assert len(set(heights)) > 50 and len(set(widths)) > 50


def test_grey_statistics_and_size_do_not_tell_the_label(slices):
    labels = np.array([int(drawn.kind != '') for drawn in slices])
    aucs = shortcuts.shortcut_aucs([drawn.image for drawn in slices], labels)
    assert len(aucs) == 4
    for name, folds in aucs.items():
        assert folds.mean() < 0.75, name


def test_the_shortcut_measure_finds_a_shortcut(slices):
    labels = np.arange(40) % 2
    images = [drawn.image // 2 + np.uint8(100 * label) for drawn, label in zip(slices, labels, strict=False)]
    aucs = shortcuts.shortcut_aucs(images, labels)
    assert aucs['mean grey, logistic regression'].mean() > 0.9
    assert aucs['32-bin histogram, logistic regression'].mean() > 0.9


def test_the_fingerprint_changes_with_the_seed():
    ours = source.fingerprint()
    assert ours == source.fingerprint()
    assert len(ours) == 64 and int(ours, 16)
    assert ours != source.fingerprint(drawing.SEED + 1)


def test_the_fingerprint_changes_with_what_is_drawn(monkeypatch):
    before = source.fingerprint()
    monkeypatch.setattr(drawing, 'GREY', drawing.GREY + 1)
    assert source.fingerprint() != before


def test_the_fingerprint_changes_with_the_source_of_the_drawing(monkeypatch, tmp_path):
    path = tmp_path / 'edited_drawing.py'
    path.write_text(inspect.getsource(drawing).replace('NUM_SLICES = 200', 'NUM_SLICES = 100'))
    spec = importlib.util.spec_from_file_location('edited_drawing', path)
    edited = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, 'edited_drawing', edited)
    spec.loader.exec_module(edited)
    before = source.fingerprint()
    monkeypatch.setattr(source, 'drawing', edited)
    assert source.fingerprint() != before


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, 'NUM_SLICES', 20)
        builder = phantom_dataset_builder.Builder(data_dir=tmp_path_factory.mktemp('phantom'))
        builder.download_and_prepare()
    return builder


def test_the_builder_gives_back_what_was_drawn(slices, built):
    names = built.info.features['label'].names
    for drawn, record in zip(slices[:20], built.as_data_source(split='train'), strict=True):
        np.testing.assert_array_equal(record['image'][..., 0], drawn.image)
        np.testing.assert_array_equal(record['mask'][..., 0], drawn.mask)
        assert (record['id'], record['group']) == (drawn.id.encode(), b'')
        assert names[record['label']] == ('hemorrhage' if drawn.kind else 'normal')


def test_images_and_masks_are_stored_as_grey_png(built):
    raw = {name: tfds.decode.SkipDecoding() for name in ('image', 'mask')}
    record = built.as_data_source(split='train', decoders=raw)[1]
    for name in raw:
        with Image.open(io.BytesIO(record[name])) as png:
            assert (png.format, png.mode) == ('PNG', 'L')


def test_the_readme_is_the_description(built):
    assert 'synthetic' in built.info.description
    assert 'tensorflow' not in sys.modules
