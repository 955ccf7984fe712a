"""Heads drawn on the device: numpy draws the same, the label changes nothing but the blood, nothing else tells it."""

import csv
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from bhcnet_jax.datasets.phantom import anatomy, bleedings, heads, patients, shapes, shortcuts

pytestmark = pytest.mark.slow

SIZE, COUNT = 64, 48


@functools.cache
def programs():
    def render(drawn):
        hu, seen, pixel = heads.section(drawn, SIZE)
        return seen._replace(image=heads.grey(drawn, hu, pixel)), hu, pixel

    return jax.jit(jax.vmap(lambda key: heads.numbers(key, SIZE))), jax.jit(jax.vmap(render))


def numbers(seed=0, **changes):
    """The numbers of COUNT slices; changes: values for all of them."""
    drawn = programs()[0](jax.random.split(jax.random.key(seed), COUNT))
    return drawn | {name: jnp.full(COUNT, value) for name, value in changes.items()}


def render(drawn):
    return jax.tree.map(np.asarray, programs()[1](drawn))


@pytest.fixture(scope='module')
def slices():
    return render(numbers())[0]


def test_fields_have_the_shapes_and_types_that_are_promised():
    drawn = jax.eval_shape(lambda key: heads.draw(key, SIZE), jax.random.key(0))
    fields = {name: (field.shape, field.dtype.name) for name, field in drawn._asdict().items()}
    assert fields == {
        'image': ((SIZE, SIZE), 'uint8'),
        'mask': ((SIZE, SIZE), 'bool'),
        'label': ((), 'int32'),
        'kind': ((), 'int32'),
        'contrast': ((), 'float32'),
        'volume': ((), 'float32'),
    }


def test_a_key_draws_the_same_slice_alone_and_in_a_batch(slices):
    alone = jax.jit(lambda key: heads.draw(key, SIZE))(jax.random.split(jax.random.key(0), COUNT)[3])
    differs = np.abs(np.asarray(alone.image, int) - slices.image[3])
    assert differs.max() <= 1 and (differs > 0).mean() < 0.01
    np.testing.assert_array_equal(alone.mask, slices.mask[3])


def test_another_key_draws_another_slice(slices):
    assert len({image.tobytes() for image in slices.image}) == COUNT


def test_numpy_draws_the_same_head():
    """A sum of float32 differs by 1e-6 of 100 mm with the order of rounding: 1e-4 mm, of which the steepest edge,
    2200 HU in 1 mm, makes 0.2 HU."""
    given = numbers(bleeds=1.0)
    given['scan']['jpeg'] = jnp.full(COUNT, -1.0)  # rounds away what differs little, or makes it a whole step
    seen, hu, pixel = render(given)
    for index in range(6):
        plain = jax.tree.map(lambda each, index=index: np.asarray(each[index]), given)
        reference, shown, _ = heads.section(plain, SIZE)
        assert isinstance(reference, np.ndarray) and reference.dtype == np.float32
        np.testing.assert_allclose(hu[index], reference, atol=0.3)
        assert (seen.mask[index] != shown.mask).mean() < 1e-3
        assert seen.kind[index] == shown.kind
        grey = heads.grey(plain, reference, [each[index] for each in pixel])
        assert np.abs(seen.image[index] - grey.astype(int)).max() <= 2


def test_labels_follow_the_mask_and_bleedings_are_large_enough(slices):
    np.testing.assert_array_equal(slices.label, slices.mask.any(axis=(1, 2)))
    np.testing.assert_array_equal(slices.label, slices.kind > 0)
    bleeding = slices.label == 1
    assert (slices.volume[bleeding] > 0).all() and (slices.volume[~bleeding] == 0).all()
    assert (slices.contrast[~bleeding] == 0).all() and (slices.contrast[bleeding] != 0).all()


