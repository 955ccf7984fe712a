"""EfficientNet-Lite0 (Tan and Le, EfficientNet, 2019, without squeeze-and-excitation and with ReLU6), as in TensorFlow.

Names are those of timm's tf_efficientnet_lite0, so that its weights fit (`weights.py`). The original has
`model.norm = 'batch'`. `model.width` scales all channels, without the original's rounding to multiples of eight.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from bhcnet_jax.models import backbone, layers, weights
from bhcnet_jax.models.family import Family

EPSILON = 1e-3  # of batch normalisation


class Stage(NamedTuple):
    """Blocks of one kind; only the first has the stride. expansion: of the channels inside."""

    blocks: int
    size: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16), Stage(2, 3, 2, 6, 24), Stage(2, 5, 2, 6, 40), Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112), Stage(4, 5, 2, 6, 192), Stage(1, 3, 1, 6, 320),
)  # fmt: skip
PLACES = [(number, place) for number, stage in enumerate(STAGES) for place in range(stage.blocks)]


def relu6(x: jax.Array) -> jax.Array:
    """ReLU, at most 6."""
    return jnp.minimum(nn.relu(x), jnp.asarray(6, x.dtype))


def _nothing(x: jax.Array) -> jax.Array:
    return x


class Block(nn.Module):
    """More channels by 1x1, each convolved by itself, fewer by 1x1; with a short cut where the shape stays.

    float [B, H, W, C] -> [B, H/stride, W/stride, channels].
    """

    channels: int
    size: int
    stride: int
    expansion: int
    norm: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mask: layers.Mask | None) -> jax.Array:
        count = iter(('bn1', 'bn2', 'bn3'))

        def conv(x: jax.Array, name: str, features: int, **window: Any) -> jax.Array:
            same = {'norm': self.norm, 'dtype': self.dtype, 'epsilon': EPSILON, 'margin': 'same'}
            return backbone.conv(x, mask, features, (name, next(count)), **same, **window)

        inside, y = x.shape[-1] * self.expansion, x
        y = conv(y, 'conv_pw', inside, size=1, activation=relu6) if self.expansion > 1 else y
        y = conv(y, 'conv_dw', inside, size=self.size, stride=self.stride, depthwise=True, activation=relu6)
        y = conv(y, 'conv_pwl' if self.expansion > 1 else 'conv_pw', self.channels, size=1, activation=_nothing)
        return x + y if x.shape == y.shape else y


class EfficientNetTrunk(nn.Module):
    """float [B, H, W, 1] -> [B, H/32, W/32, 1280 x width]."""

    width: float
    norm: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mask: layers.Mask | None) -> jax.Array:
        def conv(x: jax.Array, names: tuple[str, str], features: int, **window: Any) -> jax.Array:
            same = {'norm': self.norm, 'dtype': self.dtype, 'epsilon': EPSILON, 'activation': relu6, 'margin': 'same'}
            return backbone.conv(x, mask, backbone.scaled(features, self.width), names, **same, **window)

        x = conv(2 * x - 1, ('conv_stem', 'bn1'), 32, stride=2)
        for number, place in PLACES:
            _, size, stride, expansion, channels = STAGES[number]
            stride = 1 if place else stride
            channels = backbone.scaled(channels, self.width)
            name = f'blocks_{number}_{place}'
            x = Block(channels, size, stride, expansion, self.norm, self.dtype, name=name)(x, mask)
        return conv(x, ('conv_head', 'bn2'), 1280, size=1)


def _create(config: ConfigDict) -> backbone.Network:
    return backbone.Network(
        trunk=EfficientNetTrunk(**backbone.settings(config)),
        last=backbone.mean_of_pixels,
        dense=(),
        **backbone.head(config),
    )


LITE0 = Family(
    create=_create,
    at_once=backbone.AT_ONCE,
    keys=(*backbone.KEYS, *weights.KEYS),
    check=backbone.check(smallest=1),
    composite=tuple(('trunk', f'blocks_{number}_{place}') for number, place in PLACES),
    maps=('trunk',),
)
