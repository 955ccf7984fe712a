"""Stacked autoencoder of three hidden layers (paper, section III), pre-trained one by one (Bengio et al., 2007).

The paper gives no sizes, so these are ours: the image is seen as 32 x 32 pixels, as by LeNet-5. Of the pre-training
see the phase `autoencoder`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax
from ml_collections import ConfigDict

from bhcnet_jax.models import backbone, layers, lenet
from bhcnet_jax.models.family import RECONSTRUCTIONS, Family

UNITS = (512, 256, 128)  # times `model.width`
LAYERS = tuple(f'layer{number}' for number in range(1, len(UNITS) + 1))


class Layer(nn.Module):
    """A dense sigmoid layer, float [B, D] in [0, 1] -> code [B, units], with its way back by the same kernel (tied).

    The loss of the way back is in the collection RECONSTRUCTIONS: cross-entropy with what the layer sees, the mean over
    D, nats, float32 [B]. Its gradient ends at this layer.
    """

    units: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        zeros, inputs = nn.initializers.zeros_init(), x.shape[-1]
        kernel = self.param('kernel', layers.kernel_init, (inputs, self.units)).astype(self.dtype)
        bias = self.param('bias', zeros, (self.units,)).astype(self.dtype)
        back = self.param('bias_back', zeros, (inputs,)).astype(self.dtype)

        def encode(seen: jax.Array) -> jax.Array:
            return nn.sigmoid(seen.astype(self.dtype) @ kernel + bias)

        seen = lax.stop_gradient(x)
        logits = encode(seen) @ kernel.T + back
        losses = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), seen.astype(jnp.float32))
        if not self.is_initializing():
            self.sow(RECONSTRUCTIONS, 'losses', losses.mean(axis=-1))
        return encode(x)


class StackedAutoencoder(nn.Module):
    """float [B, H, W, 1] in [0, 1] -> logits float32 [B]; other arguments as in `Family.create`."""

    units: tuple[int, ...]
    hidden_units: int
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        values: Mapping[str, jax.Array] | None = None,
        dropout_keys: jax.Array | None = None,
        mask: layers.Mask | None = None,
    ) -> jax.Array:
        x = layers.shrink(x, lenet.SIDE).reshape(x.shape[0], -1)
        for units, name in zip(self.units, LAYERS, strict=True):
            x = Layer(units, self.dtype, name=name)(x)
        return layers.Head(self.hidden_units, self.dtype, name='head')(x, values, dropout_keys)


def _create(config: ConfigDict) -> StackedAutoencoder:
    units = tuple(backbone.scaled(count, config.width) for count in UNITS)
    return StackedAutoencoder(units=units, **backbone.head(config))


FAMILY = Family(
    create=_create,
    at_once=backbone.AT_ONCE,
    keys=(backbone.WIDTH, layers.HIDDEN_UNITS, layers.DROPOUT, layers.DTYPE),
    check=backbone.check(smallest=1),
    greedy=LAYERS,
)
