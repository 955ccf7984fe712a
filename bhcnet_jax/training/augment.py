"""Augmentation on the device: key first, one image in, one image out, vmapped by the caller.

H W pixels, K cells of a distortion grid along each axis. Rows run down, columns to the right. The `_coords`
functions turn output coordinates into source coordinates, both in pixels from the middle of the image. A
policy composes them and samples the image once. So nothing is blurred twice, and one map can bring back what
another moved out of view.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from bhcnet_jax.datasets.phantom.shapes import settle

GRID_CELLS = 5  # along each axis, as albumentations.GridDistortion; the paper gives no number

Scalar = jax.Array | float
Coords = tuple[jax.Array, jax.Array]  # rows, cols: float32, of shapes that broadcast to [H, W]


def augment(key: jax.Array, image: jax.Array, strengths: Mapping[str, Scalar], policy: str) -> jax.Array:
    """One randomly changed copy of an image.

    Args:
      key: a PRNG key for this image alone.
      image: float32 [H, W] in [0, 1].
      strengths: scalars, names and units as in the policy's section of `config.augment`; they may be traced. Of
        'affine+intensity' a mapping for each: {'affine': ..., 'intensity': ...}. All zero (`crop`: one) returns the
        image as it is.
      policy: 'affine' (paper, IV.D), 'distort' (paper, VI), 'intensity', one after the other as in
        'affine+intensity', or 'none'; static.

    Returns:
      float32 [H, W] in [0, 1], black where there is no source pixel.

    Raises:
      ValueError: another dtype or number of axes, or an unknown policy.
    """
    if image.dtype != jnp.float32 or image.ndim != 2:
        raise ValueError(
            f'image is {image.dtype}{list(image.shape)}, expected float32[H, W] in [0, 1]: '
            'convert it first, vmap over a batch.'
        )
    if policy == 'none':
        return image
    if '+' in policy:
        for part_key, part in zip(jax.random.split(key, 2), policy.split('+'), strict=True):
            # Or a CPU makes the first part again for each of the four pixels that the second samples.
            image = settle(augment(part_key, image, strengths[part], part))
        return image
    if policy == 'intensity':
        parameters_key, noise_key = jax.random.split(key)
        parameters = intensity_parameters(parameters_key, strengths)
        noise = parameters.pop('noise')
        return gaussian_noise(noise_key, intensity(image, **parameters), noise)
    if policy == 'affine':
        return affine(image, **affine_parameters(key, strengths))
    if policy == 'distort':
        geometry_key, noise_key = jax.random.split(key)
        image = distort(image, **distort_parameters(geometry_key, strengths))
        return gaussian_noise(noise_key, image, strengths['noise'])
    raise ValueError(f'augment.policy is {policy!r}, expected one of affine, distort, none, intensity.')


def affine_parameters(key: jax.Array, strengths: Mapping[str, Scalar]) -> dict[str, jax.Array]:
    """Draws the arguments of `affine` within the given strengths (keys of `config.augment.affine`)."""
    flip_key, shear_key, zoom_key, rotation_key, shift_key = jax.random.split(key, 5)
    zoom, rotation, shift = strengths['zoom'], strengths['rotation'], strengths['shift']
    return {
        'flip': jax.random.bernoulli(flip_key, strengths['flip']),
        'shear': _uniform(shear_key, 0.0, strengths['shear']),
        'zoom': _uniform(zoom_key, 1.0 - zoom, 1.0 + zoom),
        'rotation': _uniform(rotation_key, -rotation, rotation),
        'shift': _uniform(shift_key, -shift, shift, (2,)),
    }


def affine(
    image: jax.Array, flip: Scalar, shear: Scalar, zoom: Scalar, rotation: Scalar, shift: jax.Array
) -> jax.Array:
    """Flips, shears, zooms, rotates and shifts, in this order; float32 [H, W] in [0, 1] in and out.

    flip, shear, zoom, rotation: as in `affine_matrix`. shift: float32 [2], downwards as a share of H and to
    the right as a share of W.
    """
    height, width = image.shape
    rows, cols = pixel_coords(image.shape)
    matrix = affine_matrix(flip, shear, zoom, rotation)
    return warp(image, *affine_coords(rows - shift[0] * height, cols - shift[1] * width, matrix))


def distort_parameters(key: jax.Array, strengths: Mapping[str, Scalar]) -> dict[str, jax.Array]:
    """Draws the arguments of `distort` within the given strengths (keys of `config.augment.distort`)."""
    side_key, middle_key, rotation_key, scale_key, optical_key, row_key, col_key = jax.random.split(key, 7)
    resize, optical, grid = strengths['resize'], strengths['optical'], strengths['grid']
    side = _uniform(side_key, strengths['crop'], 1.0)
    return {
        'side': side,
        'middle': _uniform(middle_key, (side - 1.0) / 2.0, (1.0 - side) / 2.0, (2,)),
        'rotation': _uniform(rotation_key, 0.0, strengths['rotation']),
        'scale': _uniform(scale_key, 1.0 - resize, 1.0 + resize),
        'optical': _uniform(optical_key, -optical, optical),
        'row_steps': _uniform(row_key, 1.0 - grid, 1.0 + grid, (GRID_CELLS,)),
        'col_steps': _uniform(col_key, 1.0 - grid, 1.0 + grid, (GRID_CELLS,)),
    }


def distort(
    image: jax.Array,
    side: Scalar,
    middle: jax.Array,
    rotation: Scalar,
    scale: Scalar,
    optical: Scalar,
    row_steps: jax.Array,
    col_steps: jax.Array,
) -> jax.Array:
    """Crops and fills the frame, rotates, resizes, distorts optically and by a grid, in this order.

    Args:
      image: float32 [H, W] in [0, 1].
      side: of the crop, as a share of the image's.
      middle: float32 [2], (row, column) of the crop's middle from the image's, as a share of H and W.
      rotation: degrees, counterclockwise as seen on the screen.
      scale: factor, above 1 enlarges.
      optical: k of `optical_distortion_coords`.
      row_steps, col_steps: float32 [K] of `grid_distortion_coords`.

    Returns:
      float32 [H, W] in [0, 1].
    """
    height, width = image.shape
    # From output to source, so the last transform comes first.
    rows, cols = grid_distortion_coords(*pixel_coords(image.shape), row_steps, col_steps, image.shape)
    rows, cols = optical_distortion_coords(rows, cols, optical, image.shape)
    matrix = affine_matrix(flip=False, shear=0.0, zoom=scale, rotation=rotation)
    rows, cols = affine_coords(rows, cols, matrix)
    return warp(image, side * rows + middle[0] * height, side * cols + middle[1] * width)


def intensity_parameters(key: jax.Array, strengths: Mapping[str, Scalar]) -> dict[str, jax.Array]:
    """Draws the arguments of `intensity` and 'noise', a standard deviation, within `config.augment.intensity`."""
    blur_key, coarseness_key, brightness_key, contrast_key, gamma_key, noise_key = jax.random.split(key, 6)
    brightness, contrast, gamma = strengths['brightness'], strengths['contrast'], strengths['gamma']
    return {
        'blur': _uniform(blur_key, 0.0, strengths['blur']),
        'coarseness': _uniform(coarseness_key, 1.0, 1.0 + strengths['coarseness']),
        'brightness': _uniform(brightness_key, 1.0 - brightness, 1.0 + brightness),
        'contrast': _uniform(contrast_key, 1.0 - contrast, 1.0 + contrast),
        'gamma': jnp.exp(_uniform(gamma_key, -gamma, gamma)),
        'noise': _uniform(noise_key, 0.0, strengths['noise']),
    }


def intensity(
    image: jax.Array, blur: Scalar, coarseness: Scalar, brightness: Scalar, contrast: Scalar, gamma: Scalar
) -> jax.Array:
    """Blurs, coarsens, and changes brightness, contrast and gamma, in this order; float32 [H, W] in [0, 1] in and out.

    blur, coarseness: of `resampling_matrix`. brightness: factor. contrast: factor about the mean of the image. gamma:
    exponent. Greys are clipped to [0, 1] after contrast.
    """
    down, across = (resampling_matrix(size, blur, coarseness) for size in image.shape)
    exact = jax.lax.Precision.HIGHEST  # a GPU may round to TF32, which is half a grey level
    image = brightness * jnp.matmul(jnp.matmul(down, image, precision=exact), across.T, precision=exact)
    mean = jnp.mean(image)
    return jnp.clip(mean + contrast * (image - mean), 0.0, 1.0) ** gamma


def resampling_matrix(size: int, blur: Scalar, coarseness: Scalar) -> jax.Array:
    """What a blur and larger pixels make of a row of pixels, float32 [size, size]; each row sums to 1.

    blur: standard deviation in pixels of a Gaussian, cut off at the edge. coarseness: size of the larger pixels, 1 or
    more; each is the mean of what it covers, and between their centres greys are linear.
    """
    places = jnp.arange(size, dtype=jnp.float32)
    gauss = jnp.exp(-0.5 * ((places[:, None] - places[None, :]) / jnp.maximum(blur, 1e-3)) ** 2)
    ends = jnp.minimum((places[:, None] + 1.0) * coarseness, places[None, :] + 1.0)
    starts = jnp.maximum(places[:, None] * coarseness, places[None, :])
    covers = jnp.maximum(ends - starts, 0.0)  # [larger pixel, pixel]; those beyond the edge cover nothing
    centres = jnp.clip((places + 0.5) / coarseness - 0.5, 0.0, jnp.ceil(size / coarseness - 1e-4) - 1.0)
    between = jnp.maximum(1.0 - jnp.abs(centres[:, None] - places[None, :]), 0.0)  # [pixel, larger pixel]
    exact = jax.lax.Precision.HIGHEST
    wholes = covers / jnp.maximum(jnp.sum(covers, axis=1, keepdims=True), 1e-6)
    gauss = gauss / jnp.sum(gauss, axis=1, keepdims=True)
    return jnp.matmul(jnp.matmul(between, wholes, precision=exact), gauss, precision=exact)


def affine_matrix(flip: Scalar, shear: Scalar, zoom: Scalar, rotation: Scalar) -> jax.Array:
    """The map from output to source (row, column) that flips, shears, zooms and rotates, in this order.

    Args:
      flip: bool, mirrors left and right.
      shear: degrees; upright lines lean counterclockwise as seen on the screen, level lines stay level.
      zoom: factor, above 1 enlarges.
      rotation: degrees, counterclockwise as seen on the screen.

    Returns:
      float32 [2, 2].
    """
    angle = jnp.deg2rad(rotation)
    row = jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    col = jnp.stack([-jnp.sin(angle), jnp.cos(angle)]) - jnp.tan(jnp.deg2rad(shear)) * row
    return jnp.stack([row, jnp.where(flip, -col, col)]) / zoom


def affine_coords(rows: jax.Array, cols: jax.Array, matrix: jax.Array) -> Coords:
    """Applies a float32 [2, 2] `affine_matrix` to coordinates; float32 [H, W] each."""
    # Elementwise: a GPU may round a matrix product to TF32, which is some hundredths of a pixel.
    return matrix[0, 0] * rows + matrix[0, 1] * cols, matrix[1, 0] * rows + matrix[1, 1] * cols


def optical_distortion_coords(rows: jax.Array, cols: jax.Array, k: Scalar, shape: tuple[int, int]) -> Coords:
    """Radial lens distortion r -> r (1 + k r^2 / R^2), where R is the distance from the middle to a corner.

    The fisheye mode of albumentations.OpticalDistortion 2.0. k > 0 shrinks the image towards its corners
    (barrel), k < 0 stretches it (pincushion); below -1/3 it would fold. float32 [H, W] each.
    """
    height, width = shape
    stretch = 1.0 + k * (rows**2 + cols**2) / ((height**2 + width**2) / 4.0)
    return rows * stretch, cols * stretch


def grid_distortion_coords(
    rows: jax.Array, cols: jax.Array, row_steps: jax.Array, col_steps: jax.Array, shape: tuple[int, int]
) -> Coords:
    """Squeezes and stretches K bands of rows and K of columns; the edges of the image stay.

    albumentations.GridDistortion 2.0 with normalized=True, but continuous: there, the last pixel of a band
    and the first of the next have the same source, so that equal steps are not the identity.

    row_steps, col_steps: float32 [K], positive, the relative sizes in the source of bands that are equal in
    the output. Returns float32 arrays shaped as rows and cols.
    """
    height, width = shape
    return _bend(rows, row_steps, height), _bend(cols, col_steps, width)


def _bend(x: jax.Array, steps: jax.Array, size: int) -> jax.Array:
    """Piecewise linear in K bands from -size/2 to size/2, the identity outside."""
    cells = len(steps)
    spacing = size / cells
    starts = spacing * jnp.arange(cells, dtype=jnp.float32) - size / 2.0
    slopes = steps * (cells / jnp.sum(steps))
    return x + jnp.sum((slopes - 1.0) * jnp.clip(x[..., None] - starts, 0.0, spacing), axis=-1)


def pixel_coords(shape: tuple[int, int]) -> Coords:
    """Centres of the pixels, in pixels from the middle of the image: rows float32 [H, 1], cols [1, W]."""
    height, width = shape
    rows = jnp.arange(height, dtype=jnp.float32) - (height - 1) / 2.0
    cols = jnp.arange(width, dtype=jnp.float32) - (width - 1) / 2.0
    return rows[:, None], cols[None, :]


def warp(image: jax.Array, rows: jax.Array, cols: jax.Array) -> jax.Array:
    """Samples an image bilinearly at rows, cols (pixels from its middle); outside of it all is black.

    Half a pixel beyond the outermost centres is half an edge pixel, as in mode='grid-constant' of scipy.ndimage
    and BORDER_CONSTANT of OpenCV. The library's function is as fast as any tried (2 CPU cores, 32 images of
    128x128 in vmap in scan: 0.023 ms an image; four gathers from a padded image: 0.027).

    Args:
      image: float32 [H, W] in [0, 1].
      rows, cols: float32, of shapes that broadcast to [H, W].

    Returns:
      float32 [H, W] in [0, 1].
    """
    height, width = image.shape
    indices = jnp.broadcast_arrays(rows + (height - 1) / 2.0, cols + (width - 1) / 2.0)
    return jax.scipy.ndimage.map_coordinates(image, indices, order=1, mode='constant')


def gaussian_noise(key: jax.Array, image: jax.Array, std: Scalar) -> jax.Array:
    """Adds noise of standard deviation std and clips to [0, 1]; float32 [H, W] in [0, 1] in and out."""
    return jnp.clip(image + std * jax.random.normal(key, image.shape, jnp.float32), 0.0, 1.0)


def _uniform(key: jax.Array, low: Scalar, high: Scalar, shape: tuple[int, ...] = ()) -> jax.Array:
    return jax.random.uniform(key, shape, jnp.float32, low, high)
