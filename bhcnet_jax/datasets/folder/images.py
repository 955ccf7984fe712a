"""One published image: what is accepted, and how it becomes grey."""

import io
import warnings

import numpy as np
from PIL import Image, ImageChops, ImageOps
from scipy import ndimage

from bhcnet_jax.errors import UserError

MAX_PIXELS = 2**25  # of one image, 5792 x 5792; as RGBA 128 MiB, of which grey takes up to four copies


def check_image(data: bytes, name: str, image_format: str | None) -> None:
    """Takes data through `to_grey` once. UserError, naming the image, where that fails.

    image_format: Pillow's name of the only format allowed; None: all.
    """
    formats = None if image_format is None else (image_format,)
    try:
        with warnings.catch_warnings():
            # What Pillow finds odd in metadata, and its limit of pixels; the limit here is MAX_PIXELS.
            warnings.simplefilter('ignore')
            with Image.open(io.BytesIO(data), formats=formats) as image:
                _check_header(image, name)
                to_grey(image)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f'{name}: more than the {MAX_PIXELS} pixels allowed. Scale it down.') from error
    except Exception as error:  # Pillow's decoders raise nearly anything on broken input
        kind = 'an image that Pillow reads' if image_format is None else f'an intact {image_format}'
        raise UserError(
            f'{name}: {len(data)} bytes, not {kind} ({reason(error)}). Download it again or remove its row.'
        ) from error


def to_grey(image: Image.Image) -> Image.Image:
    """One channel of 8 bits (mode L): ITU-R 601 luminance of the image turned upright by its EXIF tag.

    Transparency is composited on black; 16-bit grey is scaled by 255/65535, not clipped.
    """
    deep = _is_16_bit(image)
    image = ImageOps.exif_transpose(image)
    if deep:
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'black'), image)
    return image.convert('RGB').convert('L')


def head_box(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """The box around the largest part above the mean, skull and brain: left, top, right, bottom. uint8 [H, W]."""
    parts, count = ndimage.label(pixels > pixels.mean())
    if not count:
        return 0, 0, *pixels.shape[::-1]
    rows, columns = np.nonzero(parts == np.bincount(parts.ravel())[1:].argmax() + 1)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


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


def _is_16_bit(image: Image.Image) -> bool:
    # Pillow opens some 16-bit files in its 32-bit mode I.
    return image.mode.startswith('I;16') or (image.mode == 'I' and image.format in ('PNG', 'PPM'))


def _check_header(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise UserError(
            f'{name}: {image.width} x {image.height} pixels, expected at most {MAX_PIXELS}. Scale it down.'
        )
    if image.mode in ('I', 'F') and not _is_16_bit(image):
        raise UserError(
            f'{name}: 32-bit grey (mode {image.mode}) has no fixed black and white. '
            'Apply a window and save it with 8 or 16 bits.'
        )
