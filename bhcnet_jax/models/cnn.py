"""The paper's CNN: three convolutional blocks, the third with global average pooling (V.C); and deeper ones."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bhcnet_jax.models import layers


class CNN(nn.Module):
    """float [B, H, W, 1] in [0, 1] -> logits float32 [B].

    `dropout_keys` are B random keys in training and None in evaluation; `dropout_rate` is a scalar in [0, 1). `mask`,
    float32 [B], is 0 for an image that batch normalisation must not see; None in evaluation.
    """

    filters: tuple[int, ...]
    hidden_units: int
    convs: int = 1
    norm: str = 'none'
    pooling: str = 'mean'  # over the pixels that are left: mean, max, or mean_max, which is both side by side
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        dropout_rate: jax.Array | None = None,
        dropout_keys: jax.Array | None = None,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        x = layers.ConvTrunk(self.filters, self.convs, self.norm, self.dtype, name='trunk')(x, mask)
        pooled = {'mean': x.mean(axis=(1, 2)), 'max': x.max(axis=(1, 2))}
        x = jnp.concatenate([pooled[name] for name in self.pooling.split('_')], axis=-1)  # [B, F] or [B, 2 F]
        return layers.Head(self.hidden_units, self.dtype, name='head')(x, dropout_rate, dropout_keys)
