"""`tuned`, first trained to find blood on drawn heads, then on the real images.

    python -m bhcnet_jax.main --config=pretrained

All folds of a seed share the drawn heads, so ten folds see 240 000 of them and ten times 24 000 augmented images.
"""

from ml_collections import ConfigDict

from bhcnet_jax.configs import tuned


def get_config() -> ConfigDict:
    c = tuned.get_config()
    c.recipe = 'pretrained'
    c.phases = ('phantom', 'balanced')
    c.dataset.image_size = 96
    c.model.mask_head = True
    c.phantom.samples = 20_000
    c.phantom.mask = 1.0
    c.augment.policy = 'affine+intensity'
    c.augment.test_flip = True
    c.optimizer.label_smoothing = 0.1
    return c
