"""CT slices from DICOM files. Only the tags of TAGS are read, so that no other can reach an output."""

import io
import logging
import math
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pydicom
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, RLELossless

from bhcnet_jax.datasets.ct.hounsfield import AIR, LIBRARIES, MAX_BYTES, MAX_SLICES, Header, Skipped, Slice, reading
from bhcnet_jax.datasets.folder import images
from bhcnet_jax.errors import UserError

logging.getLogger('pydicom').propagate = False  # it quotes tags

TAGS = (
    'SOPClassUID', 'Modality', 'ImageType', 'SeriesInstanceUID', 'SeriesNumber', 'InstanceNumber',
    'Rows', 'Columns', 'NumberOfFrames', 'SamplesPerPixel', 'PhotometricInterpretation', 'BitsAllocated', 'BitsStored',
    'HighBit', 'PixelRepresentation', 'PixelPaddingValue', 'PixelPaddingRangeLimit',
    'RescaleSlope', 'RescaleIntercept', 'RescaleType', 'ModalityLUTSequence',
    'ImagePositionPatient', 'ImageOrientationPatient', 'PixelSpacing',
    'SharedFunctionalGroupsSequence', 'PerFrameFunctionalGroupsSequence',
    'ExtendedOffsetTable', 'ExtendedOffsetTableLengths', 'PixelData',
)  # fmt: skip
# DICOM PS3.4 B.5: CT Image, Enhanced CT Image, Legacy Converted Enhanced CT Image.
CT_CLASSES = ('1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.5.1.4.1.1.2.1', '1.2.840.10008.5.1.4.1.1.2.2')
SECONDARY_CAPTURES = '1.2.840.10008.5.1.4.1.1.7'  # and those that begin so
DIRECTORY = '1.2.840.10008.1.3.10'
# What is said of the commonest that are no CT; the tag's own text is not repeated.
MODALITIES = {
    'MR': 'an MR image', 'PT': 'a PET image', 'NM': 'a nuclear medicine image', 'US': 'an ultrasound image',
    'CR': 'a radiograph', 'DX': 'a radiograph', 'XA': 'an angiogram', 'SR': 'a report, as of the dose',
    'PR': 'a presentation state', 'KO': 'a list of key images', 'SEG': 'a segmentation', 'REG': 'a registration',
    'RTDOSE': 'a dose of radiotherapy', 'RTPLAN': 'a plan of radiotherapy', 'RTSTRUCT': 'outlines for radiotherapy',
}  # fmt: skip
SQUARE = (1.0, 1.0)  # where no spacing is given


class Frame(NamedTuple):
    """Where a frame lies and what its values mean: its number in the file, its plane, its rescale.

    position: mm along the normal, towards the head, None if unknown. axes: as of `_plane`.
    """

    number: int
    position: float | None
    axes: tuple[bool, bool, bool]
    spacing: tuple[float, float]
    slope: float
    intercept: float


def header(data: bytes, name: str) -> Header:
    """Skipped: no CT slice, and why. UserError: a CT slice that is damaged or exceeds a limit."""
    with reading(name, 'DICOM'):
        dataset = _read(data, name)
        frames = _frames(dataset, name)
        series = str(dataset.get('SeriesInstanceUID') or '')
        return Header(
            series, *(_number(dataset, key) for key in ('SeriesNumber', 'InstanceNumber')),
            frames[0].position, len(frames),
        )  # fmt: skip


def slices(data: bytes, name: str) -> Iterator[Slice]:
    """A file's slices, from the feet to the head. Errors as of `header`."""
    with reading(name, 'DICOM'):
        dataset = _read(data, name)
        frames = _frames(dataset, name)
    for frame in frames:
        with reading(name, 'DICOM'):
            hu = _upright(_hounsfield(dataset, frame, name), frame.axes)
        spacing = frame.spacing[::-1] if frame.axes[0] else frame.spacing
        yield Slice(hu, spacing, dataset.get('PhotometricInterpretation') == 'MONOCHROME1')


