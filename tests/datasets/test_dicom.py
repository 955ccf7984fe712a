"""DICOM: HU after reading equal HU before writing, and what is no CT slice is told in one line."""

import io
import pathlib
import zlib

import numpy as np
import pytest
from PIL import Image

from bhcnet_jax.datasets.ct import reader
from bhcnet_jax.datasets.ct.hounsfield import AIR, BRAIN, MAX_SLICES, Skipped, Slice, Window, grey_levels, to_grey
from bhcnet_jax.errors import UserError

pydicom = pytest.importorskip('pydicom')
from pydicom import uid  # noqa: E402
from pydicom.data import get_testdata_file  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402

UNCOMPRESSED = (
    uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian,
)  # fmt: skip
LOSSLESS = (*UNCOMPRESSED, uid.RLELossless, uid.JPEG2000Lossless)


def slices(data, name='a.dcm'):
    return list(reader.reader(reader.DICOM).slices(data, name))


def read(data):
    (one,) = slices(data)
    return one.hu


def header(data, name='a.dcm'):
    return reader.reader(reader.DICOM).header(data, name)


def refusal(data, kind=UserError):
    with pytest.raises(UserError) as told:
        slices(data, 'scan')
    assert type(told.value) is kind and str(told.value).startswith('scan: ') and '\n' not in str(told.value)
    return str(told.value)


def shipped(name):
    """A file inside pydicom's wheel."""
    return pathlib.Path(get_testdata_file(name, download=False)).read_bytes()