def test_a_head_without_its_bleeding_and_its_mass_effect_is_the_same_head():
    given = numbers(seed=1)
    given |= {'blood': given['blood'] | {'mass': jnp.zeros(COUNT)}}
    bloody, hu, pixel = render(given | {'bleeds': jnp.ones(COUNT)})
    bare, bare_hu, _ = render(given | {'bleeds': jnp.zeros(COUNT)})
    assert not bare.label.any() and bloody.label.mean() > 0.8
    for index in np.flatnonzero(bloody.label):
        change = np.abs(hu[index] - bare_hu[index])
        assert np.median(change[bloody.mask[index]]) > 0.5
        sampling = pixel[1][index], pixel[0][index]
        far = ndimage.distance_transform_edt(~bloody.mask[index], sampling=sampling) > 40  # mm
        assert np.quantile(change[far], 0.9, method='lower') < 0.01 if far.any() else True


def test_the_bleeding_enters_neither_patient_nor_distractors_nor_scan(monkeypatch):
    keys = jax.random.split(jax.random.key(5), 8)
    before = jax.vmap(lambda key: heads.numbers(key, SIZE))(keys)
    monkeypatch.setitem(bleedings.RANGES, 'hu', (10.0, 20.0))
    monkeypatch.setattr(heads, 'INTENDED', 0.0)
    after = jax.vmap(lambda key: heads.numbers(key, SIZE))(keys)
    assert (before['blood']['hu'] != after['blood']['hu']).all() and not after['bleeds'].any()
    for part in ('patient', 'other', 'scan', 'height'):
        jax.tree.map(np.testing.assert_array_equal, before[part], after[part])


def test_no_key_is_used_twice(monkeypatch):
    used = []

    def recorded(function):
        def draw(key, *args, **kwargs):
            used.append(tuple(np.asarray(jax.random.key_data(key)).tolist()))
            return function(key, *args, **kwargs)

        return draw

    for name in ('uniform', 'normal', 'bernoulli'):
        monkeypatch.setattr(jax.random, name, recorded(getattr(jax.random, name)))
    heads.numbers(jax.random.key(0), SIZE)
    streams = set(used)
    assert len(used) == len(streams) == 8


def test_half_of_the_slices_bleed_at_every_height():
    batches = [numbers(seed) for seed in range(2, 14)]
    labels = np.concatenate([render(each)[0].label for each in batches])
    heights = np.concatenate([each['height'] for each in batches])
    edges = [heads.LOWEST, -15.0, 15.0, heads.HIGHEST]
    for low, high in itertools.pairwise(edges):
        here = labels[(heights >= low) & (heights < high)]
        assert abs(here.mean() - 0.5) < 3 * 0.5 / np.sqrt(len(here)) + 0.03, (low, high)


def test_all_kinds_are_drawn_and_few_bleedings_are_too_small():
    kinds = np.concatenate([render(numbers(seed, bleeds=1.0))[0].kind for seed in range(20, 26)])
    counts = np.bincount(kinds, minlength=len(bleedings.KINDS))
    assert counts[1:].min() > 20 and counts[0] < 0.15 * len(kinds)


def test_blood_lies_below_the_inner_table():
    given = numbers(seed=4, bleeds=1.0)
    plain = jax.tree.map(lambda each: np.asarray(each[0]), given)
    line = np.linspace(-100, 100, 51, dtype=np.float32)
    z, y, x = np.meshgrid(line, line, line, indexing='ij')
    patient = plain['patient']
    _, _, share = heads.hounsfield(plain, x, y, z, np.float32(2))
    depth = anatomy.dome(patient, *anatomy.space(patient, x, y, z))
    assert (share > 0.5).any()
    assert (depth[share > 0.5] > -1).all()


def test_a_mass_pushes_the_brain_away_and_leaves_the_skull():
    bump = {'centre': np.array([30, 0, 0], np.float32), 'room': np.float32(20), 'mass': np.float32(0.9)}
    x, zero = np.array([0.0, 5.0], np.float32), np.zeros(2, np.float32)
    pushed, _, _ = anatomy.push(bump, zero + 50, x, zero, zero)
    assert (pushed > x + 2).all()  # what lies here came from nearer to the mass
    still, _, _ = anatomy.push(bump, zero, x, zero, zero)
    np.testing.assert_array_equal(still, x)


