"""The paper's CNN: three convolutional blocks, the third with global average pooling (V.C); and deeper ones."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from bhcnet_jax.keys import Key, Part, one_of
from bhcnet_jax.models import layers
from bhcnet_jax.models.family import Family

POOLINGS = ('mean', 'max', 'mean_max')


class CNN(nn.Module):
    """float [B, H, W, 1] or [B, D, H, W, 1] in [0, 1] -> logits float32 [B].

    `values`, `dropout_keys` and `mask` are as in `Family.create`, and None in evaluation.
    """

    filters: tuple[int, ...]
    hidden_units: int
    convs: int = 1
    norm: str = 'none'
    pooling: str = 'mean'  # over the pixels that are left: mean, max, or mean_max, which is both side by side
    mask_head: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        values: Mapping[str, jax.Array] | None = None,
        dropout_keys: jax.Array | None = None,
        mask: layers.Mask | None = None,
    ) -> jax.Array:
        x = layers.ConvTrunk(self.filters, self.convs, self.norm, self.mask_head, self.dtype, name='trunk')(x, mask)
        places = tuple(range(1, x.ndim - 1))
        pool = {'mean': lambda x: x.mean(axis=places), 'max': layers.global_max}
        x = jnp.concatenate([pool[name](x) for name in self.pooling.split('_')], axis=-1)  # [B, F] or [B, 2 F]
        return layers.Head(self.hidden_units, self.dtype, name='head')(x, values, dropout_keys)


def create(config: ConfigDict) -> CNN:
    """As of `Family`."""
    return CNN(pooling=config.pooling, **layers.settings(config))


KEYS = (*layers.KEYS, Key('model.pooling', one_of(*POOLINGS), Part.PROGRAM, neutral='mean'))
FAMILY = Family(
    create=create,
    keys=KEYS,
    check=layers.check,
    first_convolution=layers.FIRST_CONVOLUTION,
    maps=layers.MAPS,
)
