"""Layers that stay fast inside `lax.scan` and `vmap`: convolution as matrix products, pooling without scatter.

Shapes: B batch, H W pixels, C input channels, F output channels (filters), D features.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

# The augmentation terms of the paper (IV.D) are those of Keras, so its silent choices are taken from Keras too.
kernel_init = nn.initializers.glorot_uniform()

TILE = 4  # outputs along each side of a Winograd tile; a tile's inputs are two more
GROUP = 8  # channels that group normalisation takes together
LEAST = 16  # pixels along each side of a map that is worth Winograd's tiles


def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 convolution, stride 1, zero padding, as matrix products.

    Inside `lax.scan` on the CPU the gradient of `lax.conv` is 10-30 times slower than outside it, and under `vmap`
    over kernels it becomes a grouped convolution; a matrix product has neither penalty.

    Args:
      x: float [B, H, W, C].
      kernel: same dtype [3, 3, C, F], as in `nn.Conv`.

    Returns:
      [B, H, W, F], same dtype.
    """
    # A GPU rounds what it multiplies to TF32; Winograd's differences would magnify that, and what bfloat16 rounds.
    exact = x.dtype == jnp.float32 and jax.default_backend() == 'cpu'
    # On a small map a weight may see nothing, and Adam takes long steps along a gradient that is 0 but for rounding.
    _, height, width, channels = x.shape
    return winograd(x, kernel) if exact and channels > 1 and min(height, width) >= LEAST else im2col(x, kernel)


def im2col(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`conv3x3` as one product of nine shifted copies of the input with the kernel."""
    _, height, width, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return product(jnp.concatenate(shifted, axis=-1), kernel.reshape(9 * channels, -1))


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


def max_pool2x2(x: jax.Array) -> jax.Array:
    """Maximum over 2x2 pixels, stride 2; [B, H, W, C] -> [B, H//2, W//2, C]; an odd last row or column is dropped.

    The gradient of `nn.max_pool` is a select-and-scatter; that of a maximum over reshaped axes is a comparison.
    """
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


def dropout(x: jax.Array, rate: jax.Array, keys: jax.Array) -> jax.Array:
    """Inverted dropout with a key per image, so that the mask does not depend on how a batch is spread.

    Args:
      x: float [B, D].
      rate: scalar in [0, 1), traced, so that a sweep over it compiles nothing; `nn.Dropout` needs a constant.
      keys: B random keys.

    Returns:
      [B, D], the kept features scaled by 1 / (1 - rate).
    """
    keep = 1.0 - rate
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, keep, x.shape[1:]))(keys)
    return jnp.where(kept, x / keep.astype(x.dtype), jnp.zeros_like(x))


class Conv3x3(nn.Module):
    """`nn.Conv(features, (3, 3))` with the same parameters, computed by `conv3x3`. [B, H, W, C] -> [B, H, W, F]."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param('kernel', kernel_init, (3, 3, x.shape[-1], self.features))
        bias = self.param('bias', nn.initializers.zeros_init(), (self.features,))
        return conv3x3(x.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(self.dtype)


class Norm(nn.Module):
    """Normalisation of maps over pixels and images or channels, float [B, H, W, C] -> the same.

    'batch': over the images of a batch, with a running mean of both moments for evaluation; mask: float32 [B], 0 for an
    image that does not count, or None in evaluation. A device has the statistics of its own part of a batch. 'group':
    over GROUP neighbouring channels of an image, so that it does not matter with which others it is computed.
    """

    kind: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        if self.kind == 'group':
            return nn.GroupNorm(num_groups=None, group_size=math.gcd(GROUP, x.shape[-1]), dtype=self.dtype)(x)
        counts = None if mask is None else mask[:, None, None, None] > 0
        if counts is not None:
            counts |= ~counts.any()  # a device's part may be all padding: its moments weigh nothing, but must be finite
        # The default momentum, 0.99, remembers the weights of a tenth of a whole training of the paper.
        norm = nn.BatchNorm(use_running_average=mask is None, momentum=0.9, dtype=self.dtype)
        return norm(x, mask=counts)


class ConvTrunk(nn.Module):
    """Blocks of 3x3 convolutions with ReLU, all but the last followed by 2x2 max-pooling (paper V.C).

    float [B, H, W, 1] -> [B, H / 2^(blocks - 1), ..., F]. ReLU comes before the pooling, so that ties at zero carry no
    gradient. The paper has three blocks of one convolution and no normalisation. mask: see `Norm`.
    """

    filters: tuple[int, ...]  # one block each
    convs: int = 1  # of a block
    norm: str = 'none'
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        features = [count for count in self.filters for _ in range(self.convs)]
        for number, count in enumerate(features, 1):
            x = Conv3x3(count, self.dtype, name=f'conv{number}')(x)
            if self.norm != 'none':
                x = Norm(self.norm, self.dtype, name=f'norm{number}')(x, mask)
            x = nn.relu(x)
            if number % self.convs == 0 and number < len(features):
                x = max_pool2x2(x)
        return x


class Head(nn.Module):
    """Dropout, an optional dense ReLU layer, one logit in float32. float [B, D] -> [B]."""

    hidden_units: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, dropout_rate: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        if dropout_keys is not None:
            x = dropout(x, dropout_rate, dropout_keys)
        if self.hidden_units:
            x = nn.relu(nn.Dense(self.hidden_units, dtype=self.dtype, kernel_init=kernel_init, name='hidden')(x))
        return nn.Dense(1, dtype=jnp.float32, kernel_init=kernel_init, name='logit')(x)[:, 0]