def _read(data: bytes, name: str) -> pydicom.Dataset:
    """The tags of TAGS of a file that holds CT slices within the limits."""
    file = _File(data)
    file.name = name
    dataset = pydicom.dcmread(file, force=True, specific_tags=list(TAGS))
    _check_kind(dataset, name)
    for key in ('Rows', 'Columns', 'PhotometricInterpretation', 'PixelData'):
        if key not in dataset:
            raise UserError(f'{name}: a CT slice without pixels. If it was cut short, export it again.')
    _check_grey(dataset, name)
    rows, columns, count = dataset.Rows, dataset.Columns, _count(dataset)
    if rows * columns > images.MAX_PIXELS or max(rows, columns) > images.MAX_SIDE:
        raise UserError(f'{name}: {columns} x {rows} pixels, expected at most {images.MAX_PIXELS}. Scale it down.')
    if not 1 <= count <= MAX_SLICES:
        raise UserError(f'{name}: {count} frames, expected 1 to {MAX_SLICES}. Split it.')
    if dataset.BitsAllocated not in (8, 16, 32) or dataset.get('HighBit') not in (None, dataset.BitsStored - 1):
        raise UserError(f'{name}: its bits are stored in a way that is not read. Export it again with 16 bits.')
    if 'ModalityLUTSequence' in dataset:
        raise UserError(f'{name}: a table leads to its HU, which is not read. Export it with slope and intercept.')
    return dataset


class _File(io.BytesIO):
    """A file in memory. pydicom reads to its end at once only what is deflated, and then unpacks that whole."""

    def read(self, size: int | None = -1) -> bytes:
        """UserError: too much once it is unpacked."""
        data = super().read(size)
        if size is None or size < 0:
            inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            if len(inflate.decompress(data, MAX_BYTES + 1)) > MAX_BYTES:
                raise UserError(f'{self.name}: unpacks to more than {MAX_BYTES} bytes. Scale it down.')
        return data


def _check_kind(dataset: pydicom.Dataset, name: str) -> None:
    """Skipped: no CT slice. UserError: the file does not say what it is."""
    stored = str(dataset.get('SOPClassUID') or dataset.file_meta.get('MediaStorageSOPClassUID') or '')
    modality = dataset.get('Modality')
    if not stored and not modality:
        raise UserError(f'{name}: a DICOM file that does not say of what, or a damaged one. Export it again.')
    kind = ''
    if stored == DIRECTORY:
        kind = 'a directory of DICOM files'
    elif stored.startswith(SECONDARY_CAPTURES):
        kind = 'a secondary capture'
    elif modality not in (None, '', 'CT') or stored not in (*CT_CLASSES, ''):
        kind = MODALITIES.get(modality, 'something else') if isinstance(modality, str) else 'something else'
    elif 'LOCALIZER' in (dataset.get('ImageType') or ()):
        kind = 'a localizer'
    if kind:
        raise Skipped(f'{name}: skipped, {kind}; expected a CT slice.')


def _check_grey(dataset: pydicom.Dataset, name: str) -> None:
    """Skipped: a CT slice in colour."""
    if dataset.get('SamplesPerPixel', 1) != 1 or not str(dataset.PhotometricInterpretation).startswith('MONOCHROME'):
        raise Skipped(f'{name}: skipped, a colour image; expected a CT slice.')


def _count(dataset: pydicom.Dataset) -> int:
    return int(dataset.get('NumberOfFrames') or 1)


def _number(dataset: pydicom.Dataset, key: str) -> int | None:
    """A number that DICOM writes as text; None where there is none, or something else."""
    try:
        return int(dataset[key].value)
    except (KeyError, TypeError, ValueError):
        return None


def _frames(dataset: pydicom.Dataset, name: str) -> list[Frame]:
    """From the feet to the head; frames without a position as they come."""
    shared = next(iter(dataset.get('SharedFunctionalGroupsSequence') or ()), pydicom.Dataset())
    each = dataset.get('PerFrameFunctionalGroupsSequence') or [pydicom.Dataset()] * _count(dataset)
    if len(each) != _count(dataset):
        raise UserError(f'{name}: tells of {len(each)} frames, expected {_count(dataset)}. Export it again.')
    frames = [_frame(number, (own, shared, dataset), name) for number, own in enumerate(each)]
    return sorted(frames, key=lambda frame: -math.inf if frame.position is None else frame.position)


