"""What a family of models says of itself; a file of this folder has one or more, models/__init__.py names them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax import linen as nn
from ml_collections import ConfigDict

from bhcnet_jax.keys import Key

# What a call of a model whose layers learn one by one returns beside its output with mutable=[RECONSTRUCTIONS]: for
# each layer how badly it reconstructs what it sees, float32 [B], nats.
RECONSTRUCTIONS = 'reconstructions'
# What a call in training of a model with classifiers of its middle maps returns beside its output with
# mutable=[AUXILIARY]: the logits of each, float32 [B].
AUXILIARY = 'auxiliary'


def _nothing(config: Mapping[str, Any]) -> None:
    """Any values fit together."""


class Family(NamedTuple):
    """A family of models.

    Attributes:
      create: the module of `config.model`. It is called with x float [B, H, W, 1] in [0, 1] and gives logits, float32
        [B]; see `sees_volumes`. In training three more arguments come: values, the traced keys in use by name, scalars;
        B random keys for dropout; and a `layers.Mask`.
      keys: its keys of the section `model`, beside model.name. Families that share a key share the `Key`.
      check: UserError if a config has values that do not fit together; each by itself is checked before.
      composite: paths of modules that are one layer in the table of layers, whatever is inside.
      first_convolution: path in the weights of a kernel [K, K, 1, F] and, if it has one, a bias [F] that see the image
        itself, for the figure of features; () for none.
      maps: path of the module whose output, [B, h, w, F], are the feature maps after the last convolution, for
        `apply_with_maps`; () for none.
      sees_volumes: whether x is float [B, D, H, W, 1] instead, with D = `dataset.slices`.
      greedy: names of the modules that the phase `autoencoder` trains one after the other, from below, each on its loss
        in RECONSTRUCTIONS; names sort as they follow. () for none.
      at_once: images of a batch that a CPU computes at a time. Of few the maps stay in its cache, but weights and their
        gradients pass through it once for each time: 2 where maps are larger than weights, 8 where they are not.
    """

    create: Callable[[ConfigDict], nn.Module]
    keys: tuple[Key, ...]
    check: Callable[[Mapping[str, Any]], None] = _nothing
    composite: tuple[tuple[str, ...], ...] = ()
    first_convolution: tuple[str, ...] = ()
    maps: tuple[str, ...] = ()
    sees_volumes: bool = False
    greedy: tuple[str, ...] = ()
    at_once: int = 2
