"""From Hounsfield units to a picture: detector, noise, beam hardening, motion; then window, export, letters."""

import functools

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bhcnet_jax.datasets.phantom.shapes import Array, length, settle, smooth, smoothstep, uniforms, wave_vectors, waves

RANGES = {
    'tilt': (-0.3, 0.25),  # radians around the left-right axis: forehead up or down
    'roll': (-0.08, 0.08),
    'turn': (-0.14, 0.14),
    'fill': (0.88, 1.04),  # share of the picture that the head takes; above 1 it is cut off
    'frame': (0.0, 1.0),  # below CROPPED: cut to the head and squeezed to a square, as `preprocess` does
    'close': (0.0, 1.0),  # cut to this slice's section or to the largest
    'right': (-3.0, 3.0),  # mm, centre of the head from the centre of the picture
    'down': (-4.0, 4.0),
    'thickness': (1.0, 10.0),  # mm
    'noise': (3.0, 15.0),  # HU, standard deviation in 1 mm pixels
    'clump': (0.2, 0.9),  # mm, of the noise
    'kernel': (0.1, 0.9),  # mm, blur
    'sharpen': (-0.4, 0.8),  # negative: none
    'cupping': (0.0, 13.0),  # HU
    'offset': (-3.0, 3.0),
    'streaks': (-40.0, 12.0),  # HU, negative: none
    'source': (-0.9, 0.9, 2),  # where the streaks come from, in half pictures
    'fan': (0.0, 1.0, 8, 3),  # for `wave_vectors`
    'motion': (-14.0, 7.0),  # mm, negative: none
    'uneven': (0.0, 4.0),  # HU
    'level': (30.0, 46.0),  # HU, of the window
    'width': (72.0, 170.0),
    'export': (0.1, 1.2),  # mm, blur of the export
    'black': (-15.0, 28.0),  # grey level of the window's lower end; below 0 is 0
    'white': (215.0, 265.0),
    'gamma': (0.85, 1.2),
    'letters': (0.0, 1.0),
    'text': (0.0, 1.0),
    'letter_grey': (140.0, 255.0),
    'letter_place': (0.0, 1.0, 2),
    'letter_height': (0.04, 0.09),  # of the picture
    'jpeg': (-30.0, 10.0),  # step of the quantisation in grey levels, negative: none
}
CROPPED = 0.75
LETTERS = 0.4
TEXTS = (*'RLABCDabcF', 'A1', 'IM 7', 'SE 3', 'IM: 12')
# Orthonormal float32 [8, 8]: row by row the cosines of JPEG's blocks.
_COSINES = (
    np.cos(np.pi * np.arange(8)[:, None] * (np.arange(8) + 0.5) / 8) * np.sqrt([[1 / 8]] + 7 * [[2 / 8]])
).astype(np.float32)


def sample(key: jax.Array, size: int) -> dict[str, jax.Array]:
    number_key, noise_key, uneven_key = (jax.random.fold_in(key, stream) for stream in range(3))
    scan = uniforms(number_key, RANGES)
    return scan | {
        'fan': wave_vectors(scan['fan'], 0.12),
        'grain': jax.random.normal(noise_key, (size, size)),
        'uneven_grid': jax.random.normal(uneven_key, (9, 9)),
    }


def grid(scan: dict[str, Array], size: int, height: Array, half: tuple[Array, Array]) -> tuple[Array, ...]:
    """Millimetres of the patient at two depths of the slice, float32 [2, S, S] each; width and height of a pixel.

    height: mm, of the slice above the origin. half: mm, half the width and length of the head.
    """
    xp = scan['fill'].__array_namespace__()
    cropped = scan['frame'] < CROPPED
    wide = 1 + 0.5 * (scan['frame'] - CROPPED) / (1 - CROPPED)
    along = xp.where(cropped, half[1], wide * half[1]) / scan['fill']
    across = xp.where(cropped, half[0] / scan['fill'], along)
    line = (xp.arange(size, dtype=xp.float32) + 0.5) * 2 / size - 1
    right = (line * across - scan['right'])[None, None, :]
    down = (line * along - scan['down'])[None, :, None]
    up = xp.stack([-0.25 * scan['thickness'], 0.25 * scan['thickness']])[:, None, None]
    x = right * xp.cos(scan['turn']) + down * xp.sin(scan['turn'])
    y = down * xp.cos(scan['turn']) - right * xp.sin(scan['turn'])
    z = up + x * xp.sin(scan['roll']) + y * xp.sin(scan['tilt']) + height
    y = y * xp.cos(scan['tilt']) - up * xp.sin(scan['tilt'])
    x = x * xp.cos(scan['roll']) - up * xp.sin(scan['roll'])
    places = tuple(xp.broadcast_to(place, (2, size, size)) for place in (x, y, z))
    return *places, 2 * across / size, 2 * along / size