def test_waves_have_mean_0_and_variance_1():
    units = np.random.default_rng(0).random((40, 12, 3), np.float32)
    x, y, z = np.random.default_rng(1).uniform(-90, 90, (3, 4000)).astype(np.float32)
    values = np.stack([shapes.waves(shapes.wave_vectors(unit, 20.0), x, y, z) for unit in units])
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02


def test_smooth_noise_has_variance_1():
    grids = np.random.default_rng(0).standard_normal((200, 9, 9)).astype(np.float32)
    assert abs(np.std([shapes.smooth(grid, SIZE) for grid in grids]) - 1) < 0.05


def test_signed_distances_are_distances():
    x = np.linspace(3, 30, 28, dtype=np.float32)
    zero = np.zeros_like(x)
    np.testing.assert_allclose(shapes.ellipsoid(x, zero, zero, (0, 0, 0), (9, 9, 9)), np.abs(x) - 9, atol=0.01)
    tube = shapes.stroke(x, zero, zero, (0.0, -5.0, 0.0, 2.0), (0.0, 5.0, 0.0, 2.0))
    np.testing.assert_allclose(tube, np.abs(x) - 2, atol=0.01)


def test_a_volume_is_one_patient_from_the_neck_to_the_vertex():
    keys = jax.random.split(jax.random.key(7), 6)
    volume = jax.jit(jax.vmap(lambda key: heads.draw_volume(key, SIZE, 16)))(keys)
    assert volume.image.shape == volume.mask.shape == volume.hu.shape == (6, 16, SIZE, SIZE)
    np.testing.assert_array_equal(volume.label, volume.mask.any(axis=(2, 3)))
    np.testing.assert_allclose(np.diff(volume.height, axis=1), np.repeat(volume.spacing[:, :1], 15, 1), rtol=1e-4)
    bleeds = np.asarray(volume.label).any(axis=1)
    assert 0 < bleeds.sum() < 6
    assert (np.asarray(volume.label).sum(axis=1) < 16).all()
    hu = np.asarray(volume.hu)
    assert hu.min() < -900 and hu.max() > 900
    solid = hu > -300
    near = (solid[:, 6:12] == solid[:, 5:11]).mean(axis=(2, 3))
    other = (solid[1:, 5:12] == solid[:-1, 5:12]).mean(axis=(2, 3))
    assert near.mean() > other.mean() + 0.02  # the next slice of a patient, the same slice of the next patient


def test_patients_are_written_as_a_folder_with_a_group_for_each(tmp_path, refusal):
    patients.main([str(tmp_path / 'drawn'), '--patients=2', '--size=32', '--slices=6'])
    rows = list(csv.DictReader((tmp_path / 'drawn' / 'labels.csv').read_text().splitlines()))
    assert [row['group'] for row in rows] == ['000'] * 6 + ['001'] * 6
    for row in rows:
        image = np.asarray(Image.open(tmp_path / 'drawn' / row['file']))
        mask = np.asarray(Image.open(tmp_path / 'drawn' / row['file'].replace('images', 'masks')))
        assert image.shape == mask.shape == (32, 32)
        assert (row['label'] == '1') == mask.any() == bool(row['kind'])
    with np.load(tmp_path / 'drawn' / 'volumes' / '001.npz') as volume:
        assert volume['hu'].shape == volume['mask'].shape == (6, 32, 32)
        np.testing.assert_array_equal(volume['mask'].any(axis=(1, 2)), [row['label'] == '1' for row in rows[6:]])
    assert 'not empty' in refusal(patients.main, [str(tmp_path / 'drawn')])


@pytest.mark.parametrize('wrong', ['--patients=0', '--size=8', '--slices=1'])
def test_what_is_no_patient_is_one_line(wrong, tmp_path, refusal):
    assert wrong in refusal(patients.main, [str(tmp_path / 'drawn'), wrong])
    assert not (tmp_path / 'drawn').exists()


def test_grey_statistics_do_not_tell_the_label():
    images, labels = shortcuts.draw_heads(seed=1, count=600, size=SIZE)
    aucs = shortcuts.shortcut_aucs(images, labels)
    for name, folds in aucs.items():
        assert folds.mean() < 0.66, name
