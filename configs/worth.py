"""What drawn heads are worth in patients: `pretrained` with fewer of both, at 64 pixels, twelve epochs, for two cores.

    python -m bhcnet_jax.main --config=worth --sweep='split.fold=0:10'

The first trials go from no drawn head to 100 000, before all training images of a fold and without any; the rest leave
a half to an eighteenth of those images, with and without 100 000 heads before them.
"""

from ml_collections import ConfigDict

from bhcnet_jax.configs import pretrained

HEADS = (1_000, 10_000, 100_000)  # over all epochs
TRAIN_FOLDS = (2, 4, 9, 18)
EPOCHS = 10  # of drawn heads, new ones in each

NONE = {'phases': ('balanced',)}


def after(heads: int) -> dict[str, object]:
    """Settings for so many heads before the real images."""
    return {'phases': ('phantom', 'balanced'), 'phantom.samples': heads // EPOCHS}


def get_config() -> ConfigDict:
    c = pretrained.get_config()
    c.recipe = 'worth'
    c.trials = (
        *(after(heads) | {'phases': ('phantom',)} for heads in HEADS),
        NONE,
        *map(after, reversed(HEADS)),
        *(start | {'split.train_folds': folds} for folds in TRAIN_FOLDS for start in (NONE, after(HEADS[-1]))),
    )
    c.dataset.image_size = 64
    c.split.scheme = 'kfold'
    c.phantom.epochs = EPOCHS
    c.balanced.epochs = 12
    return c