def as_ct(data, **changes):
    """Another file of pydicom's, said to be a CT slice."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = uid.CTImageStorage
    dataset.Modality, dataset.ImageType = 'CT', ['ORIGINAL', 'PRIMARY', 'AXIAL']
    for key, value in ({'ImageOrientationPatient': [1, 0, 0, 0, 1, 0]} | changes).items():
        setattr(dataset, key, value)
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


def jpeg_lossless(pixels, bits):
    """JPEG of process 14, predictor 1 (the left neighbour): ISO/IEC 10918-1 annex H. uint16 [H, W]."""
    rows, columns = pixels.shape
    left = np.pad(pixels.astype(np.int64), ((0, 0), (1, 0)))[:, :-1]
    left[1:, 0], left[0, 0] = pixels[:-1, 0], 1 << (bits - 1)
    code = ''
    for difference in (pixels - left).ravel().tolist():
        difference = (difference + 2**15) % 2**16 - 2**15
        size = abs(difference).bit_length()
        extra = difference if difference > 0 else difference + (1 << size) - 1
        code += f'{size:05b}' + (f'{extra:0{size}b}' if size else '')
    code += '1' * (-len(code) % 8)
    packed = int(code, 2).to_bytes(len(code) // 8, 'big').replace(b'\xff', b'\xff\x00')
    table = bytes([0, *[0] * 4, 17, *[0] * 11, *range(17)])  # 17 sizes of a difference, 5 bits each

    def segment(marker, content):
        return bytes([255, marker]) + (len(content) + 2).to_bytes(2, 'big') + content

    frame = bytes([bits, *rows.to_bytes(2, 'big'), *columns.to_bytes(2, 'big'), 1, 1, 0x11, 0])
    return b''.join((
        b'\xff\xd8', segment(0xC3, frame), segment(0xC4, table), segment(0xDA, bytes([1, 1, 0, 1, 0, 0])), packed,
        b'\xff\xd9',
    ))  # fmt: skip


@pytest.mark.parametrize('signed', [0, 1])
@pytest.mark.parametrize('syntax', LOSSLESS, ids=lambda syntax: syntax.name)
def test_hu_after_reading_equal_hu_before_writing(syntax, signed, dicom, head_hu):
    intercept = 0 if signed else -1024
    np.testing.assert_array_equal(
        read(dicom(head_hu, syntax, intercept=intercept, PixelRepresentation=signed)), head_hu
    )


def test_lossy_jpeg_2000_is_read(dicom, head_hu):
    data = as_ct(shipped('693_J2KI.dcm'))
    assert read(data).shape == (512, 512)
    expected = pydicom.dcmread(get_testdata_file('693_J2KI.dcm', download=False)).pixel_array
    inside = expected != -2000
    np.testing.assert_array_equal(read(data)[inside], expected[inside] - 1024.0)


@pytest.mark.parametrize('bits', [12, 16])
def test_jpeg_lossless_is_read(bits, dicom, head_hu):
    small = head_hu[::4, ::4]
    coded = encapsulate([jpeg_lossless((small + 1024).astype(np.uint16), bits)])
    np.testing.assert_array_equal(read(dicom(small, uid.JPEGLosslessSV1, BitsStored=bits, PixelData=coded)), small)


@pytest.mark.parametrize(
    ('name', 'syntax'),
    [
        ('MR_small_jpeg_ls_lossless.dcm', uid.JPEGLSLossless),
        ('MR_small_jp2klossless.dcm', uid.JPEG2000Lossless),
        ('MR_small_RLE.dcm', uid.RLELossless),
        ('MR_small_bigendian.dcm', uid.ExplicitVRBigEndian),
        ('MR_small_implicit.dcm', uid.ImplicitVRLittleEndian),
    ],
)  # fmt: skip
def test_files_of_others_in_each_syntax_hold_the_same_values(name, syntax):
    data = as_ct(shipped(name))
    assert pydicom.dcmread(get_testdata_file(name, download=False)).file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(read(data), read(as_ct(shipped('MR_small.dcm'))))


@pytest.mark.parametrize(
    ('name', 'shape', 'low', 'high'),
    [
        ('CT_small.dcm', (128, 128), -896, 1167),
        ('693_J2KI.dcm', (512, 512), -3995, 1812),
        ('J2K_pixelrep_mismatch.dcm', (512, 512), -2000, 1896),  # signed in the file, unsigned in the codestream
    ],
)
def test_ct_files_of_pydicom_are_read(name, shape, low, high):
    (one,) = slices(shipped(name))
    assert one.hu.shape == shape and (one.hu.min(), one.hu.max()) == (low, high)
    assert header(shipped(name)).series_number in (1, 2, 4)


def test_a_file_without_preamble_is_read_where_it_is_named_or_ends_as_dicom(dicom, head_hu):
    data = dicom(head_hu, uid.ImplicitVRLittleEndian)
    bare = data[144 + int.from_bytes(data[140:144], 'little') :]  # neither preamble nor file meta information
    np.testing.assert_array_equal(read(bare), head_hu)
    assert reader.kind('IM1', bare[:132], named=True) == reader.DICOM
    assert reader.kind('IM1', bare[:132], named=False) == ''
    assert reader.kind('IM1.DCM', bare[:132], named=False) == reader.DICOM
    assert reader.kind('photo.png', data[:132], named=False) == reader.DICOM


def test_unsigned_values_below_zero_hu_do_not_wrap_around(dicom):
    hu = np.array([[-1024, -1, 0, 40, 3000]] * 3)
    np.testing.assert_array_equal(read(dicom(hu)), hu)
    np.testing.assert_array_equal(read(dicom(hu, BitsStored=12)), hu)
    small = np.array([[-128, -1, 0, 40, 127]] * 3)
    np.testing.assert_array_equal(read(dicom(small, intercept=-128, BitsAllocated=8, BitsStored=8)), small)


def test_slope_and_intercept_are_applied_and_may_be_absent(dicom):
    hu = np.array([[-1000, -500, 0, 500]] * 2)
    np.testing.assert_array_equal(read(dicom(hu, slope=0.5)), hu)
    np.testing.assert_array_equal(read(dicom(hu, slope=-2, intercept=1000)), hu)
    absent = dicom(hu, intercept=0, PixelRepresentation=1, RescaleSlope=None, RescaleIntercept=None)
    np.testing.assert_array_equal(read(absent), hu)
    assert 'slope or intercept' in refusal(dicom(hu, RescaleSlope=0))


def test_junk_above_the_bits_that_are_stored_is_cleared(dicom):
    hu = np.array([[-1024, -5, 0, 40, 3071]] * 2)
    for signed, intercept in ((0, -1024), (1, 1024)):
        clean = (hu - intercept).astype(np.int64) & 0xFFF
        junk = (clean | np.array([0x8000, 0xF000, 0x1000, 0x0000, 0x7000])).astype('<u2').tobytes()
        data = dicom(hu, intercept=intercept, BitsStored=12, PixelRepresentation=signed, PixelData=junk)
        np.testing.assert_array_equal(read(data), hu)
    assert 'bits are stored' in refusal(dicom(hu, BitsStored=12, HighBit=15))


def test_padding_around_the_field_is_air(dicom):
    hu = np.array([[-2000, -2000, -1999, 40]] * 2)
    air = [[AIR, AIR, -1999, 40]] * 2
    signed = {'intercept': 0, 'PixelRepresentation': 1}
    np.testing.assert_array_equal(read(dicom(hu, **signed, PixelPaddingValue=-2000)), air)
    np.testing.assert_array_equal(read(dicom(hu, **signed)), hu)
    # As the scanner writes it: -2000 as unsigned, so that without the tag it would be the brightest.
    wrapped = np.where(hu == -2000, 63536 - 1024, hu + 1000)
    np.testing.assert_array_equal(
        read(dicom(wrapped, PixelPaddingValue=63536)), [[AIR, AIR, -999, 1040]] * 2
    )
    ranged = dicom(hu, **signed, PixelPaddingValue=-1999, PixelPaddingRangeLimit=-2000)
    np.testing.assert_array_equal(read(ranged), [[AIR, AIR, AIR, 40]] * 2)


def test_the_window_is_that_of_the_standard():
    """DICOM PS3.3 C.11.2.1.2.1 in its own words, and pydicom's."""
    from pydicom.pixels import apply_windowing

    hu = np.arange(-100, 200, 0.25, dtype=np.float32)[None]
    for level, width in ((40, 80), (40.5, 81), (0, 2), (50, 1.5)):
        tags = pydicom.Dataset()
        tags.WindowCenter, tags.WindowWidth, tags.PixelRepresentation, tags.BitsStored = level, width, 1, 16
        tags.PhotometricInterpretation, tags.VOILUTFunction = 'MONOCHROME2', 'LINEAR'
        expected = apply_windowing(hu.astype(np.float64), tags)
        expected = (expected - expected.min()) / (expected.max() - expected.min()) * 255
        assert np.abs(grey_levels(hu, Window(level, width)) - expected).max() < 0.51
    np.testing.assert_array_equal(
        grey_levels(np.array([[0, 0.4, 79, 100]], np.float32), BRAIN), [[0, 1, 255, 255]]
    )


