"""The paper's CNN + LSTM on the balanced set (first phase only).

    python -m bhcnet_jax.main --config=lstm_balanced
"""

from ml_collections import ConfigDict

from bhcnet_jax.configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.recipe = 'lstm_balanced'
    c.phases = ('balanced',)
    c.model.name = 'cnn_lstm'
    return c
