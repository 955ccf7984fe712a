"""Beyond the paper: blocks of two normalised convolutions, mean and maximum pooling, new augmented images every epoch.

    python -m bhcnet_jax.main --config=strong
"""

from ml_collections import ConfigDict

from bhcnet_jax.configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.recipe = 'strong'
    c.phases = ('balanced',)
    c.model.filters = (16, 32, 64, 128)
    c.model.convs = 2
    c.model.norm = 'group'
    c.model.pooling = 'mean_max'
    c.augment.frozen = False
    return c
