"""A hybrid of a 3-D and a 2-D CNN: the first proposes where blood is, the second looks there, slice by slice.

Table 5 of the paper compares with a "hybrid 3D/2D mask ROI-based CNN architecture" of 2019 on a "large head CT scan
dataset" ([74]) and says nothing else of it; its list of references ends before that number. The words are those of
Chang et al. (AJNR, 2018), who classify and segment the regions that a 3-D pyramid of feature maps proposes. What is
taken from there: a 3-D network that learns masks, regions from these, and a 2-D network on each slice's region. What is
chosen here: one square of half a side in each slice, around the middle of the proposed blood, in place of boxes of any
size and number; a patient's odds are the mean odds of the slices.

Shapes: B batch, D slices, H W pixels, d h w places of the coarse maps, R pixels along a region, F channels.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from ml_collections import ConfigDict

from bhcnet_jax.errors import UserError
from bhcnet_jax.models import cnn3d, layers
from bhcnet_jax.models.family import Family


class MaskROI(nn.Module):
    """float [B, D, H, W, 1] in [0, 1] -> logits float32 [B]. Its mask head is as of `layers.MASKS`, with slices.

    The 3-D network learns from masks alone, the 2-D network from labels alone.
    """

    filters: tuple[int, ...]  # of both networks
    hidden_units: int
    convs: int = 1
    norm: str = 'none'
    mask_head: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        values: Mapping[str, jax.Array] | None = None,
        dropout_keys: jax.Array | None = None,
        mask: layers.Mask | None = None,
    ) -> jax.Array:
        batch, depth = x.shape[:2]
        maps = layers.ConvTrunk(self.filters, self.convs, self.norm, dtype=self.dtype, name='trunk')(x, mask)
        blood = nn.Dense(1, dtype=jnp.float32, kernel_init=layers.kernel_init, name=layers.MASK_HEAD)(maps)[..., 0]
        self.sow(layers.MASKS, 'logits', blood)  # [B, d, h, w]
        seen = regions(x, lax.stop_gradient(jnp.repeat(blood, depth // blood.shape[1], axis=1)))  # [B, D, R, R, 2]
        seen = seen.reshape(batch * depth, *seen.shape[2:])
        mask = None if mask is None else mask.replace(counts=jnp.repeat(mask.counts, depth))
        maps = layers.ConvTrunk(self.filters, self.convs, self.norm, dtype=self.dtype, name='slices')(seen, mask)
        if dropout_keys is not None:
            dropout_keys = jax.vmap(lambda key: jax.random.split(key, depth))(dropout_keys).reshape(-1)
        head = layers.Head(self.hidden_units, self.dtype, name='head')
        logits = head(layers.global_max(maps), values, dropout_keys).reshape(batch, depth)
        return jax.nn.logsumexp(logits, axis=1) - math.log(depth)


def regions(x: jax.Array, blood: jax.Array) -> jax.Array:
    """The square of each slice around the middle of its proposed blood, cut out by products with zeros and ones.

    x: float [B, D, H, W, 1], H = W. blood: float [B, D, h, w], logits. -> [B, D, R, R, 2] with R = H // 2: grey, and
    the probability of blood. A square stays within its slice.
    """
    size, count = x.shape[2], blood.shape[2]
    side = size // count  # pixels under a place of the maps
    share = jax.nn.softmax(blood.reshape(*blood.shape[:2], -1)).reshape(blood.shape)
    centres = side * (jnp.arange(count, dtype=jnp.float32) + 0.5)
    fine = jnp.repeat(jnp.repeat(jax.nn.sigmoid(blood), side, axis=2), side, axis=3)
    fine = jnp.pad(fine, ((0, 0), (0, 0), *2 * ((0, size - side * count),)))
    pictures = jnp.concatenate([x, fine[..., None].astype(x.dtype)], axis=-1)
    down, across = (_choice(share.sum(axis=other) @ centres, size, x.dtype) for other in (3, 2))
    exact = lax.Precision.HIGHEST  # a GPU may round greys to TF32
    rows = jnp.einsum('bdrh,bdhwc->bdrwc', down, pictures, precision=exact)
    return jnp.einsum('bdsw,bdrwc->bdrsc', across, rows, precision=exact)


def _choice(middle: jax.Array, size: int, dtype: Any) -> jax.Array:
    """[B, D, R, H]: 1 where a pixel of the region is that of the slice, R pixels around `middle`, [B, D] in pixels."""
    region = size // 2
    first = jnp.clip(jnp.round(middle - region / 2), 0, size - region)
    places = first[..., None] + jnp.arange(region, dtype=jnp.float32)  # [B, D, R]
    return (places[..., None] == jnp.arange(size, dtype=jnp.float32)).astype(dtype)


def _create(config: ConfigDict) -> MaskROI:
    return MaskROI(**layers.settings(config))


def _check(config: Mapping[str, Any]) -> None:
    cnn3d.check(config)
    if not config['model']['mask_head'] or not config['phantom']['mask']:
        raise UserError(
            f'model.mask_head is {config["model"]["mask_head"]} and phantom.mask {config["phantom"]["mask"]}; mask_roi '
            'learns from masks where to look: set them to True and above 0.'
        )


FAMILY = Family(create=_create, keys=layers.KEYS, check=_check, sees_volumes=True)