def _frame(number: int, places: tuple[pydicom.Dataset, ...], name: str) -> Frame:
    """places: where a tag may stand, the frame's own first. Skipped: its values are not HU, or it is not axial."""
    if str(_find(places, 'PixelValueTransformationSequence', 'RescaleType') or 'HU') not in ('HU', 'US'):
        raise Skipped(f'{name}: skipped, an image of other values than HU; expected a CT slice.')  # US: unspecified
    slope, intercept = (
        default if (value := _find(places, 'PixelValueTransformationSequence', key)) is None else float(value)
        for key, default in (('RescaleSlope', 1.0), ('RescaleIntercept', 0.0))
    )
    if not slope or not math.isfinite(slope) or not math.isfinite(intercept):
        raise UserError(f'{name}: its rescale slope or intercept is no usable number. Export it again.')
    spacing = _floats(_find(places, 'PixelMeasuresSequence', 'PixelSpacing'), 2)
    orientation = _floats(_find(places, 'PlaneOrientationSequence', 'ImageOrientationPatient'), 6)
    position = _floats(_find(places, 'PlanePositionSequence', 'ImagePositionPatient'), 3)
    axes, normal = _plane(orientation, name)
    return Frame(
        number, None if position is None else float(position @ normal), axes,
        SQUARE if spacing is None or min(spacing) <= 0 else tuple(map(float, spacing)), slope, intercept,
    )  # fmt: skip


def _find(places: tuple[pydicom.Dataset, ...], sequence: str, key: str) -> Any:
    """A tag's value in the first place that has it, in a sequence of one or by itself; None: nowhere."""
    for place in places:
        for inner in (*(place.get(sequence) or ()), place):
            if inner.get(key) is not None:
                return inner.get(key)
    return None


def _floats(value: Any, count: int) -> np.ndarray | None:
    """None unless there are that many finite ones."""
    try:
        numbers = np.array([float(each) for each in value])
    except (TypeError, ValueError):
        return None
    return numbers if numbers.shape == (count,) and np.isfinite(numbers).all() else None


def _plane(orientation: np.ndarray | None, name: str) -> tuple[tuple[bool, bool, bool], np.ndarray]:
    """Image Orientation (Patient), PS3.3 C.7.6.2.1.1 -> how to turn the image upright, and its normal to the head.

    (transpose, flip rows, flip columns), in this order. An oblique plane counts as the nearest one of the patient's.
    Without an orientation the image is taken to be upright. Skipped: nearest to sagittal or coronal.
    """
    across, down = (None, None) if orientation is None else (orientation[:3], orientation[3:])
    normal = np.array([0.0, 0.0, 1.0]) if across is None else np.cross(across, down)
    if across is None or not np.linalg.norm(normal) > 0.5:  # no two directions
        return (False, False, False), np.array([0.0, 0.0, 1.0])
    plane = int(np.abs(normal).argmax())
    if plane != 2:
        raise Skipped(f'{name}: skipped, a {("sagittal", "coronal")[plane]} image; expected an axial CT slice.')
    transpose = bool(abs(across[1]) > abs(across[0]))
    if transpose:
        across, down = down, across
    return (transpose, bool(down[1] < 0), bool(across[0] < 0)), normal * np.sign(normal[2])


def _upright(pixels: np.ndarray, axes: tuple[bool, bool, bool]) -> np.ndarray:
    transpose, flip_rows, flip_columns = axes
    pixels = pixels.T if transpose else pixels
    return np.ascontiguousarray(pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])


def _hounsfield(dataset: pydicom.Dataset, frame: Frame, name: str) -> np.ndarray:
    """HU of a frame as it is stored, float32 [H, W]; what the scanner filled up around its field is air."""
    stored = _stored(dataset, frame.number, name)
    hu = stored.astype(np.float32) * np.float32(frame.slope) + np.float32(frame.intercept)
    if dataset.get('PixelPaddingValue') is not None:
        first = dataset.PixelPaddingValue
        last = dataset.get('PixelPaddingRangeLimit', first)
        ends = sorted(_as_stored(value, stored.dtype) for value in (first, last))
        hu[(stored >= ends[0]) & (stored <= ends[1])] = AIR
    return hu


