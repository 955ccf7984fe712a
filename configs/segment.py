"""Outlines bleedings: a network that learns on drawn heads alone where blood is, with finer maps than `pretrained`.

    python -m bhcnet_jax.main --config=segment
    python -m bhcnet_jax.difficulty runs/segment-DATA

The second command reports the Dice coefficient on held-out drawn heads, by kind of bleeding; `predict` draws outlines
on real images. It is the paper's future work: "image segmentation ... will elucidate the sites of internal bleeding".
"""

from ml_collections import ConfigDict

from bhcnet_jax.configs import pretrained


def get_config() -> ConfigDict:
    c = pretrained.get_config()
    c.recipe = 'segment'
    c.phases = ('phantom',)
    c.dataset.image_size = 128
    c.model.filters = (32, 64, 128)  # maps of 32 x 32
    c.model.convs = 3
    c.phantom.mask = 3.0
    return c
