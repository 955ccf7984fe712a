"""Which files hold CT slices, and what reads them; the libraries are imported when the first such file turns up."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from PIL import Image

from bhcnet_jax.datasets.ct.hounsfield import LIBRARIES, Header, Slice, Window, to_grey
from bhcnet_jax.errors import UserError

START = 132  # bytes that tell the kind of a file
DICOM, NIFTI = 'DICOM', 'NIfTI'
DICOM_ENDINGS = ('.dcm', '.dicom', '.ima')
NIFTI_ENDINGS = ('.nii', '.nii.gz')
FIRST_GROUPS = (b'\x02\x00', b'\x08\x00')  # with which a DICOM file begins that has no preamble


class Reader(NamedTuple):
    """The functions of `dicom` or `nifti`."""

    header: Callable[[bytes, str], Header]
    slices: Callable[[bytes, str], Iterator[Slice]]


def kind(name: str, start: bytes, named: bool) -> str:
    """DICOM or NIFTI, or '' of any other file. DICOM is told by its first START bytes, whatever its ending.

    named: whether the user named the file; one that only lies in a folder must be clearer without the preamble.
    """
    if start[128:132] == b'DICM' or name.lower().endswith(DICOM_ENDINGS):
        return DICOM
    if name.lower().endswith(NIFTI_ENDINGS):
        return NIFTI
    return DICOM if named and start[:2] in FIRST_GROUPS else ''


def reader(kind: str) -> Reader:
    """UserError: its libraries are not installed."""
    try:
        if kind == DICOM:
            from bhcnet_jax.datasets.ct import dicom

            return Reader(dicom.header, dicom.slices)
        from bhcnet_jax.datasets.ct import nifti

        return Reader(nifti.header, nifti.slices)
    except ModuleNotFoundError as error:
        raise UserError(f'{kind} files need {error.name}, which is not installed: {LIBRARIES}') from error


def greys(data: bytes, name: str, kind: str, window: Window) -> Iterator[Image.Image]:
    """A file's slices in a window, mode L, from the feet to the head. Skipped, UserError: as of the readers."""
    for each in reader(kind).slices(data, name):
        yield to_grey(each, window, name)
