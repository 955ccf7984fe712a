"""The paper's CNN + LSTM in two phases: balanced, then imbalanced with the weights and class weights carried over.

    python -m bhcnet_jax.main --config=lstm_imbalanced
"""

from ml_collections import ConfigDict

from bhcnet_jax.configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.recipe = 'lstm_imbalanced'
    c.model.name = 'cnn_lstm'
    return c
