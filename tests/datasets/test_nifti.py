"""NIfTI: HU after reading equal HU before writing, axial slices whatever the axes, and refusals in one line."""

import gzip
import itertools
import math

import numpy as np
import pytest

from bhcnet_jax.datasets.ct import reader
from bhcnet_jax.datasets.ct.hounsfield import AIR, MAX_SLICES, Skipped
from bhcnet_jax.errors import UserError

nibabel = pytest.importorskip('nibabel')

# Patient axes of NIfTI: x to the right, y to the front, z to the head. What is read has columns to the left and rows
# to the back.
UPRIGHT = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture(scope='module')
def scan(head_hu):
    """Four slices [4, H, W], upright, from the feet to the head, all of them different."""
    return np.stack([np.roll(head_hu[::4, ::4], 3 * number, axis=0) + number for number in range(4)])


def written(volume, affine=UPRIGHT, dtype=np.int16, version=nibabel.Nifti1Image, scale=(1, 0)):
    """volume: [x, y, z] along the axes of the affine."""
    image = version(volume.astype(dtype), affine)
    if scale != (1, 0):
        stored = np.rint((volume - scale[1]) / scale[0])
        image = version(stored.astype(dtype), affine)
        image.header.set_slope_inter(*scale)
    return image.to_bytes()


def slices(data, name='a.nii'):
    return list(reader.reader(reader.NIFTI).slices(data, name))


def header(data, name='a.nii'):
    return reader.reader(reader.NIFTI).header(data, name)


def read(data):
    found = np.stack([each.hu for each in slices(data)])
    assert header(data).slices == len(found)
    return found


def refusal(data, kind=UserError):
    with pytest.raises(UserError) as told:
        header(data, 'scan')
        slices(data, 'scan')
    assert type(told.value) is kind and str(told.value).startswith('scan: ') and '\n' not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize('version', [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize('packed', [False, True])
def test_hu_after_reading_equal_hu_before_writing(packed, version, scan):
    for dtype, scale in ((np.int16, (1, 0)), (np.float32, (1, 0)), (np.uint16, (1, -1024)), (np.int32, (0.5, 10))):
        data = written(scan.transpose(2, 1, 0), dtype=dtype, version=version, scale=scale)
        np.testing.assert_array_equal(read(gzip.compress(data) if packed else data), scan)


def test_big_endian_is_read(scan):
    image = nibabel.Nifti1Image(scan.transpose(2, 1, 0).astype('>i2'), UPRIGHT)
    swapped = nibabel.Nifti1Image(image.dataobj, UPRIGHT, image.header.as_byteswapped('>'))
    assert swapped.to_bytes()[:4] == b'\0\0\1\x5c'
    np.testing.assert_array_equal(read(swapped.to_bytes()), scan)


@pytest.mark.parametrize('order', list(itertools.permutations(range(3))))
def test_any_order_and_direction_of_the_axes_gives_the_same_axial_slices(order, scan):
    """Sagittal, coronal and axial stacks, mirrored or not: the affine alone says where the head lies."""
    volume = scan.transpose(2, 1, 0)  # along left, back, head
    for flips in itertools.product((1, -1), repeat=3):
        affine = np.zeros((4, 4))
        affine[3, 3] = 1
        for axis, source in enumerate(order):
            affine[source, axis] = UPRIGHT[source, source] * flips[axis]
        turned = volume.transpose(order)[tuple(slice(None, None, flip) for flip in flips)]
        np.testing.assert_array_equal(read(written(turned, affine)), scan)


def test_nibabels_own_reorientation_agrees(scan):
    affine = np.array([[0, 0.9, 0.1, 3], [-0.1, 0.1, 0.8, -4], [1.2, 0, 0.1, 5], [0, 0, 0, 1.0]])
    image = nibabel.Nifti1Image(scan.astype(np.int16), affine)
    as_seen = nibabel.orientations.axcodes2ornt(('L', 'P', 'S'))
    turned = image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), as_seen))
    np.testing.assert_array_equal(read(image.to_bytes()), np.asarray(turned.dataobj).transpose(2, 1, 0))


