"""LeNet-5 (LeCun et al., Gradient-based learning applied to document recognition, 1998, section II.B), for one logit.

It sees 32 x 32 pixels, whatever the image's size. Two things differ from 1998: each map of C3 sees all maps of S2,
where the original leaves out 900 of 2400 weights, and the output is this project's head instead of radial basis
functions.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from bhcnet_jax.models import backbone, layers
from bhcnet_jax.models.family import Family

SIDE = 32  # pixels of the input


def squash(x: jax.Array) -> jax.Array:
    """The scaled hyperbolic tangent of 1998, appendix A: +-1 stay +-1."""
    return 1.7159 * jnp.tanh(x * (2 / 3))


class Subsampling(nn.Module):
    """The mean of 2x2 pixels, with a factor and a bias for each map, squashed: [B, H, W, C] -> [B, H/2, W/2, C]."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        scale = self.param('scale', nn.initializers.ones_init(), (channels,)).astype(self.dtype)
        bias = self.param('bias', nn.initializers.zeros_init(), (channels,)).astype(self.dtype)
        mean = x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
        return squash(scale * mean + bias)


class LeNetTrunk(nn.Module):
    """float [B, H, W, 1] -> C3, [B, 10, 10, 16 x width]."""

    width: float
    norm: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mask: layers.Mask | None) -> jax.Array:
        same = {'norm': self.norm, 'dtype': self.dtype, 'size': 5, 'margin': 0, 'activation': squash, 'use_bias': True}
        first, second = (backbone.scaled(count, self.width) for count in (6, 16))
        x = backbone.conv(layers.shrink(x, SIDE), mask, first, ('c1', 'norm1'), **same)
        return backbone.conv(Subsampling(self.dtype, name='s2')(x), mask, second, ('c3', 'norm3'), **same)


def _create(config: ConfigDict) -> backbone.Network:
    return backbone.Network(
        trunk=LeNetTrunk(**backbone.settings(config)),
        last=Subsampling(jnp.dtype(config.dtype)),
        dense=tuple(backbone.scaled(units, config.width) for units in (120, 84)),  # C5, F6
        activation=squash,
        **backbone.head(config),
    )


# The figure of features shows an image of the data set, and this network sees a smaller one.
FAMILY = Family(
    create=_create,
    at_once=backbone.AT_ONCE,
    keys=backbone.KEYS,
    check=backbone.check(smallest=1),
    maps=('trunk',),
)
