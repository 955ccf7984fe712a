"""A 3-D CNN and a hybrid 3D/2D network, as the paper's table 5 names them, on drawn patients: PHANTOM throughout.

    python -m bhcnet_jax.main --config=volumes
    python -m bhcnet_jax.predict runs/volumes-PHANTOM FOLDER_WITH_SERIES --out=predictions --trials='RECIPE_ID fold=0'

An image is a whole patient of 24 slices, drawn as it is needed. Two folds of one training score all 200 held-out drawn
patients once.
"""

from ml_collections import ConfigDict

from bhcnet_jax.configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.recipe = 'volumes'
    c.sweep = 'split.fold=0:2'
    c.trials = ({'model.name': 'cnn3d'}, {'model.name': 'mask_roi'})
    c.phases = ('phantom',)
    c.batch_size = 16
    c.dataset.update(name='phantom', image_size=64, slices=24)
    c.split.update(scheme='kfold', folds=2)
    c.phantom.update(epochs=12, samples=2000, mask=1.0)
    c.model.update(name='cnn3d', filters=(8, 16, 32), norm='group', pooling='max', dropout=0.0, mask_head=True)
    c.augment.policy = 'none'
    return c
