"""The networks that the paper speaks of (V.C), each at three learning rates, in the paper's protocol of two phases.

    python -m bhcnet_jax.main --config=zoo --sweep='split.fold=0:10'

Validation images from inside the training folds choose the rate. `--config.model.width=0.25` makes the published
networks a sixteenth as large, as two cores need it.
"""

import itertools

from ml_collections import ConfigDict

from bhcnet_jax.configs import imbalanced

NETWORKS = (
    *({'model.name': name} for name in ('cnn', 'cnn_lstm', 'cnn_gru')),
    *({'model.name': name} for name in ('lenet5', 'alexnet', 'vgg11', 'vgg16', 'googlenet')),
    *({'model.name': name, 'model.norm': 'batch'} for name in ('resnet18', 'resnet50', 'efficientnet_lite0')),
)
RATES = (1e-4, 3e-4, 1e-3)


def get_config() -> ConfigDict:
    c = imbalanced.get_config()
    c.recipe = 'zoo'
    c.trials = tuple({**network, 'optimizer.peak_lr': rate} for network, rate in itertools.product(NETWORKS, RATES))
    c.split.scheme = 'kfold'
    c.split.val_folds = 10
    return c
