"""The paper's CNN + GRU in two phases: balanced, then imbalanced with the weights and class weights carried over.

    python -m bhcnet_jax.main --config=gru_imbalanced
"""

from ml_collections import ConfigDict

from bhcnet_jax.configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.recipe = 'gru_imbalanced'
    c.model.name = 'cnn_gru'
    return c
