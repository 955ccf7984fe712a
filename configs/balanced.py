"""The paper's CNN on the balanced set (first phase only).

    python -m bhcnet_jax.main --config=balanced
"""

from ml_collections import ConfigDict

from bhcnet_jax.configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.recipe = 'balanced'
    c.phases = ('balanced',)
    return c