def blur(image: Array, across: Array, along: Array) -> Array:
    """Gaussian blur of [S, S]; across, along: standard deviations in pixels, about a 100th of S at most."""
    xp = image.__array_namespace__()
    size, reach = len(image), max(2, len(image) // 64)
    square = xp.arange(-reach, reach + 1, dtype=image.dtype) ** 2
    for axis, sigma in ((0, along), (1, across)):
        kernel = xp.exp(-square / (2 * sigma * sigma + 0.02))
        kernel = kernel / xp.sum(kernel)
        wider = settle(xp.pad(image, [(reach, reach) if each == axis else (0, 0) for each in (0, 1)], mode='edge'))
        windows = (wider[i : i + size] if axis == 0 else wider[:, i : i + size] for i in range(len(square)))
        image = settle(sum(weight * window for weight, window in zip(kernel, windows, strict=True)))
    return image


def noise(scan: dict[str, Array], pixel: tuple[Array, Array]) -> Array:
    """Standard deviation of the noise in HU: large pixels average it."""
    return scan['noise'] / scan['noise'].__array_namespace__().sqrt(1 + pixel[0] * pixel[1])


def measure(scan: dict[str, Array], hu: Array, pixel: tuple[Array, Array]) -> Array:
    """HU of the head [S, S] -> HU as a scanner gives them."""
    xp = hu.__array_namespace__()
    size = len(hu)
    across, along = pixel
    shift = xp.clip(scan['motion'], 0.0, None) / across
    hu = xp.clip(hu, -1000.0, 1500.0)
    hu = _move(hu, shift)
    soft = blur(hu, scan['kernel'] / across, scan['kernel'] / along)
    smooth_hu = blur(soft, 1.2 / across, 1.2 / along)
    hu = soft + xp.clip(scan['sharpen'], 0.0, None) * xp.clip(soft - smooth_hu, -60.0, 60.0)
    line = (xp.arange(size, dtype=hu.dtype) + 0.5) * 2 / size - 1
    hu = hu + scan['offset'] + scan['cupping'] * (line[:, None] ** 2 + line[None, :] ** 2)
    hu = hu + scan['uneven'] * smooth(scan['uneven_grid'], size) + _streaks(scan, line)
    clump = (scan['clump'] / across, scan['clump'] / along)
    grain = blur(scan['grain'], *clump)
    spread = xp.sqrt(xp.mean(grain * grain) + 1e-6)
    return hu + noise(scan, pixel) * grain / spread


def _move(hu: Array, shift: Array) -> Array:
    """The head moved sideways, by pixels, halfway through the turn of the tube."""
    xp = hu.__array_namespace__()
    place = xp.arange(len(hu), dtype=hu.dtype)
    source = xp.clip(place - shift, 0.0, len(hu) - 1.0)
    weights = xp.clip(1 - xp.abs(source[:, None] - place[None, :]), 0.0, 1.0)
    return 0.6 * hu + 0.4 * hu @ weights.T


def _streaks(scan: dict[str, Array], line: Array) -> Array:
    """Bands that fan out from something dense."""
    xp = line.__array_namespace__()
    right, down = line[None, :] - scan['source'][0], line[:, None] - scan['source'][1]
    far = length(right, down)
    fan = waves(scan['fan'], right / far, down / far, 0.0 * far)
    return xp.clip(scan['streaks'], 0.0, None) * fan / (1 + 3 * far)


def export(scan: dict[str, Array], hu: Array, pixel: tuple[Array, Array]) -> Array:
    """HU [S, S] -> grey levels of a published picture, float32 [S, S], 0 to 255."""
    xp = hu.__array_namespace__()
    share = xp.clip((hu - scan['level']) / scan['width'] + 0.5, 0.0, 1.0)
    share = blur(share, scan['export'] / pixel[0], scan['export'] / pixel[1])
    share = xp.clip(share, 1e-6, 1.0) ** scan['gamma']
    grey = scan['black'] + (scan['white'] - scan['black']) * share
    return _jpeg(scan, xp.maximum(xp.clip(grey, 0.0, 255.0), _letters(scan, len(hu))))


def _letters(scan: dict[str, Array], size: int) -> Array:
    """A side marker, a panel letter or a slice number in a corner, float32 [S, S]; zeros without one."""
    xp = scan['text'].__array_namespace__()
    stamps = xp.asarray(_stamps())
    picked = xp.arange(len(TEXTS), dtype=stamps.dtype) == xp.floor(scan['text'] * len(TEXTS))
    stamp = xp.sum(xp.where(picked[:, None, None], stamps, 0.0), axis=0)
    zoom = size * scan['letter_height'] / stamp.shape[0]
    down = _resample(stamp.shape[0], size, zoom, scan['letter_place'][0])
    across = _resample(stamp.shape[1], size, zoom, scan['letter_place'][1])
    grey = xp.where(scan['letters'] < LETTERS, scan['letter_grey'], 0.0)
    return grey * xp.clip(down @ stamp @ across.T, 0.0, 1.0)


def _resample(count: int, size: int, zoom: Array, place: Array) -> Array:
    """Weights [size, count] that draw `count` pixels, `zoom` wide each, at one or the other end of `size` pixels."""
    xp = zoom.__array_namespace__()
    start = xp.where(place < 0.5, 1.0 + 0.06 * size * place, size - count * zoom - 1.0 - 0.06 * size * (1 - place))
    gap = xp.abs((xp.arange(size, dtype=xp.float32)[:, None] + 0.5 - start) / zoom - 0.5
                 - xp.arange(count, dtype=xp.float32)[None, :])  # fmt: skip
    weights = xp.clip(1 - gap / xp.clip(1 / zoom, 1.0, None), 0.0, 1.0)
    return weights / xp.clip(xp.sum(weights, axis=1, keepdims=True), 1.0, None)


@functools.cache
def _stamps() -> np.ndarray:
    """float32 [texts, 11, 36], 0 or 1."""
    font = ImageFont.load_default_imagefont()
    stamps = np.zeros((len(TEXTS), 11, 36), np.float32)
    for place, text in enumerate(TEXTS):
        canvas = Image.new('L', (36, 11))
        ImageDraw.Draw(canvas).text((0, 0), text, fill=255, font=font)
        stamps[place] = np.asarray(canvas) > 0
    return stamps


def _jpeg(scan: dict[str, Array], grey: Array) -> Array:
    """Rounds the cosine transform of blocks of 8 x 8 pixels, coarser for fine detail, as JPEG does.

    Pictures whose size is no multiple of 8 stay as they are.
    """
    size = len(grey)
    if size % 8:
        return grey
    xp = grey.__array_namespace__()
    basis = xp.asarray(_COSINES)
    order = xp.arange(8, dtype=grey.dtype)
    step = xp.clip(scan['jpeg'], 0.0, None) * (1 + order[:, None, None] + order) + 1e-3  # [8, 1, 8]
    blocks = grey.reshape(size // 8, 8, size // 8, 8)
    parts = xp.einsum('ij,ajbk,lk->aibl', basis, blocks, basis)
    rounded = xp.round(parts / step) * step
    blocks = xp.einsum('ji,ajbk,kl->aibl', basis, rounded, basis)
    return xp.where(scan['jpeg'] > 0, blocks.reshape(size, size), grey)


def hardening(scan: dict[str, Array], x: Array, y: Array, z: Array) -> Array:
    """HU that are missing between the petrous bones."""
    xp = x.__array_namespace__()
    bar = xp.exp(-(((y - 14) / 8) ** 2) - ((z + 42) / 12) ** 2)
    return -1.6 * scan['cupping'] * bar * smoothstep((38 - xp.abs(x)) / 10)
