"""Convolutions that stay fast inside `lax.scan` and `vmap`, on CPUs and GPUs.

Shapes: B batch, D slices, H W pixels, C input channels, F output channels (filters), K pixels along each side of a
kernel; h w outputs along the sides.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bhcnet_jax.models.windows import Window, every, shifted

THREE = Window()  # 3x3, stride 1, zeros around
TILE = 4  # outputs along each side of a Winograd tile; a tile's inputs are two more
LEAST = 16  # pixels along each side of a map that is worth Winograd's tiles


def convolve(x: jax.Array, kernel: jax.Array, seen: Window) -> jax.Array:
    """Convolution, of zeros in the margin. x: float [B, H, W, C]. kernel: same dtype [K, K, C, F]. -> [B, h, w, F]."""
    if seen == THREE:
        return conv3x3(x, kernel)
    if seen == Window(1, seen.stride, ((0, 0), (0, 0))):
        for axis, count in enumerate(seen.outputs(x.shape), 1):
            x = every(x, axis, 0, count, seen.stride)
        return product(x, kernel[0, 0])
    return im2col(x, kernel, seen)


def depthwise(x: jax.Array, kernel: jax.Array, seen: Window) -> jax.Array:
    """Convolution of each channel by itself, float32 inside.

    x: float [B, H, W, C]. kernel: same dtype [K, K, 1, C], as in `nn.Conv` with C groups. -> [B, h, w, C].
    """
    return (stored_depthwise if jax.default_backend() == 'cpu' else summed_depthwise)(x, kernel, seen)


def summed_depthwise(x: jax.Array, kernel: jax.Array, seen: Window) -> jax.Array:
    """`depthwise` as a sum of shifted images."""
    weights = kernel[:, :, 0].astype(jnp.float32)
    return sum(image * weights[i, j] for (i, j), image in shifted(x.astype(jnp.float32), seen)).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def stored_depthwise(x: jax.Array, kernel: jax.Array, seen: Window) -> jax.Array:
    """`summed_depthwise`, stored once: a CPU would compute it again for each moment of a normalisation after it.

    The gradient of the kernel sums over two images at a time, which stay in the cache; that of x with stride 1 is the
    sum of shifted gradients instead of padded ones.
    """
    return lax.optimization_barrier(summed_depthwise(x, kernel, seen))


def _stored_depthwise_gradients(
    seen: Window, saved: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    if seen.stride == 1:
        back = Window(seen.size, 1, tuple((seen.size - 1 - low, seen.size - 1 - high) for low, high in seen.margin))
        of_x = summed_depthwise(grad, kernel[::-1, ::-1], back)
    else:
        of_x = jax.vjp(lambda x: summed_depthwise(x, kernel, seen), x)[1](grad)[0]

    def add(total: jax.Array, some: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        x, grad = (each.astype(jnp.float32) for each in some)
        return total + jnp.stack([(image * grad).sum((0, 1, 2)) for _, image in shifted(x, seen)]), None

    pairs = (each.reshape(-1, math.gcd(len(x), 2), *each.shape[1:]) for each in (x, grad))
    of_kernel, _ = lax.scan(add, jnp.zeros((seen.size**2, x.shape[-1])), tuple(pairs))
    return lax.optimization_barrier((of_x, of_kernel.reshape(kernel.shape).astype(kernel.dtype)))


stored_depthwise.defvjp(
    lambda x, kernel, seen: (stored_depthwise(x, kernel, seen), (x, kernel)), _stored_depthwise_gradients
)


def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 convolution, stride 1, zero padding, in the way that is fastest for its shape where it runs.

    Args:
      x: float [B, H, W, C].
      kernel: same dtype [3, 3, C, F], as in `nn.Conv`.

    Returns:
      [B, H, W, F], same dtype.
    """
    _, height, width, channels = x.shape
    if jax.default_backend() != 'cpu':  # Winograd's differences would magnify what TF32 and bfloat16 round
        return shifted_sum(x, kernel) if channels == 1 else im2col(x, kernel)
    # On a small map a weight may see nothing, and Adam takes long steps along a gradient that is 0 but for rounding.
    tiled = x.dtype == jnp.float32 and channels > 1 and min(height, width) >= LEAST
    return winograd(x, kernel) if tiled else im2col(x, kernel)


