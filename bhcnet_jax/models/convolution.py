"""3x3 convolutions that stay fast inside `lax.scan` and `vmap`, on CPUs and GPUs.

Shapes: B batch, H W pixels, C input channels, F output channels (filters).
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

TILE = 4  # outputs along each side of a Winograd tile; a tile's inputs are two more
LEAST = 16  # pixels along each side of a map that is worth Winograd's tiles


def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 convolution, stride 1, zero padding, in the way that is fastest for its shape where it runs.

    Args:
      x: float [B, H, W, C].
      kernel: same dtype [3, 3, C, F], as in `nn.Conv`.

    Returns:
      [B, H, W, F], same dtype.
    """
    _, height, width, channels = x.shape
    if jax.default_backend() != 'cpu':
        return shifted_sum(x, kernel) if channels == 1 else lane_by_lane(x, kernel)
    # On a small map a weight may see nothing, and Adam takes long steps along a gradient that is 0 but for rounding.
    tiled = x.dtype == jnp.float32 and channels > 1 and min(height, width) >= LEAST
    return winograd(x, kernel) if tiled else im2col(x, kernel)


def _one_after_another(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The function, which `vmap` calls for one lane after the other instead of changing what it does."""
    function = custom_vmap(function)

    @function.def_vmap
    def call_for_each(lanes: int, batched: Sequence[bool], *arguments: jax.Array) -> tuple[jax.Array, bool]:
        def of(lane: int) -> list[jax.Array]:
            return [each[lane] if has_lanes else each for each, has_lanes in zip(arguments, batched, strict=True)]

        return jnp.stack([function(*of(lane)) for lane in range(lanes)]), True

    return function


def _library(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


_output = _one_after_another(_library)
_of_x = _one_after_another(lambda x, kernel, grad: jax.vjp(lambda x: _library(x, kernel), x)[1](grad)[0])
_of_kernel = _one_after_another(lambda x, kernel, grad: jax.vjp(lambda kernel: _library(x, kernel), kernel)[1](grad)[0])


@jax.custom_vjp
def lane_by_lane(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`conv3x3` by the library of a GPU.

    Under `vmap` over kernels `lax.conv` becomes a grouped convolution, for which the library takes several times as
    long as for one convolution after another.
    """
    return _output(x, kernel)


lane_by_lane.defvjp(
    lambda x, kernel: (_output(x, kernel), (x, kernel)),
    lambda saved, grad: (_of_x(*saved, grad), _of_kernel(*saved, grad)),
)


@jax.custom_vjp
def shifted_sum(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`conv3x3` of a single channel, as a sum of nine shifted images, float32 inside.

    XLA computes it where it is needed: what bias, ReLU and pooling make of it is stored, itself it is not.
    """
    weights = kernel.astype(jnp.float32)
    return sum(image * weights[i, j] for (i, j), image in _shifted(x.astype(jnp.float32))).astype(x.dtype)


def _shifted(x: jax.Array) -> Iterator[tuple[tuple[int, int], jax.Array]]:
    """For each weight of a kernel its place and what it is multiplied with, [B, H, W, C]."""
    _, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for i, j in itertools.product(range(3), range(3)):
        yield (i, j), padded[:, i : i + height, j : j + width]


def _shifted_sum_gradients(saved: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    images = jnp.stack([image for _, image in _shifted(x)]).reshape(9, -1)
    of_kernel = jnp.dot(images, grad.reshape(-1, grad.shape[-1]), preferred_element_type=jnp.float32)
    return _of_x(x, kernel, grad), of_kernel.reshape(kernel.shape).astype(kernel.dtype)


shifted_sum.defvjp(lambda x, kernel: (shifted_sum(x, kernel), (x, kernel)), _shifted_sum_gradients)


def im2col(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`conv3x3` as one product of nine shifted copies of the input with the kernel.

    Inside `lax.scan` on the CPU the gradient of `lax.conv` is 10-30 times slower than outside it, and under `vmap`
    over kernels it becomes a grouped convolution; a matrix product has neither penalty.
    """
    shifted = jnp.concatenate([copy for _, copy in _shifted(x)], axis=-1)
    return product(shifted, kernel.reshape(9 * x.shape[-1], -1))


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
