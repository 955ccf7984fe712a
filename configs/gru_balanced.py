"""The paper's CNN + GRU on the balanced set (first phase only).

    python -m bhcnet_jax.main --config=gru_balanced
"""

from ml_collections import ConfigDict

from bhcnet_jax.configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.recipe = 'gru_balanced'
    c.phases = ('balanced',)
    c.model.name = 'cnn_gru'
    return c
