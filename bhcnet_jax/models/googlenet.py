"""GoogLeNet (Szegedy et al., Going deeper with convolutions, 2015, table 1).

As in the usual ports, `model.norm = 'batch'` adds a normalisation after each convolution; the original has none. The
auxiliary classifiers (section 5) are an option.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from bhcnet_jax.keys import Key, Part, flag
from bhcnet_jax.models import backbone, layers, windows
from bhcnet_jax.models.family import AUXILIARY, Family

# Channels: of 1x1; of 1x1 before 3x3, of 3x3; of 1x1 before 5x5, of 5x5; of 1x1 after the maximum.
INCEPTIONS = {
    '3a': (64, 96, 128, 16, 32, 32),
    '3b': (128, 128, 192, 32, 96, 64),
    '4a': (192, 96, 208, 16, 48, 64),
    '4b': (160, 112, 224, 24, 64, 64),
    '4c': (128, 128, 256, 24, 64, 64),
    '4d': (112, 144, 288, 32, 64, 64),
    '4e': (256, 160, 320, 32, 128, 128),
    '5a': (256, 160, 320, 32, 128, 128),
    '5b': (384, 192, 384, 48, 128, 128),
}
HALVED = ('3a', '4a', '5a')  # before these, maxima of 3x3 pixels with stride 2
WATCHED = ('4a', '4d')  # after these, the auxiliary classifiers
AUXILIARY_SIDE = 4  # pixels of the maps that they see
AUXILIARY_DROPOUT = 0.7


def _halve(x: jax.Array) -> jax.Array:
    return windows.max_pool(x, windows.window(x.shape, 3, 2, 'ceil'))


class Inception(nn.Module):
    """Four branches side by side, [B, H, W, C] -> [B, H, W, sum of the channels of their ends]."""

    channels: tuple[int, ...]  # as in INCEPTIONS
    norm: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mask: layers.Mask | None) -> jax.Array:
        def conv(x: jax.Array, branch: str, features: int, size: int) -> jax.Array:
            names = (f'conv{branch}', f'norm{branch}')
            return backbone.conv(x, mask, features, names, norm=self.norm, dtype=self.dtype, size=size)

        one, before_three, three, before_five, five, after = self.channels
        pooled = windows.max_pool(x, windows.window(x.shape, 3))
        branches = (
            conv(x, '1', one, 1),
            conv(conv(x, '2a', before_three, 1), '2b', three, 3),
            conv(conv(x, '3a', before_five, 1), '3b', five, 5),
            conv(pooled, '4', after, 1),
        )
        return jnp.concatenate(branches, axis=-1)


class AuxiliaryClassifier(nn.Module):
    """Maps from the middle of the trunk, [B, h, w, C] -> logits float32 [B].

    The paper averages 5x5 pixels with stride 3, which leaves 4x4 of the maps of 224 pixels a side. Here the maps of
    images of any size are averaged to 4x4.
    """

    width: float
    norm: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mask: layers.Mask | None, dropout_keys: jax.Array | None) -> jax.Array:
        features, units = (backbone.scaled(count, self.width) for count in (128, 1024))
        same = {'norm': self.norm, 'dtype': self.dtype}
        x = backbone.conv(layers.shrink(x, AUXILIARY_SIDE), mask, features, ('conv', 'norm'), size=1, **same)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(units, dtype=self.dtype, kernel_init=backbone.he_uniform, name='dense')(x))
        if dropout_keys is not None:
            x = layers.dropout(x, jnp.float32(AUXILIARY_DROPOUT), dropout_keys)
        return layers.Head(0, self.dtype, name='head')(x, None, None)


class GoogLeNetTrunk(nn.Module):
    """float [B, H, W, 1] -> [B, H/32, W/32, 1024 x width].

    auxiliary: whether classifiers watch two of the maps in training; their logits are in AUXILIARY.
    """

    width: float
    norm: str
    auxiliary: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mask: layers.Mask | None, dropout_keys: jax.Array | None) -> jax.Array:
        same = {'norm': self.norm, 'dtype': self.dtype}
        narrow, wide = (backbone.scaled(channels, self.width) for channels in (64, 192))
        x = _halve(backbone.conv(x, mask, narrow, ('conv1', 'norm1'), size=7, stride=2, **same))
        x = backbone.conv(x, mask, narrow, ('conv2', 'norm2'), size=1, **same)
        x = backbone.conv(x, mask, wide, ('conv3', 'norm3'), **same)
        for name, channels in INCEPTIONS.items():
            x = _halve(x) if name in HALVED else x
            x = Inception(tuple(backbone.scaled(each, self.width) for each in channels), **same, name=name)(x, mask)
            if self.auxiliary and name in WATCHED and (mask is not None or self.is_initializing()):
                keys = None if dropout_keys is None else backbone.numbered(dropout_keys, 1 + WATCHED.index(name))
                classifier = AuxiliaryClassifier(self.width, **same, name=f'auxiliary{name}')
                logits = classifier(x, mask, keys)
                if mask is not None:
                    self.sow(AUXILIARY, f'logits{name}', logits)
        return x


class GoogLeNet(backbone.Network):
    """`backbone.Network` of a trunk with dropout."""

    def maps(self, x: jax.Array, mask: layers.Mask | None, dropout_keys: jax.Array | None) -> jax.Array:
        """Those after the last inception module."""
        return self.trunk(x, mask, dropout_keys)


def _create(config: ConfigDict) -> GoogLeNet:
    return GoogLeNet(
        trunk=GoogLeNetTrunk(auxiliary=config.auxiliary, **backbone.settings(config)),
        last=backbone.mean_of_pixels,
        dense=(),
        **backbone.head(config),
    )


FAMILY = Family(
    create=_create,
    at_once=backbone.AT_ONCE,
    keys=(*backbone.KEYS, Key('model.auxiliary', flag, Part.PROGRAM, neutral=False)),
    check=backbone.check(smallest=31),
    composite=tuple(('trunk', name) for name in (*INCEPTIONS, *(f'auxiliary{name}' for name in WATCHED))),
    first_convolution=('trunk', 'conv1'),
    maps=('trunk',),
)
