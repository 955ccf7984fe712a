"""From Hounsfield units (HU) to the grey image that a radiologist sees, and what readers of CT files share.

H rows, W columns.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from bhcnet_jax.datasets.folder import images
from bhcnet_jax.errors import UserError

AIR = -1000.0  # HU
MAX_SLICES = 2**12  # of one file
MAX_BYTES = 2**29  # of one file, packed and unpacked; 512 x 512 x 1024 voxels of 16 bits
LIBRARIES = "pip install 'bhcnet_jax[dicom]'"


class Skipped(UserError):
    """A file that is no CT slice: it is left out, which is no failure."""


class Window(NamedTuple):
    """The HU that are shown from black to white: `width` of them around `level`; see `grey_levels`."""

    level: float
    width: float


BRAIN = Window(40, 80)


class Header(NamedTuple):
    """What a file says of its slices before its pixels are read.

    Attributes:
      series: what the files of one series have in common; '' if the file is a series of its own.
      series_number, instance_number: those of DICOM; None if there is none.
      position: of the lowest slice, mm towards the head; None if unknown.
      slices: their number.
    """

    series: str
    series_number: int | None
    instance_number: int | None
    position: float | None
    slices: int


class Slice(NamedTuple):
    """An axial slice as a radiologist expects it: the patient's front above, the patient's left on the right.

    Attributes:
      hu: float32 [H, W].
      spacing: mm between rows and between columns.
      inverted: whether black and white are exchanged after the window (DICOM's MONOCHROME1).
    """

    hu: np.ndarray
    spacing: tuple[float, float]
    inverted: bool = False


def parse_window(text: str) -> Window:
    """LEVEL/WIDTH in HU, as in '40/80'. UserError: something else, or a width below 1."""
    try:
        level, width = map(float, text.split('/'))
    except ValueError:
        level = width = math.nan
    if not (math.isfinite(level) and 1 <= width < math.inf):
        raise UserError(f'--window={text}: expected LEVEL/WIDTH in HU, as in 40/80, with a width of 1 or more.')
    return Window(level, width)


def to_grey(image: Slice, window: Window, name: str) -> Image.Image:
    """A slice in a window, mode L. Pixels that are not square are divided into square ones.

    UserError, naming the file: that takes more pixels than an image may have.
    """
    greys = grey_levels(image.hu, window)
    grey = Image.fromarray(255 - greys if image.inverted else greys)
    side = min(image.spacing)
    height, width = (round(n * mm / side) for n, mm in zip(image.hu.shape, image.spacing, strict=True))
    if max(height, width) > images.MAX_SIDE or height * width > images.MAX_PIXELS:
        raise UserError(f'{name}: {width} x {height} pixels once they are square. Check the spacing of its pixels.')
    return grey if grey.size == (width, height) else grey.resize((width, height), Image.Resampling.BILINEAR)


def grey_levels(hu: np.ndarray, window: Window) -> np.ndarray:
    """DICOM PS3.3 C.11.2.1.2.1, the linear window, from 0 to 255. hu: float32 [H, W] -> uint8 [H, W].

    A window of width 1 is a threshold.
    """
    above = hu - (window.level - 0.5)
    if window.width == 1:
        return np.where(above > 0, 255, 0).astype(np.uint8)
    share = np.clip(above / (window.width - 1) + 0.5, 0, 1)
    return np.rint(255 * np.nan_to_num(share)).astype(np.uint8)


@contextlib.contextmanager
def reading(name: str, kind: str) -> Iterator[None]:
    """Silences what a library says of a file, and makes one line of its errors: both may quote a patient's name."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    except UserError:
        raise
    except Exception as error:  # on damaged input the libraries raise nearly anything
        raise UserError(
            f'{name}: not an intact {kind} file ({type(error).__name__}). Export it again or leave it out.'
        ) from error