def test_a_window_of_width_1_is_a_threshold():
    hu = np.array([[39, 39.5, 39.6, 40, 41]], np.float32)
    np.testing.assert_array_equal(grey_levels(hu, Window(40, 1)), [[0, 0, 255, 255, 255]])


def test_black_and_white_are_exchanged_after_the_window(dicom, head_hu):
    (plain,), (inverted,) = slices(dicom(head_hu)), slices(dicom(head_hu, PhotometricInterpretation='MONOCHROME1'))
    np.testing.assert_array_equal(inverted.hu, plain.hu)
    np.testing.assert_array_equal(
        np.asarray(to_grey(inverted, BRAIN, '')), 255 - np.asarray(to_grey(plain, BRAIN, ''))
    )


def test_windows_in_the_file_change_nothing(dicom, head_hu):
    data = dicom(head_hu, WindowCenter=[700, 40], WindowWidth=[3000, 80])
    (one,) = slices(data)
    np.testing.assert_array_equal(np.asarray(to_grey(one, BRAIN, '')), grey_levels(head_hu.astype(np.float32), BRAIN))


@pytest.mark.parametrize(
    ('orientation', 'turned'),
    [
        ([1, 0, 0, 0, 1, 0], lambda hu: hu),
        ([-1, 0, 0, 0, 1, 0], np.fliplr),
        ([1, 0, 0, 0, -1, 0], np.flipud),
        ([-1, 0, 0, 0, -1, 0], lambda hu: hu[::-1, ::-1]),
        ([0, 1, 0, 1, 0, 0], lambda hu: hu.T),
        ([0, -1, 0, 1, 0, 0], lambda hu: np.fliplr(hu.T)),
        ([0, 1, 0, -1, 0, 0], lambda hu: np.flipud(hu.T)),
        ([0, -1, 0, -1, 0, 0], lambda hu: hu.T[::-1, ::-1]),
        ([0.99, 0.1, 0, -0.09, 0.9, 0.4], lambda hu: hu),  # a tilted gantry
    ],
)
def test_the_patients_left_is_on_the_right_and_the_front_above(orientation, turned, dicom, head_hu):
    """Rows of the file lead as `orientation` says: how the scanner wrote the same head, lying otherwise."""
    data = dicom(turned(head_hu), ImageOrientationPatient=orientation)
    np.testing.assert_array_equal(read(data), head_hu)


