"""One published image: what is accepted, and how it becomes grey."""

import contextlib
import ctypes
import hashlib
import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageOps, TiffImagePlugin

from bhcnet_jax.errors import UserError

# Pillow's names of the formats that are opened. Of the others some run a program (EPS runs Ghostscript) and some are
# no images (PDF, HDF5, MPEG).
FORMATS = ('PNG', 'JPEG', 'TIFF', 'BMP', 'GIF', 'WEBP', 'PPM', 'JPEG2000')
EXTENSIONS = frozenset(end for end, name in Image.registered_extensions().items() if name in FORMATS)
MAX_PIXELS = 2**25  # of one image, 5792 x 5792
MAX_SIDE = 2**14  # pixels
MAX_PIXEL_BYTES = 2**27  # of one decoded image: the largest as RGBA, of which grey takes up to four copies

_PHOTOMETRIC, _BITS, _SAMPLE_FORMAT, _TILE_SIDES = 262, 258, 339, (322, 323)  # tags of TIFF
_SIGNED = 2

# Greys that Pillow knows in one byte order or with black as zero only; `to_grey` inverts them. Twelve packed bits lie
# alike in both orders.
for _key, _modes in {
    (b'MM', 0, (1,), 1, (16,), ()): ('I;16B', 'I;16B'),
    (b'II', 0, (1,), 1, (12,), ()): ('I;16', 'I;12'),
    (b'MM', 0, (1,), 1, (12,), ()): ('I;16', 'I;12'),
    (b'MM', 1, (1,), 1, (12,), ()): ('I;16', 'I;12'),
}.items():
    TiffImagePlugin.OPEN_INFO.setdefault(_key, _modes)

# Pillow raises what libtiff finds wrong, and libtiff writes it to standard error too, in up to a line for each row. A
# Pillow that is linked with it in another way keeps these lines.
for _name in ('TIFFSetErrorHandler', 'TIFFSetWarningHandler'):
    with contextlib.suppress(AttributeError, OSError):
        getattr(ctypes.CDLL(Image.core.__file__), _name)(None)


def read(data: bytes, name: str, image_format: str | None = None) -> dict[str, Any]:
    """A published file as fields of a prepared record: its grey pixels and numbers, none of its metadata.

    -> image (PNG of `to_grey`), mode (Pillow's), coloured, bits (of one sample, as stored), file_bytes, file_sha256.
    Other arguments and errors as of `decode`.
    """
    grey, published = decode(data, name, image_format)
    return published | {
        'image': _png(grey),
        'file_bytes': len(data),
        'file_sha256': hashlib.sha256(data).hexdigest(),
    }


def decode(data: bytes, name: str, image_format: str | None = None) -> tuple[Image.Image, dict[str, Any]]:
    """A file as `to_grey` makes it, and what is published of it: mode, coloured and bits as of `read`.

    image_format: Pillow's name of the only format allowed; None: any of FORMATS.
    UserError, naming the image: no image, or one that is not accepted.
    """
    try:
        with warnings.catch_warnings():
            # What Pillow finds odd in metadata, and its limit of pixels; the limits here are MAX_PIXELS and the others.
            warnings.simplefilter('ignore')
            with open_image(data, FORMATS if image_format is None else (image_format,)) as image:
                _check_header(image, name)
                published = {'mode': image.mode, 'bits': _bits(image)}  # the header's, before decoding forgets it
                published['coloured'] = is_coloured(image)
                return to_grey(image), published
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f'{name}: more than the {MAX_PIXELS} pixels allowed. Scale it down.') from error
    except Exception as error:  # Pillow's decoders raise nearly anything on broken input
        kind = f'an image that is read ({", ".join(FORMATS)})' if image_format is None else f'an intact {image_format}'
        raise UserError(
            f'{name}: {len(data)} bytes, not {kind}: {reason(error)}. '
            'Download it again, save it as PNG or leave it out.'
        ) from error


def open_image(data: bytes, formats: Sequence[str] = FORMATS) -> Image.Image:
    """The only way in for an image: Pillow's Image.open, of these formats alone."""
    return Image.open(io.BytesIO(data), formats=formats)


def to_grey(image: Image.Image) -> Image.Image:
    """One channel of 8 bits (mode L): ITU-R 601 luminance of the image turned upright by its EXIF tag.

    Transparency is composited on black. Grey of 12 or 16 bits is scaled by 255/4095 or 255/65535, not clipped. Black is
    black, whichever value of a TIFF stands for it.
    """
    if _is_deep(image):
        white = 2 ** _bits(image) - 1
        values = np.asarray(ImageOps.exif_transpose(image)).astype(np.uint32)
        if image.format == 'TIFF' and image.tag_v2.get(_PHOTOMETRIC) == 0:
            np.subtract(white, values, out=values)
        values *= 255  # in place: an image may have 2**25 pixels
        values += white // 2
        values //= white
        return Image.fromarray(values.astype(np.uint8))
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'black'), image)
    return image.convert('RGB').convert('L')


