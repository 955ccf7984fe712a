"""Drawn patients as DICOM and NIfTI: our reader gives the HU that were written, and nobody takes them for patients."""

import csv
import sys

import nibabel
import numpy as np
import pydicom
import pytest

from bhcnet_jax.datasets.ct import reader
from bhcnet_jax.datasets.phantom import heads, patients
from bhcnet_jax.inference import scoring

pytestmark = pytest.mark.slow

SIZE, SLICES, SEED = 32, 6, 5


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """Two patients in each format."""
    folder = tmp_path_factory.mktemp('drawn')
    for form in patients.FORMATS:
        patients.write(folder / form, 2, SIZE, SLICES, SEED, form)
    return folder


def volume_of(written, number='001'):
    with np.load(written / 'png' / 'volumes' / f'{number}.npz') as volume:
        return dict(volume)


def slices_of(paths, kind):
    return [each for path in paths for each in reader.reader(kind).slices(path.read_bytes(), str(path))]


@pytest.mark.parametrize(
    ('kind', 'pattern'), [(reader.DICOM, 'dicom/dicom/001/*.dcm'), (reader.NIFTI, 'nifti/nifti/001.nii.gz')]
)
def test_what_the_reader_gives_are_the_hu_and_the_spacing_that_were_drawn(written, kind, pattern):
    drawn, read = volume_of(written), slices_of(sorted(written.glob(pattern)), kind)
    np.testing.assert_array_equal(np.stack([each.hu for each in read]), drawn['hu'])
    assert drawn['hu'].min() < -900 and drawn['hu'].max() > 500
    assert (drawn['hu'] != drawn['hu'][:, :, ::-1]).any() and (drawn['hu'] != drawn['hu'][:, ::-1]).any()
    for each in read:
        np.testing.assert_allclose(each.spacing, drawn['spacing'][1:], rtol=1e-4)


def test_dicom_and_nifti_put_a_voxel_at_the_same_place_of_the_patient(written):
    files = sorted(written.glob('dicom/dicom/001/*.dcm'))
    affine = nibabel.load(written / 'nifti/nifti/001.nii.gz').affine
    for place, row, column in ((0, 0, 0), (3, 5, 20), (SLICES - 1, 31, 2)):
        told = pydicom.dcmread(files[place])
        across, down = np.array(told.ImageOrientationPatient, float).reshape(2, 3)
        between_rows, between_columns = map(float, told.PixelSpacing)
        left_back_up = np.array(told.ImagePositionPatient, float)
        left_back_up += column * between_columns * across + row * between_rows * down
        right_front_up = (affine @ [column, row, place, 1])[:3]
        np.testing.assert_allclose(left_back_up * [-1, -1, 1], right_front_up, atol=0.01)
    heights = [float(pydicom.dcmread(file).ImagePositionPatient[2]) for file in files]
    np.testing.assert_allclose(np.diff(heights), volume_of(written)['spacing'][0], rtol=1e-3)


def test_the_middle_of_the_picture_is_that_of_the_patient_and_its_columns_lead_to_the_left(written):
    told = pydicom.dcmread(written / 'dicom/dicom/000/000_00.dcm')
    left, back, _ = map(float, told.ImagePositionPatient)
    between_rows, between_columns = map(float, told.PixelSpacing)
    np.testing.assert_allclose([left, back], [-15.5 * between_columns, -15.5 * between_rows], rtol=1e-3)
    assert list(told.ImageOrientationPatient) == [1, 0, 0, 0, 1, 0]
    assert nibabel.aff2axcodes(nibabel.load(written / 'nifti/nifti/000.nii.gz').affine) == ('L', 'P', 'S')


def test_the_mask_of_a_volume_lies_on_its_voxels(written):
    mask = nibabel.load(written / 'nifti/masks/001.nii.gz')
    np.testing.assert_array_equal(mask.affine, nibabel.load(written / 'nifti/nifti/001.nii.gz').affine)
    np.testing.assert_array_equal(np.asarray(mask.dataobj).transpose(2, 1, 0) == 1, volume_of(written)['mask'])


def test_every_file_says_that_it_is_synthetic(written):
    told = [pydicom.dcmread(file) for file in sorted(written.glob('dicom/dicom/*/*.dcm'))]
    assert {str(each.PatientName) for each in told} == {'PHANTOM^5-000', 'PHANTOM^5-001'}
    assert {each.SeriesDescription for each in told} == {'PHANTOM: drawn, no patient'}
    assert all(each.Manufacturer == 'bhcnet_jax' and not each.PatientBirthDate for each in told)
    assert len({each.SOPInstanceUID for each in told}) == 2 * SLICES
    assert len({(each.PatientID, each.SeriesInstanceUID) for each in told}) == 2
    header = nibabel.load(written / 'nifti/nifti/000.nii.gz').header
    assert header['descrip'].item() == b'PHANTOM: drawn, no patient' and header.get_xyzt_units()[0] == 'mm'


def test_a_folder_of_them_is_two_series_from_the_feet_to_the_head(written):
    found, broken = scoring.find([written / 'dicom' / 'dicom'])
    assert not broken and [each.series for each in found] == [1] * SLICES + [2] * SLICES
    assert [each.name[-6:-4] for each in found[:SLICES]] == [f'{place:02d}' for place in range(SLICES)]
    found, broken = scoring.find([written / 'nifti' / 'nifti'])
    assert not broken and [each.slices for each in found] == [SLICES, SLICES]


def test_labels_are_the_same_in_all_formats(written):
    tables = {}
    for form in patients.FORMATS:
        with open(written / form / 'labels.csv', newline='') as file:
            tables[form] = list(csv.DictReader(file))
    for form in ('dicom', 'nifti'):
        assert [int(row.pop('slice')) for row in tables[form]] == 2 * list(range(1, SLICES + 1))
        assert all((written / form / row.pop('file')).is_file() for row in tables[form])
    for row in tables['png']:
        del row['file']
    assert tables['png'] == tables['dicom'] == tables['nifti'] and len(tables['png']) == 2 * SLICES


def test_the_same_seed_gives_the_same_bytes(written, tmp_path):
    for form in ('dicom', 'nifti'):
        patients.write(tmp_path / form, 1, SIZE, SLICES, SEED, form)
        for file in (tmp_path / form).rglob('*000*'):
            if file.is_file():
                assert file.read_bytes() == (written / form / file.relative_to(tmp_path / form)).read_bytes()


@pytest.fixture
def no_libraries(monkeypatch):
    monkeypatch.delitem(sys.modules, 'bhcnet_jax.datasets.phantom.series', raising=False)
    monkeypatch.delattr('bhcnet_jax.datasets.phantom.series', raising=False)
    for name in ('nibabel', 'pydicom'):
        monkeypatch.setitem(sys.modules, name, None)


def test_without_the_libraries_the_command_refuses_in_one_line_before_it_draws(
    no_libraries, tmp_path, monkeypatch, refusal
):
    monkeypatch.setattr(heads, 'draw_volume', lambda *_: pytest.fail('drawn'))
    told = refusal(patients.main, [str(tmp_path / 'out'), '--format=dicom'])
    assert 'need nibabel' in told and "pip install 'bhcnet_jax[dicom]'" in told and not (tmp_path / 'out').exists()


def test_png_needs_no_library(no_libraries, tmp_path):
    patients.write(tmp_path / 'out', 1, 16, 2, 0)
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['images', 'labels.csv', 'masks', 'volumes']
