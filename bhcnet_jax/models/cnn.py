"""The paper's CNN: three convolutional blocks, the third with global average pooling (V.C)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bhcnet_jax.models import layers


class CNN(nn.Module):
    """float [B, H, W, 1] in [0, 1] -> logits float32 [B].

    `dropout_keys` are B random keys in training and None in evaluation; `dropout_rate` is a scalar in [0, 1).
    """

    filters: tuple[int, ...]
    hidden_units: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, dropout_rate: jax.Array | None = None, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        x = layers.ConvTrunk(self.filters, self.dtype, name='trunk')(x)  # [B, H/4, W/4, F]
        x = x.mean(axis=(1, 2))  # [B, F]
        return layers.Head(self.hidden_units, self.dtype, name='head')(x, dropout_rate, dropout_keys)
