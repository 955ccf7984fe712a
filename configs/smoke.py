"""Every part of a run in under a minute on 2 CPU cores: both phases, small images, few of them.

    python -m bhcnet_jax.main --config=smoke

Its figures mean nothing; they only show that everything works.
"""

from ml_collections import ConfigDict

from bhcnet_jax.configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.recipe = 'smoke'
    c.dataset.image_size = 32
    c.model.filters = (8, 16, 32)
    c.augment.samples = 200
    c.balanced.epochs = 4
    c.imbalanced.epochs = 2
    return c