def _as_stored(value: int, dtype: np.dtype) -> np.generic:
    """A padding value as the pixels have it: some files write -2000 as 63536."""
    bits = 8 * dtype.itemsize
    return np.array([int(value) % 2**bits], f'u{dtype.itemsize}').view(dtype.newbyteorder('='))[0]


def _stored(dataset: pydicom.Dataset, number: int, name: str) -> np.ndarray:
    """A frame's stored values, int or uint [H, W], the bits above BitsStored cleared."""
    syntax = dataset.file_meta.get('TransferSyntaxUID')
    if syntax is None:  # without file meta information
        syntax = ExplicitVRLittleEndian if dataset.original_encoding[1] else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = syntax
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise UserError(f'{name}: compressed in a way that is not read. Export it uncompressed.') from error
    if not decoder.is_encapsulated:
        return decoder.as_array(dataset, index=number, raw=True)[0]
    plugin = 'pydicom' if syntax == RLELossless else 'pylibjpeg'  # the latter's decoder of RLE panics on damage
    if plugin not in decoder.available_plugins:
        raise UserError(f'{name}: compressed, and the library for it is missing. {LIBRARIES}')
    _check_coded(dataset, number, syntax, name)
    return decoder.as_array(dataset, index=number, raw=True, decoding_plugin=plugin)[0]


def _check_coded(dataset: pydicom.Dataset, number: int, syntax: str, name: str) -> None:
    """Refuses a compressed frame of another size than the file says: a decoder would take the memory for it."""
    offsets = [dataset.get(key) for key in ('ExtendedOffsetTable', 'ExtendedOffsetTableLengths')]
    coded = get_frame(
        dataset.PixelData, number, number_of_frames=_count(dataset),
        extended_offsets=tuple(offsets) if all(offsets) else None,
    )  # fmt: skip
    if syntax == RLELossless:
        fits = _fits_rle(coded, dataset.Rows * dataset.Columns, dataset.BitsAllocated // 8)
    else:
        size = _size_of_jpeg_2000(coded) if coded[:2] == b'\xff\x4f' else _size_of_jpeg(coded)
        fits = size == (dataset.Rows, dataset.Columns, 1)
    if not fits:
        raise UserError(f'{name}: its compressed image has another size than the file says. Export it again.')


def _fits_rle(coded: bytes, pixels: int, sample_bytes: int) -> bool:
    """Whether each segment of PS3.5 annex G unpacks to a byte of every pixel."""
    count, *starts = (int.from_bytes(coded[place : place + 4], 'little') for place in range(0, 64, 4))
    ends = [*starts[1:count], len(coded)]
    return count == sample_bytes and all(
        64 <= start < end <= len(coded) and _segment_fits(coded[start:end], pixels)
        for start, end in zip(starts[:count], ends, strict=True)
    )


def _segment_fits(segment: bytes, pixels: int) -> bool:
    place = unpacked = 0
    while unpacked < pixels and place + 1 < len(segment):
        head = segment[place]
        unpacked += head + 1 if head < 128 else 257 - head if head > 128 else 0
        place += head + 2 if head < 128 else 2 if head > 128 else 1
    return unpacked == pixels and 0 <= len(segment) - place <= 1  # filled up to an even length


def _size_of_jpeg_2000(coded: bytes) -> tuple[int, int, int]:
    """Rows, columns and components from the SIZ segment, ISO/IEC 15444-1 A.5.1."""
    right, bottom, left, top = (int.from_bytes(coded[place : place + 4], 'big') for place in (8, 12, 16, 20))
    return bottom - top, right - left, int.from_bytes(coded[40:42], 'big')


def _size_of_jpeg(coded: bytes) -> tuple[int, int, int]:
    """The same from the frame header of JPEG or JPEG-LS, ISO/IEC 10918-1 B.2.2."""
    place = 2
    while place + 10 <= len(coded) and coded[place] == 0xFF:
        marker, length, rows, columns = (
            int.from_bytes(coded[place + start : place + end], 'big') for start, end in ((1, 2), (2, 4), (5, 7), (7, 9))
        )
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            return rows, columns, coded[place + 9]
        place += 2 + length
    return 0, 0, 0