def test_a_head_written_from_its_place_in_the_patient_is_upright(dicom):
    """A mark at the patient's left and front, found by Image Position and Orientation alone, is above on the right."""
    for across, down in (((-1, 0, 0), (0, -1, 0)), ((0, 1, 0), (-1, 0, 0)), ((0, -1, 0), (1, 0, 0))):
        hu = np.zeros((20, 20), int)
        corner = np.array([0.0, 0.0, 0.0]) - 9.5 * np.array(across) - 9.5 * np.array(down)
        for row, column in np.ndindex(hu.shape):
            x, y, _ = corner + column * np.array(across) + row * np.array(down)  # PS3.3 C.7.6.2.1.1
            hu[row, column] = 100 if x > 5 and y < -5 else 0  # towards left and front
        found = read(dicom(hu, ImageOrientationPatient=[*across, *down], ImagePositionPatient=list(corner)))
        assert (found[:4, 16:] == 100).all() and found.sum() == hu.sum()


def test_without_an_orientation_the_image_stays_as_it_is(dicom, head_hu):
    for orientation in (None, [0, 0, 0, 0, 0, 0]):
        np.testing.assert_array_equal(read(dicom(head_hu, ImageOrientationPatient=orientation)), head_hu)


def test_pixels_that_are_not_square_are_made_so(dicom, head_hu):
    wide = Image.fromarray(grey_levels(head_hu.astype(np.float32), BRAIN))
    for orientation, spacing in (([1, 0, 0, 0, 1, 0], [1.0, 0.5]), ([0, 1, 0, 1, 0, 0], [0.5, 1.0])):
        hu = head_hu if orientation[0] else head_hu.T
        (one,) = slices(dicom(hu, ImageOrientationPatient=orientation, PixelSpacing=spacing))
        expected = wide.resize((wide.width, 2 * wide.height), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(np.asarray(to_grey(one, BRAIN, '')), np.asarray(expected))
    with pytest.raises(UserError, match='once they are square'):
        to_grey(Slice(np.zeros((64, 64), np.float32), (1000.0, 0.001)), BRAIN, 'a')


def enhanced(frames, positions, **changes):
    """Tags of an enhanced multi-frame image with a rescale of each frame."""

    def item(**tags):
        inner = pydicom.Dataset()
        for key, value in tags.items():
            setattr(inner, key, value)
        return inner

    own = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[0, 0, position])],
            PixelValueTransformationSequence=[item(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType='HU')],
        )
        for position, slope, intercept in positions
    ]  # fmt: skip
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelMeasuresSequence=[item(PixelSpacing=[0.5, 0.5])],
    )
    return {
        'SOPClassUID': uid.EnhancedCTImageStorage, 'PerFrameFunctionalGroupsSequence': own,
        'SharedFunctionalGroupsSequence': [shared], 'RescaleSlope': None, 'RescaleIntercept': None,
        'ImagePositionPatient': None, 'ImageOrientationPatient': None, 'PixelSpacing': None,
        'NumberOfFrames': frames,
    } | changes  # fmt: skip


