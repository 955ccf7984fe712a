"""CT slices from NIfTI files, .nii and .nii.gz."""

import gzip
import io
import logging
import math
from collections.abc import Iterator
from typing import NamedTuple

import nibabel
import numpy as np

from bhcnet_jax.datasets.ct.hounsfield import AIR, MAX_BYTES, MAX_SLICES, Header, Skipped, Slice, reading
from bhcnet_jax.datasets.folder import images
from bhcnet_jax.errors import UserError

logging.getLogger('nibabel.global').setLevel(logging.CRITICAL + 1)  # it writes to standard error by itself

IMAGES = {348: nibabel.Nifti1Image, 540: nibabel.Nifti2Image}  # by the bytes of the header
HIGHEST_AIR, LARGEST = -500, 4000  # HU


class Axes(NamedTuple):
    """How a volume's axes make axial slices.

    Attributes:
      stack: the axis along which they lie.
      down: whether it leads to the feet.
      transpose, flip_rows, flip_columns: what turns one upright, in this order.
      spacing: mm between rows and between columns, once it is upright.
    """

    stack: int
    down: bool
    transpose: bool
    flip_rows: bool
    flip_columns: bool
    spacing: tuple[float, float]


def header(data: bytes, name: str) -> Header:
    """UserError: damaged, not of three dimensions, or beyond a limit."""
    with reading(name, 'NIfTI'):
        start = _unpacked(data, max(IMAGES))
        kind = _kind(start)
        told = kind.header_class.from_fileobj(io.BytesIO(start))
        shape = _shape(told, name)
        return Header('', None, None, None, shape[_axes(told.get_best_affine(), name).stack])


def slices(data: bytes, name: str) -> Iterator[Slice]:
    """A volume's axial slices, from the feet to the head: those along its own axes that are nearest to axial.

    Skipped: its values are not HU. Other errors as of `header`.
    """
    with reading(name, 'NIfTI'):
        unpacked = _unpacked(data, MAX_BYTES + 1)
        if len(unpacked) > MAX_BYTES:
            raise UserError(f'{name}: unpacks to more than {MAX_BYTES} bytes. Split it.')
        volume = _kind(unpacked).from_bytes(unpacked)
        axes = _axes(volume.affine, name)
        count = _shape(volume.header, name)[axes.stack]
        _check_hounsfield(volume, axes.stack, name)
    for number in range(count):
        with reading(name, 'NIfTI'):
            hu = _plane(volume, axes.stack, count - 1 - number if axes.down else number)
        hu = np.nan_to_num(hu.T if axes.transpose else hu, nan=AIR)
        hu = hu[:: -1 if axes.flip_rows else 1, :: -1 if axes.flip_columns else 1]
        yield Slice(np.ascontiguousarray(hu), axes.spacing)


def _unpacked(data: bytes, limit: int) -> bytes:
    """The first `limit` bytes, unpacked if they are packed."""
    if data[:2] != b'\x1f\x8b':
        return data
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        return file.read(limit)


def _kind(data: bytes) -> type[nibabel.Nifti1Image]:
    """By its first number, the size of its header; in either byte order. KeyError: no NIfTI."""
    sizes = {int.from_bytes(data[:4], order) for order in ('little', 'big')}
    return IMAGES[min(sizes)]


def _shape(told: nibabel.Nifti1Header, name: str) -> tuple[int, ...]:
    """Three lengths. UserError: more dimensions, or beyond a limit."""
    shape = told.get_data_shape()
    if len(shape) < 2 or any(length != 1 for length in shape[3:]):
        raise UserError(f'{name}: {len(shape)}-D of {" x ".join(map(str, shape))}, expected one 3-D volume. Split it.')
    shape = (*shape, 1)[:3]
    volume_bytes = math.prod(shape) * told.get_data_dtype().itemsize
    plane = math.prod(sorted(shape)[1:])
    if not 0 < volume_bytes <= MAX_BYTES or max(shape) > MAX_SLICES or plane > images.MAX_PIXELS:
        raise UserError(
            f'{name}: {" x ".join(map(str, shape))} voxels of {volume_bytes} bytes, expected at most {MAX_SLICES} '
            f'each way and {MAX_BYTES} bytes. Scale it down.'
        )
    return shape


def _axes(affine: np.ndarray, name: str) -> Axes:
    """See Axes. UserError: an affine that leads nowhere."""
    turns = nibabel.io_orientation(affine)
    if not np.isfinite(turns).all():
        raise UserError(f'{name}: its affine does not say where its axes point. Export it again.')
    right, front, head = (int(np.flatnonzero(turns[:, 0] == axis)[0]) for axis in range(3))
    spacing = nibabel.affines.voxel_sizes(affine)
    return Axes(
        head, turns[head, 1] < 0, front > right, turns[front, 1] > 0, turns[right, 1] > 0,
        (float(spacing[front]), float(spacing[right])),
    )  # fmt: skip


def _check_hounsfield(volume: nibabel.Nifti1Image, axis: int, name: str) -> None:
    """Skipped: no air in it, or more than a hundredth brighter than metal in bone, so that it is hardly in HU."""
    air = bright = 0
    if volume.get_data_dtype().kind in 'iuf':
        for number in range(volume.shape[axis] if axis < volume.ndim else 1):
            plane = _plane(volume, axis, number)
            air += np.count_nonzero(plane <= HIGHEST_AIR)
            bright += np.count_nonzero(plane > LARGEST)
    if not air or bright > math.prod(volume.shape) / 100:
        raise Skipped(f'{name}: skipped, its values are hardly HU, where air has -1000 and nearly all are below 4000.')


def _plane(volume: nibabel.Nifti1Image, axis: int, number: int) -> np.ndarray:
    """The values across an axis of the volume, float32 [length, length] of the other two."""
    where = [slice(None), slice(None), slice(None), *[0] * 4]
    where[axis] = number
    return np.asarray(volume.dataobj[tuple(where[: volume.ndim])], np.float32)
