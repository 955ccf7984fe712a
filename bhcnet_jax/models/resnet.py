"""ResNet-18 and ResNet-50 (He et al., Deep residual learning, 2016, table 1), with the stride in the 3x3 convolution.

Names are those of timm, so that its weights fit (`weights.py`). The original has `model.norm = 'batch'`.
"""

import functools
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from ml_collections import ConfigDict

from bhcnet_jax.models import backbone, layers, weights, windows
from bhcnet_jax.models.family import Family

MEAN, DEVIATION = 0.449, 0.226  # of the greys of ImageNet: the means over RGB of what its networks are trained with
CHANNELS = (64, 128, 256, 512)


class Depth(NamedTuple):
    """Blocks of each stage, and whether they narrow to a quarter of their channels inside."""

    blocks: tuple[int, ...]
    is_bottleneck: bool


DEPTHS = {'resnet18': Depth((2, 2, 2, 2), False), 'resnet50': Depth((3, 4, 6, 3), True)}


def _nothing(x: jax.Array) -> jax.Array:
    return x


class Block(nn.Module):
    """Convolutions beside a short cut, [B, H, W, C] -> [B, H/stride, W/stride, channels; 4 x channels: bottleneck]."""

    channels: int
    stride: int
    is_bottleneck: bool
    norm: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mask: layers.Mask | None) -> jax.Array:
        conv = functools.partial(backbone.conv, mask=mask, norm=self.norm, dtype=self.dtype)
        names = [(f'conv{number}', f'bn{number}') for number in (1, 2, 3)]
        if self.is_bottleneck:
            outputs = 4 * self.channels
            y = conv(x, features=self.channels, names=names[0], size=1)
            y = conv(y, features=self.channels, names=names[1], stride=self.stride)
            y = conv(y, features=outputs, names=names[2], size=1, activation=_nothing)
        else:
            outputs = self.channels
            y = conv(x, features=outputs, names=names[0], stride=self.stride)
            y = conv(y, features=outputs, names=names[1], activation=_nothing)
        if self.stride > 1 or x.shape[-1] != outputs:
            names = ('downsample_0', 'downsample_1')
            x = conv(x, features=outputs, names=names, size=1, stride=self.stride, activation=_nothing)
        return nn.relu(x + y)


class ResNetTrunk(nn.Module):
    """float [B, H, W, 1] -> [B, H/32, W/32, 512 x width; 2048 x width: bottleneck]."""

    depth: Depth
    width: float
    norm: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mask: layers.Mask | None) -> jax.Array:
        same = {'norm': self.norm, 'dtype': self.dtype}
        features = [backbone.scaled(channels, self.width) for channels in CHANNELS]
        x = (x - MEAN) / DEVIATION
        x = backbone.conv(x, mask, features[0], ('conv1', 'bn1'), size=7, stride=2, **same)
        x = windows.max_pool(x, windows.window(x.shape, 3, 2))
        for stage, place, stride in _places(self.depth):
            block = Block(features[stage - 1], stride, self.depth.is_bottleneck, **same, name=f'layer{stage}_{place}')
            x = block(x, mask)
        return x


def _places(depth: Depth) -> list[tuple[int, int, int]]:
    """Stage from 1, place in it from 0, and stride of each block."""
    stages = enumerate(depth.blocks, 1)
    return [(stage, place, 2 if stage > 1 and not place else 1) for stage, count in stages for place in range(count)]


def _create(name: str, config: ConfigDict) -> backbone.Network:
    return backbone.Network(
        trunk=ResNetTrunk(DEPTHS[name], **backbone.settings(config)),
        last=backbone.mean_of_pixels,
        dense=(),
        **backbone.head(config),
    )


def _family(name: str) -> Family:
    return Family(
        create=functools.partial(_create, name),
        at_once=backbone.AT_ONCE,
        keys=(*backbone.KEYS, *weights.KEYS),
        check=backbone.check(smallest=1),
        composite=tuple(('trunk', f'layer{stage}_{place}') for stage, place, _ in _places(DEPTHS[name])),
        maps=('trunk',),
    )


RESNET18, RESNET50 = _family('resnet18'), _family('resnet50')
