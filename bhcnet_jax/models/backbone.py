"""What the published networks share: their keys, a factor of their channels, convolutions with norm, classifiers.

B batch, H W pixels, C channels, F channels of the last maps, D features.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from bhcnet_jax.errors import UserError
from bhcnet_jax.keys import Key, Part, between
from bhcnet_jax.models import layers

he_uniform = nn.initializers.he_uniform()  # He et al. (2015): keeps the variance through many layers with ReLU


def scaled(channels: int, width: float) -> int:
    """Channels or units times the key `model.width`, at least 1."""
    return max(1, round(channels * width))


def conv(
    x: jax.Array,
    mask: layers.Mask | None,
    features: int,
    names: tuple[str, str],
    *,
    norm: str,
    dtype: Any,
    activation: Callable[[jax.Array], jax.Array] = nn.relu,
    epsilon: float = 1e-5,
    use_bias: bool | None = None,
    **window: Any,
) -> jax.Array:
    """A convolution, its normalisation if any, and an activation, float [B, H, W, C] -> [B, h, w, features].

    To be called in a compact method. names: of the convolution and its normalisation. window: of `layers.Conv`.
    use_bias: None: only without a normalisation, which has its own.
    """
    has_bias = norm == 'none' if use_bias is None else use_bias
    x = layers.Conv(features, use_bias=has_bias, kernel_init=he_uniform, dtype=dtype, name=names[0], **window)(x)
    if norm != 'none':
        x = layers.Norm(norm, dtype, epsilon, name=names[1])(x, mask)
    return activation(x)


def mean_of_pixels(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, C]."""
    return x.mean(axis=(1, 2))


class Network(nn.Module):
    """float [B, H, W, 1] in [0, 1] -> logits float32 [B]; other arguments as in `Family.create`.

    Attributes:
      trunk: images and mask -> the maps after the last convolution, [B, h, w, F].
      last: what makes features of these maps, [B, h, w, F] -> [B, D] or [B, h, w, D].
      dense: units of each dense layer before the head. Dropout comes after each; the head begins with the last one.
      hidden_units: of the head.
      activation: of the dense layers.
    """

    trunk: nn.Module
    last: Callable[[jax.Array], jax.Array]
    dense: tuple[int, ...]
    hidden_units: int
    dtype: Any
    activation: Callable[[jax.Array], jax.Array] = nn.relu

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        values: Mapping[str, jax.Array] | None = None,
        dropout_keys: jax.Array | None = None,
        mask: layers.Mask | None = None,
    ) -> jax.Array:
        x = self.last(self.maps(x, mask, dropout_keys))
        x = x.reshape(x.shape[0], -1)
        for number, units in enumerate(self.dense, 1):
            if number > 1 and dropout_keys is not None:
                x = layers.dropout(x, values['model.dropout'], numbered(dropout_keys, number))
            x = nn.Dense(units, dtype=self.dtype, kernel_init=he_uniform, name=f'dense{number}')(x)
            x = self.activation(x)
        keys = None if dropout_keys is None else numbered(dropout_keys, 0)
        return layers.Head(self.hidden_units, self.dtype, name='head')(x, values, keys)

    def maps(self, x: jax.Array, mask: layers.Mask | None, dropout_keys: jax.Array | None) -> jax.Array:
        """Those after the last convolution. dropout_keys: for trunks that have a dropout."""
        return self.trunk(x, mask)


def numbered(keys: jax.Array, number: int) -> jax.Array:
    """Keys for one of several dropouts, from one for each image."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


AT_ONCE = 8  # `Family.at_once` of networks whose weights are larger than their maps

# The smallest leaves VGG four channels in its first layer.
WIDTH = Key('model.width', between(0.01, 8.0), Part.PROGRAM, neutral=1.0)
KEYS = (
    WIDTH,
    layers.NORM,
    layers.HIDDEN_UNITS,
    layers.DROPOUT,
    layers.DTYPE,
)


def settings(config: ConfigDict) -> dict[str, Any]:
    """The arguments of a trunk in `config.model`."""
    return {'width': config.width, 'norm': config.norm, 'dtype': jnp.dtype(config.dtype)}


def head(config: ConfigDict) -> dict[str, Any]:
    """The arguments of `Network` in `config.model` that all networks take from there."""
    return {'hidden_units': config.hidden_units, 'dtype': jnp.dtype(config.dtype)}


def check(smallest: int) -> Callable[[Mapping[str, Any]], None]:
    """A function for `Family.check`. smallest: pixels a side of an image that leaves the last maps a pixel."""
    return functools.partial(_check, smallest)


def _check(smallest: int, config: Mapping[str, Any]) -> None:
    model, image_size = config['model'], config['dataset']['image_size']
    if image_size < smallest:
        raise UserError(f'dataset.image_size is {image_size}; {model["name"]} needs at least {smallest}.')
    if model['mask_head']:
        raise UserError(f'model.mask_head is True, but {model["name"]} has no mask head; set it to False.')
