"""Layers that stay fast inside `lax.scan` and `vmap`: convolution as a matrix product, pooling without scatter.

Shapes: B batch, H W pixels, C input channels, F output channels (filters), D features.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

# The augmentation terms of the paper (IV.D) are those of Keras, so its silent choices are taken from Keras too.
kernel_init = nn.initializers.glorot_uniform()


def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 convolution, stride 1, zero padding, as im2col + matrix product.

    Inside `lax.scan` on the CPU the gradient of `lax.conv` is 10-30 times slower than outside it, and under `vmap`
    over kernels it becomes a grouped convolution; a matrix product has neither penalty.

    Args:
      x: float [B, H, W, C].
      kernel: same dtype [3, 3, C, F], as in `nn.Conv`.

    Returns:
      [B, H, W, F], same dtype.
    """
    _, height, width, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(9 * channels, -1)  # [B, H, W, 9C] @ [9C, F]


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


class ConvTrunk(nn.Module):
    """Three 3x3 convolutions with ReLU, the first two followed by 2x2 max-pooling (paper VI.C).

    float [B, H, W, 1] -> [B, H//4, W//4, F]. ReLU comes before the pooling, so that ties at zero carry no gradient.
    """

    filters: tuple[int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for number, features in enumerate(self.filters, 1):
            x = nn.relu(Conv3x3(features, self.dtype, name=f'conv{number}')(x))
            if number < len(self.filters):
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
