"""VGG (Simonyan and Zisserman, Very deep convolutional networks, 2015), configurations A and D of table 1."""

import functools
from typing import Any

import jax
from flax import linen as nn
from ml_collections import ConfigDict

from bhcnet_jax.models import backbone, layers
from bhcnet_jax.models.family import Family

CHANNELS = (64, 128, 256, 512, 512)  # of each block
CONVOLUTIONS = {'vgg11': (1, 1, 2, 2, 2), 'vgg16': (2, 2, 3, 3, 3)}  # in each block


class VGGTrunk(nn.Module):
    """float [B, H, W, 1] -> [B, H/16, W/16, 512 x width]: 3x3 convolutions, with maxima of 2x2 between the blocks."""

    convolutions: tuple[int, ...]
    width: float
    norm: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mask: layers.Mask | None) -> jax.Array:
        for block, (count, channels) in enumerate(zip(self.convolutions, CHANNELS, strict=True), 1):
            x = layers.max_pool2x2(x) if block > 1 else x
            for number in range(1, count + 1):
                features = backbone.scaled(channels, self.width)
                names = (f'conv{block}_{number}', f'norm{block}_{number}')
                x = backbone.conv(x, mask, features, names, norm=self.norm, dtype=self.dtype, use_bias=True)
        return x


def _create(name: str, config: ConfigDict) -> backbone.Network:
    return backbone.Network(
        trunk=VGGTrunk(CONVOLUTIONS[name], **backbone.settings(config)),
        last=layers.max_pool2x2,
        dense=(backbone.scaled(4096, config.width),) * 2,
        **backbone.head(config),
    )


def _family(name: str) -> Family:
    return Family(
        create=functools.partial(_create, name),
        at_once=backbone.AT_ONCE,
        keys=backbone.KEYS,
        check=backbone.check(smallest=32),
        first_convolution=('trunk', 'conv1_1'),
        maps=('trunk',),
    )


VGG11, VGG16 = _family('vgg11'), _family('vgg16')