def test_an_oblique_volume_gives_its_own_slices_nearest_to_axial(scan):
    turn = math.radians(20)
    tilted = np.eye(4)
    tilted[1:3, 1:3] = [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
    np.testing.assert_array_equal(read(written(scan.transpose(2, 1, 0), tilted @ UPRIGHT)), scan)


def test_the_spacing_is_that_of_rows_and_columns(scan):
    affine = np.diag([-0.5, -0.7, 5, 1])
    assert slices(written(scan.transpose(2, 1, 0), affine))[0].spacing == pytest.approx((0.7, 0.5))
    sagittal = affine[:, [2, 1, 0, 3]]
    assert slices(written(scan.transpose(0, 1, 2), sagittal))[0].spacing == pytest.approx((0.7, 0.5))


def test_dimensions_of_length_1_and_a_single_slice_are_read(scan):
    volume = scan.transpose(2, 1, 0)
    np.testing.assert_array_equal(read(written(volume[..., None])), scan)
    np.testing.assert_array_equal(read(written(volume[..., 0])), scan[:1])


def test_what_is_no_number_is_air(scan):
    volume = scan.transpose(2, 1, 0).astype(np.float32)
    volume[3, 2, 1] = np.nan
    assert read(written(volume, dtype=np.float32))[1, 2, 3] == AIR


def test_values_that_are_hardly_hu_are_skipped(scan):
    volume = scan.transpose(2, 1, 0)
    for other in (np.clip(volume, 0, 80), volume + 1024, (volume > 0) * 1):
        assert 'hardly HU' in refusal(written(other), Skipped)
    assert 'hardly HU' in refusal(written(volume * 20, dtype=np.float32), Skipped)
    coloured = np.zeros((8, 8, 4), [('R', 'u1'), ('G', 'u1'), ('B', 'u1')])
    assert 'hardly HU' in refusal(nibabel.Nifti1Image(coloured, UPRIGHT).to_bytes(), Skipped)


def test_mistakes_are_one_line(scan):
    volume = scan.transpose(2, 1, 0)
    assert f'4-D of {" x ".join(map(str, volume.shape))} x 2' in refusal(written(np.stack([volume] * 2, -1)))
    told = nibabel.Nifti1Header(written(volume)[:348])
    told.set_sform(np.diag([1.0, 0, 0, 1]), code=1)
    assert 'affine' in refusal(told.binaryblock + written(volume)[348:])
    assert 'not an intact NIfTI' in refusal(written(volume)[:-9])
    assert 'not an intact NIfTI' in refusal(gzip.compress(written(volume))[:-40])
    assert 'not an intact NIfTI' in refusal(b'')
    assert 'not an intact NIfTI' in refusal(b'no NIfTI' * 90)


def test_limits_are_checked_before_memory_is_taken(scan, monkeypatch):
    told = nibabel.Nifti1Header()
    for shape in ((MAX_SLICES + 1, 2, 2), (4000, 4000, 4000), (0, 5, 5)):
        told.set_data_shape(shape)
        assert 'voxels of' in refusal(told.binaryblock + bytes(1000))
    from bhcnet_jax.datasets.ct import nifti

    bomb = gzip.compress(written(scan.transpose(2, 1, 0)) + bytes(2**22))
    monkeypatch.setattr(nifti, 'MAX_BYTES', 2**20)
    sizes, unpacked = [], nifti._unpacked
    monkeypatch.setattr(nifti, '_unpacked', lambda *a: sizes.append(len(found := unpacked(*a))) or found)
    assert 'unpacks to more than' in refusal(bomb) and max(sizes) == 2**20 + 1


def test_any_damage_is_one_line(scan):
    data, generator = written(scan.transpose(2, 1, 0)), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        for place in generator.integers(0, 352, 3):
            damaged[place] = generator.integers(256)
        try:
            header(bytes(damaged), 'scan')
            slices(bytes(damaged), 'scan')
        except UserError as error:
            assert str(error).startswith('scan: ')
