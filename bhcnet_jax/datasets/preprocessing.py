"""What a network sees of an image, and what tells one image from another."""

import hashlib
from typing import Any

import numpy as np
from PIL import Image

from bhcnet_jax.datasets.folder import images

MIN_RESOLUTION = 16  # pixels, of an equalised head
THUMBNAIL_SIZE = 128  # pixels; the size at which look-alikes were studied, see splits.py


def decode(record: dict[str, Any], image_size: int, resolution: int = 0) -> dict[str, Any]:
    """A record of the prepared copy -> one image's fields of ImageSet, file_sha256 and levels of grey (if 16 bits).

    image_size, resolution: see `preprocess`.
    """
    grey = _grey(record)
    return {
        'image': preprocess(grey, image_size, resolution),
        'thumbnail': thumbnail(grey),
        'label': int(record['label']),
        'id': record['id'].decode(),
        'group': record['group'].decode(),
        'pixel_sha256': pixel_sha256(grey),
        'turned_sha256': turned_sha256(np.asarray(grey)),
        'height': grey.height,
        'width': grey.width,
        'mode': record['mode'].decode(),
        'coloured': bool(record['coloured']),
        'file_bytes': int(record['file_bytes']),
        'file_sha256': record['file_sha256'].decode(),
        'levels': grey.getextrema()[1] + 1 if record['bits'] == 16 else 256,
    }


def preprocess(grey: Image.Image, image_size: int, resolution: int = 0) -> np.ndarray:
    """What a network sees of an image, in training and in use: mode L -> uint8 [image_size, image_size].

    resolution: pixels that `images.equalise` leaves of the head; 0: the image stays as published. The resize is
    Pillow's bilinear: a triangle filter that widens with the reduction (antialiased) and, unlike bicubic or Lanczos,
    never overshoots. The aspect ratio is not kept, as in the paper.
    """
    return _resize(images.equalise(grey, resolution) if resolution else grey, image_size)


def thumbnail(grey: Image.Image) -> np.ndarray:
    """mode L -> uint8 [THUMBNAIL_SIZE, THUMBNAIL_SIZE]."""
    return _resize(grey, THUMBNAIL_SIZE)


def pixel_sha256(grey: Image.Image) -> str:
    """Equal where the grey pixels are; grey: mode L."""
    return hashlib.sha256(f'{grey.width}x{grey.height} '.encode() + grey.tobytes()).hexdigest()


def volume_sha256(volume: np.ndarray) -> str:
    """The same for a volume, uint8 [D, H, W]."""
    return hashlib.sha256(f'{volume.shape} '.encode() + volume.tobytes()).hexdigest()


def turned_sha256(pixels: np.ndarray) -> str:
    """The same for an image [H, W] and all that it becomes by turns of 90 degrees and flips."""
    ways = [np.rot90(each, quarter) for each in (pixels, pixels.T) for quarter in range(4)]
    return hashlib.sha256(min(f'{way.shape} '.encode() + way.tobytes() for way in ways)).hexdigest()


def _resize(grey: Image.Image, size: int) -> np.ndarray:
    return np.asarray(grey.resize((size, size), Image.Resampling.BILINEAR))


def _grey(record: dict[str, Any]) -> Image.Image:
    with images.open_image(record['image'], ('PNG',)) as grey:
        grey.load()
    return grey


def head_side(record: dict[str, Any]) -> tuple[int, str]:
    """The shorter side of the box around a head, pixels as published, and the image's id."""
    left, top, right, bottom = images.head_box(np.asarray(_grey(record)))
    return min(right - left, bottom - top), record['id'].decode()