def conv3x3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3x3 convolution of volumes, stride 1, zero padding: `conv3x3` of slices with the channels of three neighbours.

    x: float [B, D, H, W, C]. kernel: same dtype [3, 3, 3, C, F], slices first, as in `nn.Conv`. -> [B, D, H, W, F].
    """
    batch, depth, *sides, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    neighbours = jnp.concatenate([padded[:, place : place + depth] for place in range(3)], axis=-1)
    flat = jnp.moveaxis(kernel, 0, 2).reshape(3, 3, 3 * channels, -1)
    return conv3x3(neighbours.reshape(batch * depth, *sides, -1), flat).reshape(batch, depth, *sides, -1)


@jax.custom_vjp
def shifted_sum(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`conv3x3` of a single channel, as a sum of nine shifted images, float32 inside.

    XLA computes it where it is needed: what bias, ReLU and pooling make of it is stored, itself it is not.
    """
    weights = kernel.astype(jnp.float32)
    return sum(image * weights[i, j] for (i, j), image in shifted(x.astype(jnp.float32), THREE)).astype(x.dtype)


def _shifted_sum_gradients(saved: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    of_x = jax.vjp(lambda x: im2col(x, kernel), x)[1](grad)[0]
    images = jnp.stack([image for _, image in shifted(x, THREE)]).reshape(9, -1)
    of_kernel = jnp.dot(images, grad.reshape(-1, grad.shape[-1]), preferred_element_type=jnp.float32)
    return of_x, of_kernel.reshape(kernel.shape).astype(kernel.dtype)


shifted_sum.defvjp(lambda x, kernel: (shifted_sum(x, kernel), (x, kernel)), _shifted_sum_gradients)


def im2col(x: jax.Array, kernel: jax.Array, seen: Window = THREE) -> jax.Array:
    """`convolve` as one product of K x K shifted copies of the input with the kernel.

    Inside `lax.scan` on the CPU the gradient of `lax.conv` is 10-30 times slower than outside it, and under `vmap`
    over kernels it becomes a grouped convolution; a matrix product has neither penalty.
    """
    patches = concatenated_patches(x, seen) if jax.default_backend() == 'cpu' else gathered_patches(x, seen)
    return product(patches, kernel.reshape(-1, kernel.shape[-1]))


def concatenated_patches(x: jax.Array, seen: Window) -> jax.Array:
    """[B, H, W, C] -> [B, h, w, K K C]: what each output of a convolution is computed from."""
    return jnp.concatenate([copy for _, copy in shifted(x, seen)], axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gathered_patches(x: jax.Array, seen: Window) -> jax.Array:
    """`concatenated_patches` by indices, which XLA writes more than twice as fast on a GPU."""
    height, width = seen.outputs(x.shape)
    rows = seen.stride * jnp.arange(height)[:, None, None, None] + jnp.arange(seen.size)[:, None]  # [h, 1, K, 1]
    cols = seen.stride * jnp.arange(width)[:, None, None] + jnp.arange(seen.size)  # [w, 1, K]
    padded = jnp.pad(x, ((0, 0), *seen.margin, (0, 0)))
    return padded[:, rows, cols].reshape(x.shape[0], height, width, -1)


gathered_patches.defvjp(  # indices would have a scatter as their gradient
    lambda x, seen: (gathered_patches(x, seen), x),
    lambda seen, x, grad: jax.vjp(lambda x: concatenated_patches(x, seen), x)[1](grad),
)


@jax.custom_vjp
def product(rows: jax.Array, weights: jax.Array) -> jax.Array:
    """[..., K] @ [K, F]. JAX's own gradient of the weights has the CPU transpose the gradient of the output first."""
    return rows @ weights


def _product_gradients(saved: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows, weights = saved
    return grad @ weights.T, rows.reshape(-1, rows.shape[-1]).T @ grad.reshape(-1, grad.shape[-1])


product.defvjp(lambda rows, weights: (rows @ weights, (rows, weights)), _product_gradients)


def _winograd_matrices() -> list[np.ndarray]:
    """Of F(4x4, 3x3): the maps of outputs [16, 36], kernel [36, 9] and inputs [36, 36], float32.

    A 1-D tile multiplies polynomials at five points and at infinity. These points round about as little as im2col;
    with the usual 0, +-1, +-2 the errors are three to four times as large.
    """
    points = np.sqrt([0, 0.5, 0.5, 2, 2]) * [1, 1, -1, 1, -1]

    def powers(count: int) -> np.ndarray:
        return np.vstack([points[:, None] ** np.arange(count), np.eye(count)[-1:]])

    maps = powers(TILE).T, powers(3), np.linalg.inv(powers(TILE + 2)).T
    return [np.kron(each, each).astype(np.float32) for each in maps]


FROM_PRODUCTS, FROM_KERNEL, FROM_INPUTS = _winograd_matrices()


def winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`conv3x3` by Winograd's minimal filtering (Lavin and Gray, 2016): a quarter of the multiplications of im2col.

    Its gradients are products of the same sizes. The maps into and out of tiles are products with constant matrices.
    """
    batch, height, width, channels = x.shape
    features = kernel.shape[-1]
    tiles = _tiles(x)  # [6, 6, B, rows of tiles, columns of tiles, C]
    rows, cols = tiles.shape[3:5]
    inputs = (FROM_INPUTS @ tiles.reshape(36, -1)).reshape(36, -1, channels)
    weights = (FROM_KERNEL @ kernel.reshape(9, -1)).reshape(36, channels, features)
    outputs = FROM_PRODUCTS @ (inputs @ weights).reshape(36, -1)
    outputs = outputs.reshape(TILE, TILE, batch, rows, cols, features).transpose(2, 3, 0, 4, 1, 5)
    outputs = outputs.reshape(batch, TILE * rows, TILE * cols, features)[:, :height, :width]
    # Over black, rounding must leave no trace: a ReLU passes the gradient of 1e-9, and Adam takes it for a large one.
    rounding = jnp.where(_sees_something(x), jnp.zeros_like(outputs), outputs)
    return outputs - lax.stop_gradient(rounding)


def _sees_something(x: jax.Array) -> jax.Array:
    """Whether any value in the 3x3 pixels around a pixel is not 0; [B, H, W, C] -> bool [B, H, W, 1]."""
    _, height, width, _ = x.shape
    lit = jnp.pad(jnp.any(x != 0, axis=-1, keepdims=True), ((0, 0), (1, 1), (1, 1), (0, 0)))
    lit = lit[:, :height] | lit[:, 1:-1] | lit[:, 2:]
    return lit[:, :, :width] | lit[:, :, 1:-1] | lit[:, :, 2:]


def _tiles(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [6, 6, B, R, S, C]: pixel (i, j) of each of R x S tiles, which overlap by two pixels."""
    batch, height, width, channels = x.shape
    rows, cols = -(-height // TILE), -(-width // TILE)
    x = jnp.pad(x, ((0, 0), (1, TILE * (rows + 1) - height - 1), (1, TILE * (cols + 1) - width - 1), (0, 0)))
    x = x.reshape(batch, rows + 1, TILE, cols + 1, TILE, channels).transpose(2, 4, 0, 1, 3, 5)
    x = jnp.concatenate([x[:, :, :, :-1], x[:2, :, :, 1:]], axis=0)  # the last two come from the next tile
    return jnp.concatenate([x[:, :, :, :, :-1], x[:, :2, :, :, 1:]], axis=1)
