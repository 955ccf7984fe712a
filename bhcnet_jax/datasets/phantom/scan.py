"""From Hounsfield units to a picture: noise, beam hardening, window, export."""

import jax

from bhcnet_jax.datasets.phantom.shapes import Array, smooth, uniforms

RANGES = {
    'tilt': (-0.3, 0.25),  # radians around the left-right axis: forehead up or down
    'roll': (-0.08, 0.08),
    'turn': (-0.12, 0.12),
    'fill': (0.86, 1.03),  # share of the picture that the head's largest section takes; above 1 it is cut off
    'squeeze': (0.0, 1.0),  # below 0.7: cropped to the head and squeezed to a square
    'close': (0.0, 1.0),  # cropped to this slice's section or to the largest
    'right': (-4.0, 4.0),  # mm, centre of the head from the centre of the picture
    'down': (-5.0, 5.0),
    'thickness': (1.0, 10.0),  # mm
    'noise': (1.5, 7.0),  # HU
    'kernel': (0.5, 1.6),  # mm, blur of the scanner
    'export': (0.1, 1.4),  # mm, blur of the export
    'cupping': (0.0, 8.0),  # HU
    'offset': (-3.0, 3.0),
    'level': (30.0, 46.0),  # HU, of the window
    'width': (75.0, 170.0),
    'black': (0.0, 25.0),  # grey level of the window's lower end
    'white': (225.0, 255.0),
    'gamma': (0.85, 1.2),
    'streaks': (0.0, 18.0),  # HU
}


def sample(key: jax.Array, size: int) -> dict[str, jax.Array]:
    number_key, noise_key, streak_key = jax.random.split(key, 3)
    return uniforms(number_key, RANGES) | {
        'grain': jax.random.normal(noise_key, (size, size)),
        'bands': jax.random.normal(streak_key, (24, 24)),
    }


def grid(scan: dict[str, Array], size: int, height: Array, half: tuple[Array, Array]) -> tuple[Array, ...]:
    """Millimetres of the patient at two depths of the slice, float32 [2, S, S] each; width and height of a pixel.

    height: mm, of the slice above the origin. half: mm, half the width and length of the head.
    """
    xp = scan['fill'].__array_namespace__()
    square = scan['squeeze'] > 0.7
    across = xp.where(square, 1.15 * half[1], half[0]) / scan['fill']
    along = xp.where(square, 1.15 * half[1], half[1]) / scan['fill']
    line = (xp.arange(size, dtype=xp.float32) + 0.5) * 2 / size - 1
    right = (line * across - scan['right'])[None, None, :]
    down = (line * along - scan['down'])[None, :, None]
    up = xp.stack([-0.25 * scan['thickness'], 0.25 * scan['thickness']])[:, None, None]
    x = right * xp.cos(scan['turn']) + down * xp.sin(scan['turn'])
    y = down * xp.cos(scan['turn']) - right * xp.sin(scan['turn'])
    z = up + x * xp.sin(scan['roll']) + y * xp.sin(scan['tilt']) + height
    y = y * xp.cos(scan['tilt']) - up * xp.sin(scan['tilt'])
    x = x * xp.cos(scan['roll']) - up * xp.sin(scan['roll'])
    shape = (2, size, size)
    places = tuple(xp.broadcast_to(place, shape) for place in (x, y, z))
    return *places, 2 * across / size, 2 * along / size


def blur(image: Array, across: Array, along: Array) -> Array:
    """Gaussian blur of [S, S]; across, along: standard deviations in pixels."""
    xp = image.__array_namespace__()
    place = xp.arange(len(image), dtype=image.dtype)
    square = (place[:, None] - place[None, :]) ** 2

    def weights(sigma: Array) -> Array:
        kernel = xp.exp(-square / (2 * sigma * sigma + 0.02))
        return kernel / xp.sum(kernel, axis=1, keepdims=True)

    return weights(along) @ image @ weights(across).T


def picture(scan: dict[str, Array], hu: Array, pixel: tuple[Array, Array]) -> Array:
    """HU [S, S] -> grey levels, float32 [S, S], 0 to 255."""
    xp = hu.__array_namespace__()
    size = len(hu)
    line = (xp.arange(size, dtype=hu.dtype) + 0.5) * 2 / size - 1
    hu = xp.clip(hu, -150.0, 350.0) + scan['offset'] + scan['cupping'] * (line[:, None] ** 2 + line[None, :] ** 2)
    hu = hu + 0.15 * scan['streaks'] * smooth(scan['bands'], size)
    hu = hu + scan['noise'] * scan['grain']
    share = xp.clip((hu - scan['level']) / scan['width'] + 0.5, 0.0, 1.0)
    share = blur(share, scan['export'] / pixel[0], scan['export'] / pixel[1])
    share = xp.clip(share, 1e-6, 1.0) ** scan['gamma']
    return scan['black'] + (scan['white'] - scan['black']) * share
