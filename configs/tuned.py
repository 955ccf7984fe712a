"""`strong` with the one change of `ablations` that clearly lowers the loss on validation images (docs/study.md).

    python -m bhcnet_jax.main --config=tuned
"""

from ml_collections import ConfigDict

from bhcnet_jax.configs import strong


def get_config() -> ConfigDict:
    c = strong.get_config()
    c.recipe = 'tuned'
    c.model.dropout = 0.0
    return c