@pytest.mark.parametrize('syntax', LOSSLESS, ids=lambda syntax: syntax.name)
def test_frames_are_rescaled_each_and_lie_from_the_feet_to_the_head(syntax, dicom, head_hu):
    stored = np.stack([head_hu + 1000, head_hu + 2000, 2 * (head_hu + 1024)])
    tags = enhanced(3, ((5, 1, -1000), (-5, 1, -2000), (0, 0.5, -1024)))
    data = dicom(stored, syntax, intercept=0, **tags)
    told = header(data)
    assert (told.slices, told.position) == (3, -5)
    found = slices(data)
    assert len(found) == 3
    for each in found:
        np.testing.assert_array_equal(each.hu, head_hu)
    marked = stored.copy()
    marked[:, 0, 0] = (1000 + 5, 2000 - 5, 2 * 1024)
    assert [each.hu[0, 0] for each in slices(dicom(marked, syntax, intercept=0, **tags))] == [-5, 0, 5]


def test_a_frame_of_other_values_than_hu_skips_the_file(dicom, head_hu):
    tags = enhanced(2, ((5, 1, 0), (6, 1, 0)))
    tags['PerFrameFunctionalGroupsSequence'][1].PixelValueTransformationSequence[0].RescaleType = 'MGML'
    assert 'other values than HU' in refusal(dicom(np.stack([head_hu] * 2), intercept=0, **tags), Skipped)


def test_frames_that_the_file_does_not_describe_are_refused(dicom, head_hu):
    tags = enhanced(2, ((5, 1, -1000),))
    assert 'tells of 1 frames, expected 2' in refusal(dicom(np.stack([head_hu] * 2), intercept=0, **tags))


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'ImageType': ['ORIGINAL', 'PRIMARY', 'LOCALIZER']}, 'a localizer'),
        ({'Modality': 'MR', 'SOPClassUID': uid.MRImageStorage}, 'an MR image'),
        ({'Modality': 'SR', 'SOPClassUID': uid.XRayRadiationDoseSRStorage, 'PixelData': None}, 'a report'),
        ({'Modality': 'CT', 'SOPClassUID': uid.SecondaryCaptureImageStorage}, 'a secondary capture'),
        ({'Modality': 'OT', 'SOPClassUID': uid.MultiFrameTrueColorSecondaryCaptureImageStorage}, 'a secondary capture'),
        ({'SamplesPerPixel': 3, 'PhotometricInterpretation': 'RGB', 'PlanarConfiguration': 0}, 'a colour image'),
        ({'PhotometricInterpretation': 'PALETTE COLOR'}, 'a colour image'),
        ({'Modality': 'ZZ'}, 'something else'),
        ({'RescaleType': 'MGML'}, 'an image of other values than HU'),
        ({'ImageOrientationPatient': [0, 1, 0, 0, 0, -1]}, 'a sagittal image'),
        ({'ImageOrientationPatient': [1, 0, 0, 0, 0, -1]}, 'a coronal image'),
    ],
)
def test_what_is_no_ct_slice_is_skipped_with_its_reason(changes, reason, dicom):
    said = refusal(dicom(np.zeros((20, 20), int), **changes), Skipped)
    assert f'skipped, {reason}' in said and 'ZZ' not in said and 'MGML' not in said


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('dicomdirtests/DICOMDIR', 'a directory of DICOM files'),
        ('dicomdirtests/98892001/CT2N/6293', 'a localizer'),
        ('rtdose.dcm', 'a dose of radiotherapy'),
        ('liver_1frame.dcm', 'a segmentation'),
        ('SC_rgb_jpeg.dcm', 'a secondary capture'),
        ('reportsi.dcm', 'a report'),
        ('examples_palette.dcm', 'an ultrasound image'),
    ],
)
def test_files_of_pydicom_that_are_no_ct_are_skipped(name, reason):
    path = pathlib.Path(get_testdata_file('CT_small.dcm', download=False)).parent / name
    assert reason in refusal(path.read_bytes(), Skipped)


