"""What the families share. Layers that stay fast inside `lax.scan` and `vmap`, the modules of them, and their keys.

Shapes: B batch, H W pixels, C input channels, F output channels (filters), D features; of volumes D slices.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import lax
from ml_collections import ConfigDict

from bhcnet_jax.errors import UserError
from bhcnet_jax.keys import Key, Part, between, flag, one_of, tuple_of
from bhcnet_jax.models import convolution, windows

# The augmentation terms of the paper (IV.D) are those of Keras, so its silent choices are taken from Keras too.
kernel_init = nn.initializers.glorot_uniform()

# The mask head: a 1x1 convolution of the last block's maps to a logit of blood for each of their pixels, float32
# [B, H / 2^(blocks - 1), ...], which a call of the model with mutable=[MASKS] returns beside its output.
MASKS, MASK_HEAD = 'masks', 'mask_head'
GROUP = 8  # channels that group normalisation takes together
# Share of the running moments that a step of batch normalisation leaves: 0.99, which is usual in flax, remembers the
# weights of a tenth of a whole training of the paper.
KEPT = 0.9


def relu_max_pool2x2(x: jax.Array) -> jax.Array:
    """ReLU, then the maximum over 2x2 pixels: [B, H, W, C] -> [B, H//2, W//2, C]; an odd last row or column is dropped.

    Maxima that are not above zero pass no gradient.
    """
    # On a GPU, which waits for its memory, the place of each maximum is kept instead of all that it was chosen from.
    return max_pool2x2(nn.relu(x)) if jax.default_backend() == 'cpu' else relu_max_pool2x2_by_place(x)


@jax.custom_vjp
def relu_max_pool2x2_by_place(x: jax.Array) -> jax.Array:
    """`relu_max_pool2x2` that keeps a byte for each maximum; of equal ones the first gets the gradient."""
    return _maxima_and_places(x)[0]


def _maxima_and_places(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Also uint8 [B, H//2, W//2, C]: 0 to 3, which of the four pixels is the maximum; 4 if it is not above zero."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2].reshape(batch, height // 2, 2, width // 2, 2, channels)
    first, second, third, fourth = (x[:, :, row, :, col] for row in (0, 1) for col in (0, 1))
    upper, lower = jnp.maximum(first, second), jnp.maximum(third, fourth)
    best = jnp.maximum(upper, lower)
    place = jnp.where(upper >= lower, jnp.where(first >= second, 0, 1), jnp.where(third >= fourth, 2, 3))
    return nn.relu(best), jnp.where(best > 0, place, 4).astype(jnp.uint8)


def _keep_places(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, tuple[int, ...]]]:
    maxima, places = _maxima_and_places(x)
    return maxima, (places, x.shape)


def _to_places(saved: tuple[jax.Array, tuple[int, ...]], grad: jax.Array) -> tuple[jax.Array]:
    places, (batch, height, width, channels) = saved
    here = jnp.arange(4, dtype=jnp.uint8).reshape(1, 1, 2, 1, 2, 1)
    spread = jnp.where(places[:, :, None, :, None] == here, grad[:, :, None, :, None], jnp.zeros((), grad.dtype))
    spread = spread.reshape(batch, height // 2 * 2, width // 2 * 2, channels)
    return (jnp.pad(spread, ((0, 0), (0, height % 2), (0, width % 2), (0, 0))),)


relu_max_pool2x2_by_place.defvjp(_keep_places, _to_places)


def max_pool2x2(x: jax.Array) -> jax.Array:
    """Maximum over 2x2 pixels, stride 2; [B, H, W, C] -> [B, H//2, W//2, C]; an odd last row or column is dropped.

    The gradient of `nn.max_pool` is a select-and-scatter; that of a maximum over reshaped axes is a comparison.
    """
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


def global_max(x: jax.Array) -> jax.Array:
    """The maximum over all places: [B, ..., C] -> [B, C]; of equal ones the first gets the gradient.

    The gradient of `jnp.max` compares x with its maximum. Where XLA computes x once for the maximum and once more,
    rounded differently, for the comparison, no place is found, and the gradient is 0/0.
    """
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    place = jnp.arange(x.shape[1])[:, None] == x.argmax(axis=1)[:, None]
    return jnp.where(place, x, jnp.zeros_like(x)).sum(axis=1)


def relu_max_pool2x2x2(x: jax.Array) -> jax.Array:
    """`relu_max_pool2x2`, then the maximum over two slices: [B, D, H, W, C] -> [B, D//2, H//2, W//2, C].

    Odd last ones are dropped. Equal maxima of two slices share the gradient.
    """
    batch, depth, *sides, channels = x.shape
    x = x[:, : depth // 2 * 2].reshape(-1, *sides, channels)
    pooled = relu_max_pool2x2(x)
    return pooled.reshape(batch, depth // 2, 2, *pooled.shape[1:]).max(axis=2)


def shrink(x: jax.Array, count: int) -> jax.Array:
    """[B, H, W, C] -> [B, count, count, C]: each pixel is the mean of the area that it covers."""
    rows, cols = (jnp.asarray(_areas(side, count), x.dtype) for side in x.shape[1:3])
    return jnp.einsum('yh,bhwc,xw->byxc', rows, x, cols)


def _areas(side: int, count: int) -> np.ndarray:
    """The share of each of `side` pixels in each of `count`, float64 [count, side]; rows add up to 1."""
    edges, pixels = np.linspace(0, side, count + 1)[:, None], np.arange(side)
    overlap = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return np.maximum(overlap, 0) * count / side


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


class Conv(nn.Module):
    """`nn.Conv` with the same parameters, [B, H, W, C] -> [B, h, w, F]; see `convolution.convolve`.

    margin: of zeros, as of `windows.window`. depthwise: each channel by itself, and F is C.
    """

    features: int
    size: int = 3
    stride: int = 1
    margin: int | str = 'centred'
    use_bias: bool = True
    depthwise: bool = False
    kernel_init: nn.initializers.Initializer = kernel_init
    dtype: Any = jnp.float32

    def seen(self, shape: tuple[int, ...]) -> windows.Window:
        """The pixels that the outputs see, of an image [B, H, W, C]."""
        return windows.window(shape, self.size, self.stride, self.margin)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = 1 if self.depthwise else x.shape[-1]
        kernel = self.param('kernel', self.kernel_init, (self.size, self.size, channels, self.features))
        convolve = convolution.depthwise if self.depthwise else convolution.convolve
        x = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.seen(x.shape))
        if not self.use_bias:
            return x
        return x + self.param('bias', nn.initializers.zeros_init(), (self.features,)).astype(self.dtype)


class Conv3D(nn.Module):
    """`nn.Conv` of volumes with a kernel of 3x3x3 and the same parameters, [B, D, H, W, C] -> [B, D, H, W, F]."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param('kernel', kernel_init, (3, 3, 3, x.shape[-1], self.features))
        bias = self.param('bias', nn.initializers.zeros_init(), (self.features,))
        return convolution.conv3x3x3(x.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(self.dtype)


@struct.dataclass
class Mask:
    """Which images of a batch count.

    Attributes:
      counts: float32 [B], 1, or 0 for padding.
      axis: that of the devices which share the batch, each with a part of it; None if one has it all.
    """

    counts: jax.Array
    axis: str | None = struct.field(pytree_node=False, default=None)


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy, 2015), float [B, ..., C] -> the same; variables as of `nn.BatchNorm`.

    The moments of a batch are those of all its images that count, also if several devices share it. mask: None in
    evaluation, which takes the running moments.
    """

    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mask: Mask | None) -> jax.Array:
        channels, zeros, ones = x.shape[-1:], nn.initializers.zeros_init(), nn.initializers.ones_init()
        scale, bias = self.param('scale', ones, channels), self.param('bias', zeros, channels)
        starts = {'mean': jnp.zeros, 'var': jnp.ones}
        running = [self.variable('batch_stats', name, start, channels) for name, start in starts.items()]
        x = x.astype(jnp.float32)
        if mask is None:
            mean, variance = (moment.value for moment in running)
        else:
            mean, variance = self.moments(x, mask)
            for moment, new in zip(running, (mean, variance), strict=True):
                moment.value = KEPT * moment.value + (1 - KEPT) * new
        return ((x - mean) * (lax.rsqrt(variance + self.epsilon) * scale) + bias).astype(self.dtype)

    @staticmethod
    def moments(x: jax.Array, mask: Mask) -> tuple[jax.Array, jax.Array]:
        """Mean and variance of the images that count, float32 [C] each."""
        counts, axes = mask.counts.reshape(-1, *(1,) * (x.ndim - 1)) > 0, tuple(range(x.ndim - 1))
        sums = jnp.stack([jnp.sum(x, axes, where=counts), jnp.sum(x * x, axes, where=counts)])
        number = jnp.sum(mask.counts) * math.prod(x.shape[1:-1])
        if mask.axis is not None:
            sums, number = lax.psum((sums, number), mask.axis)
        mean, mean_of_squares = sums / number
        return mean, jnp.maximum(mean_of_squares - mean * mean, 0.0)


class Norm(nn.Module):
    """Normalisation of maps over pixels and images or channels, float [B, H, W, C] or [B, D, H, W, C] -> the same.

    'batch': `BatchNorm`. 'group': over GROUP neighbouring channels of an image, so that it does not matter with which
    others it is computed. epsilon: what 'batch' adds to the variance. mask: None in evaluation.
    """

    kind: str
    dtype: Any = jnp.float32
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, mask: Mask | None) -> jax.Array:
        if self.kind == 'group':
            return nn.GroupNorm(num_groups=None, group_size=math.gcd(GROUP, x.shape[-1]), dtype=self.dtype)(x)
        return BatchNorm(self.epsilon, self.dtype)(x, mask)


class ConvTrunk(nn.Module):
    """Blocks of 3x3 convolutions with ReLU, all but the last followed by 2x2 max-pooling (paper V.C).

    float [B, H, W, C] -> [B, H / 2^(blocks - 1), ..., F]. The paper has three blocks of one convolution and no
    normalisation. Of volumes, [B, D, H, W, C], convolutions are 3x3x3 and pooling is 2x2x2. mask: see `Norm`.
    mask_head: see `MASKS`.
    """

    filters: tuple[int, ...]  # one block each
    convs: int = 1  # of a block
    norm: str = 'none'
    mask_head: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: Mask | None = None) -> jax.Array:
        features = [count for count in self.filters for _ in range(self.convs)]
        conv, pool = (Conv3D, relu_max_pool2x2x2) if x.ndim == 5 else (Conv, relu_max_pool2x2)
        for number, count in enumerate(features, 1):
            x = conv(count, dtype=self.dtype, name=f'conv{number}')(x)
            if self.norm != 'none':
                x = Norm(self.norm, self.dtype, name=f'norm{number}')(x, mask)
            x = pool(x) if number % self.convs == 0 and number < len(features) else nn.relu(x)
        if self.mask_head:
            # Not an output: who does not ask for the collection has the network without it, also when compiled.
            blood = nn.Dense(1, dtype=jnp.float32, kernel_init=kernel_init, name=MASK_HEAD)(x)
            self.sow(MASKS, 'logits', blood[..., 0])
        return x


class Head(nn.Module):
    """Dropout, an optional dense ReLU layer, one logit in float32. float [B, D] -> [B].

    values, dropout_keys: as in `Family.create`; None in evaluation.
    """

    hidden_units: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, values: Mapping[str, jax.Array] | None, dropout_keys: jax.Array | None
    ) -> jax.Array:
        if dropout_keys is not None:
            x = dropout(x, values['model.dropout'], dropout_keys)
        if self.hidden_units:
            x = nn.relu(nn.Dense(self.hidden_units, dtype=self.dtype, kernel_init=kernel_init, name='hidden')(x))
        return nn.Dense(1, dtype=jnp.float32, kernel_init=kernel_init, name='logit')(x)[:, 0]


NORM = Key('model.norm', one_of('none', 'batch', 'group'), Part.PROGRAM, neutral='none')
HIDDEN_UNITS = Key('model.hidden_units', between(0, 2**16), Part.PROGRAM)
DROPOUT = Key('model.dropout', between(0.0, 0.99), Part.TRACED)
DTYPE = Key('model.dtype', one_of('float32', 'bfloat16'), Part.PROGRAM)
# Of `ConvTrunk` and `Head`.
KEYS = (
    Key('model.filters', tuple_of(between(1, 2**16)), Part.PROGRAM),
    Key('model.convs', between(1, 16), Part.PROGRAM, neutral=1),
    NORM,
    HIDDEN_UNITS,
    DROPOUT,
    DTYPE,
    Key('model.mask_head', flag, Part.PROGRAM, neutral=False),
)
FIRST_CONVOLUTION = ('trunk', 'conv1')
MAPS = ('trunk',)


def settings(config: ConfigDict) -> dict[str, Any]:
    """The arguments of `ConvTrunk` and `Head` in `config.model`."""
    return {
        'filters': tuple(config.filters),
        'hidden_units': config.hidden_units,
        'convs': config.convs,
        'norm': config.norm,
        'mask_head': config.mask_head,
        'dtype': jnp.dtype(config.dtype),
    }


def check(config: Mapping[str, Any]) -> None:
    """UserError if `ConvTrunk` cannot have the blocks of a config on its images."""
    filters, image_size = tuple(config['model']['filters']), config['dataset']['image_size']
    if image_size >> (len(filters) - 1) < 1:
        raise UserError(
            f'dataset.image_size is {image_size}; {len(filters)} blocks halve it '
            f'{len(filters) - 1} times, so it must be at least {2 ** (len(filters) - 1)}.'
        )