def head_box(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """The box around the largest part above the mean, skull and brain: left, top, right, bottom. uint8 [H, W]."""
    from scipy import ndimage  # takes longer to import than many sets to read

    parts, count = ndimage.label(pixels > pixels.mean())
    if not count:
        return 0, 0, *pixels.shape[::-1]
    largest = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    rows, columns = (np.flatnonzero(largest.any(axis=axis)).tolist() for axis in (1, 0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def equalise(grey: Image.Image, resolution: int) -> Image.Image:
    """What is left of a head without its size in pixels, its place, its margin and its grey levels.

    Crops to the head, reduces it to resolution x resolution pixels and equalises its histogram, so that what is left
    says which pixel is brighter than which. grey: mode L.
    """
    side = (resolution, resolution)
    head = grey.resize(side, Image.Resampling.BILINEAR, box=head_box(np.asarray(grey)))
    return ImageOps.equalize(head)


def is_coloured(image: Image.Image) -> bool:
    """Whether any pixel's red, green and blue differ, whatever the mode says."""
    if image.mode != 'P' and len(image.getbands()) < 3:
        return False
    red, *others, _ = image.convert('RGBA').split()  # to RGB Pillow warns of a transparent palette
    return any(ImageChops.difference(red, other).getbbox() for other in others)


def reason(error: BaseException) -> str:
    """What an error says, without the path that the caller names anyway."""
    return getattr(error, 'strerror', None) or str(error) or type(error).__name__


def _png(grey: Image.Image) -> bytes:
    written = io.BytesIO()
    Image.fromarray(np.asarray(grey)).save(written, 'PNG')  # anew: Pillow would write what it knows beside the pixels
    return written.getvalue()


def _is_deep(image: Image.Image) -> bool:
    """Whether it is grey of more than 8 bits and not of 32; Pillow opens some of it in its 32-bit mode I."""
    return image.mode.startswith('I;16') or (image.mode == 'I' and image.format in ('PNG', 'PPM'))


def _bits(image: Image.Image) -> int:
    """Bits of one sample as the file stores it, before Pillow reduces colours to 8."""
    if image.format == 'TIFF':
        return image.tag_v2.get(_BITS, (1,))[0]
    if _is_deep(image) or (image.format == 'PPM' and _white_of_pnm(image) > 255):
        return 16
    return 16 if image.format == 'PNG' and ';16' in str(image.tile[0].args) else 8


def _white_of_pnm(image: Image.Image) -> int:
    args = image.tile[0].args  # of Pillow's decoder: the mode alone, or the mode and the value of white
    return args[-1] if isinstance(args, tuple) else 255


def _check_header(image: Image.Image, name: str) -> None:
    """Refuses what must not be decoded, or cannot become grey without a choice that is not ours."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UserError(f'{name}: {width} x {height} pixels, expected at most {MAX_PIXELS}. Scale it down.')
    tags = image.tag_v2 if image.format == 'TIFF' else {}
    sides = (width, height, *(tags.get(tag, 0) for tag in _TILE_SIDES))
    if max(sides) > MAX_SIDE:
        raise UserError(f'{name}: a side of {max(sides)} pixels, expected at most {MAX_SIDE}. Scale it down.')
    sample_bytes = 4 if image.mode in ('I', 'F') else -(-_bits(image) // 8)
    pixel_bytes = width * height * len(image.getbands()) * sample_bytes
    if pixel_bytes > MAX_PIXEL_BYTES:
        raise UserError(
            f'{name}: {pixel_bytes} bytes of pixels, expected at most {MAX_PIXEL_BYTES}. Scale it down.'
        )
    signed = _SIGNED in np.atleast_1d(tags.get(_SAMPLE_FORMAT, 1))
    if signed or (image.mode in ('I', 'F') and not _is_deep(image)):
        kind = 'signed' if signed else '32-bit'
        raise UserError(
            f'{name}: {kind} grey (mode {image.mode}) has no fixed black and white. '
            'Apply a window and save it with 8 or 16 bits.'
        )
    pages = str(image.n_frames) if getattr(image, 'is_animated', False) else 'several' if _is_stack(image) else ''
    if pages:
        raise UserError(f'{name}: {pages} pages, expected one image. Save each as a file of its own.')


def _is_stack(image: Image.Image) -> bool:
    """Whether another image follows in a PPM file, which may hold any number of them (text ones only one)."""
    if image.format != 'PPM' or image.tile[0].codec_name == 'ppm_plain':
        return False
    width, height = image.size
    row_bytes = -(-width // 8) if image.mode == '1' else width * len(image.getbands()) * _bits(image) // 8
    image.fp.seek(image.tile[0].offset + row_bytes * height)
    return image.fp.read(100).lstrip()[:2] in (b'P4', b'P5', b'P6')
