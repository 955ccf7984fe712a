"""The paper read in 200 ways: what it leaves open, drawn at random, after both of its phases.

    python -m bhcnet_jax.main --config=readings --sweep='split.fold=0:10'

A choice among the readings may look at validation images from inside the training folds, a tenth of them.
"""

import itertools
import random
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from bhcnet_jax.configs import imbalanced

# What a compiled program is made of: few are drawn, so that readings share one.
PROGRAMS = {
    'model.filters': ((16, 32, 64), (32, 64, 128)),
    'model.hidden_units': (0, 64, 128),
    'augment.policy': ('affine', 'distort', 'affine+distort'),
    'augment.frozen': (True, False),
    'batch_size': (8, 16, 32),
}
SETTINGS = {
    'model.dropout': (0.0, 0.25, 0.5),
    'optimizer.peak_lr': (3e-4, 1e-3, 3e-3),
    'balanced.epochs': (12, 24, 100),
    'imbalanced.class_weights': ('carried', 'computed'),
    'imbalanced.optimizer_state': ('fresh', 'carried'),
}
DRAWN_PROGRAMS, DRAWN_SETTINGS, SEED = 25, 8, 0


def draw(seed: int = SEED) -> Iterator[dict[str, Any]]:
    """The readings, no two the same: DRAWN_PROGRAMS choices of PROGRAMS, and of each DRAWN_SETTINGS of SETTINGS."""
    chance = random.Random(seed)
    for program in chance.sample(list(itertools.product(*PROGRAMS.values())), DRAWN_PROGRAMS):
        for setting in chance.sample(list(itertools.product(*SETTINGS.values())), DRAWN_SETTINGS):
            yield dict(zip((*PROGRAMS, *SETTINGS), (*program, *setting), strict=True))


def get_config() -> ConfigDict:
    c = imbalanced.get_config()
    c.recipe = 'readings'
    c.trials = tuple(draw())
    c.split.scheme = 'kfold'
    c.split.val_folds = 10
    return c
