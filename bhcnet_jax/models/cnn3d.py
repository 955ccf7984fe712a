"""A 3-D CNN: the paper's CNN with 3x3x3 convolutions and 2x2x2 pooling, for volumes.

Table 5 of the paper compares with a "3D CNN" of 2020 on CQ500 ([77]) and says nothing else of it; its list of
references ends before that number. So this is the plainest one: `cnn` with one more axis.
"""

from collections.abc import Mapping
from typing import Any

from bhcnet_jax.errors import UserError
from bhcnet_jax.models import cnn, layers
from bhcnet_jax.models.family import Family


def check(config: Mapping[str, Any]) -> None:
    """UserError if the blocks of a config do not fit into its volumes."""
    layers.check(config)
    halvings, slices = len(config['model']['filters']) - 1, config['dataset']['slices']
    if slices % 2**halvings:
        raise UserError(
            f'dataset.slices is {slices}; {len(config["model"]["filters"])} blocks halve it {halvings} times, so it '
            f'must be a multiple of {2**halvings}.'
        )


FAMILY = Family(create=cnn.create, keys=cnn.KEYS, check=check, sees_volumes=True)