def test_ct_slices_that_cannot_be_read_are_no_skips(dicom, head_hu):
    hu = np.zeros((20, 20), int)
    assert 'without pixels' in refusal(dicom(hu, PixelData=None))
    assert 'not an intact DICOM file' in refusal(dicom(hu)[:-100])
    assert 'without pixels' in refusal(dicom(hu)[:600])
    assert 'compressed in a way that is not read' in refusal(
        dicom(hu, uid.MPEG2MPML, PixelData=encapsulate([b'\0' * 100]))
    )
    assert 'a table leads to its HU' in refusal(dicom(hu, ModalityLUTSequence=[pydicom.Dataset()]))
    assert 'does not say of what' in refusal(b'no DICOM at all, but named so' * 9)
    assert 'without pixels' in refusal(dicom(head_hu, uid.JPEG2000Lossless)[:-300])


def test_limits_are_checked_before_memory_is_taken(dicom):
    hu, pixels = np.zeros((20, 20), int), b'\0' * 800
    assert 'expected at most' in refusal(dicom(hu, Rows=60000, Columns=60000, PixelData=pixels))
    assert f'expected 1 to {MAX_SLICES}' in refusal(dicom(hu, NumberOfFrames=MAX_SLICES + 1, PixelData=pixels))
    large = dicom(np.zeros((600, 600), int), uid.JPEG2000Lossless)
    bomb = pydicom.dcmread(io.BytesIO(large)).PixelData
    assert 'another size than the file says' in refusal(dicom(hu, uid.JPEG2000Lossless, PixelData=bomb))
    other = encapsulate([jpeg_lossless(np.zeros((40, 40), np.uint16), 16)])
    assert 'another size than the file says' in refusal(dicom(hu, uid.JPEGLosslessSV1, PixelData=other))


def test_a_deflated_file_that_unpacks_to_too_much_is_refused(dicom, monkeypatch):
    from bhcnet_jax.datasets.ct import dicom as module

    data = dicom(np.zeros((512, 512), int), uid.DeflatedExplicitVRLittleEndian)
    assert len(data) < 10_000
    monkeypatch.setattr(module, 'MAX_BYTES', 2**18)
    inflated = []
    monkeypatch.setattr(zlib, 'decompress', lambda *a: inflated.append(a))
    for length in (data[140:144], b'\0\0\0\0', b'\1\0\0\0'):  # pydicom finds its way without a right length
        assert 'unpacks to more than' in refusal(data[:140] + length + data[144:]) and not inflated


def test_any_damage_is_one_line(dicom, head_hu):
    generator, small = np.random.default_rng(0), head_hu[::8, ::8]
    for syntax in (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.RLELossless):
        data = dicom(small, syntax)
        for _ in range(60):
            damaged = bytearray(data)
            for place in generator.integers(0, 1200, 4):
                damaged[place] = generator.integers(256)
            try:
                slices(bytes(damaged), 'scan')
            except UserError as error:
                assert str(error).startswith('scan: ')


def test_numbers_that_are_none_are_left_out(dicom):
    hu = np.zeros((20, 20), int)
    told = header(dicom(hu, SeriesNumber=None, InstanceNumber=None, ImagePositionPatient=None))
    assert told[1:] == (None, None, None, 1)
    assert header(dicom(hu))[:4] == ('1.2.3', 5, 7, 0.0)
