"""AlexNet (Krizhevsky et al., 2012) for grey images, as one column (Krizhevsky, One weird trick, 2014)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from bhcnet_jax.keys import Key, Part, flag
from bhcnet_jax.models import backbone, layers, windows
from bhcnet_jax.models.family import Family

# Channels, pixels of the kernel, stride, margin; whether the maxima of 3x3 pixels follow. The last ones are in `_last`.
CONVOLUTIONS = ((64, 11, 4, 2, True), (192, 5, 1, 2, True), (384, 3, 1, 1, False), (256, 3, 1, 1, False),
                (256, 3, 1, 1, False))  # fmt: skip
NEIGHBOURS = 2  # channels to either side that local response normalisation looks at


def local_response(x: jax.Array) -> jax.Array:
    """Each value divided by (2 + 1e-4 x sum of squares of five neighbouring channels)^0.75; 2012, section 3.3.

    float [..., C] -> the same.
    """
    channels = x.shape[-1]
    squares = jnp.pad(jnp.square(x), [(0, 0)] * (x.ndim - 1) + [(NEIGHBOURS, NEIGHBOURS)])
    total = sum(squares[..., start : start + channels] for start in range(2 * NEIGHBOURS + 1))
    return x / (2 + 1e-4 * total) ** 0.75


def _max_pool(x: jax.Array) -> jax.Array:
    return windows.max_pool(x, windows.window(x.shape, 3, 2, 0))


class AlexNetTrunk(nn.Module):
    """float [B, H, W, 1] -> [B, h, w, 256 x width]."""

    width: float
    norm: str
    lrn: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mask: layers.Mask | None) -> jax.Array:
        for number, (channels, size, stride, margin, is_pooled) in enumerate(CONVOLUTIONS, 1):
            names, features = (f'conv{number}', f'norm{number}'), backbone.scaled(channels, self.width)
            window = {'size': size, 'stride': stride, 'margin': margin}
            x = backbone.conv(x, mask, features, names, norm=self.norm, dtype=self.dtype, use_bias=True, **window)
            if is_pooled:
                x = _max_pool(local_response(x) if self.lrn else x)
        return x


def _create(config: ConfigDict) -> backbone.Network:
    return backbone.Network(
        trunk=AlexNetTrunk(lrn=config.lrn, **backbone.settings(config)),
        last=_max_pool,
        dense=(backbone.scaled(4096, config.width),) * 2,
        **backbone.head(config),
    )


FAMILY = Family(
    create=_create,
    at_once=backbone.AT_ONCE,
    keys=(*backbone.KEYS, Key('model.lrn', flag, Part.PROGRAM, neutral=False)),
    check=backbone.check(smallest=63),
    first_convolution=('trunk', 'conv1'),
    maps=('trunk',),
)
