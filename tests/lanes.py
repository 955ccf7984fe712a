"""Small configs, images and lanes for tests of the training core."""

import jax
import jax.numpy as jnp
import numpy as np

from bhcnet_jax import models
from bhcnet_jax.configs import base
from bhcnet_jax.plan import table
from bhcnet_jax.training import optim, steps

LARGER = {'alexnet': 64, 'vgg11': 32, 'vgg16': 32, 'googlenet': 32}  # pixels a side that these need, more or less
BLOCKS = ('cnn', 'cnn_lstm', 'cnn_gru')  # the paper's families, which compile in a second


def small_config(**overrides):
    """A config of 16x16 images that trains an epoch in milliseconds. overrides: dotted keys, '.' as '__'."""
    config = base.get_config()
    config.dataset.image_size = 16
    config.model.filters = (4, 6)
    config.model.recurrent_units = 8
    config.batch_size = 8
    config.augment.samples = 20
    config.engine.checkpoint_seconds = 0.0  # after every epoch, so that a run that is killed goes on in mid-phase
    for key, value in overrides.items():
        config.update_from_flattened_dict({key.replace('__', '.'): value})
    return config


def tiny_config(name, **overrides):
    """A `small_config` of any family, with few channels and, where it must, larger images."""
    return small_config(**{
        'model__name': name, 'model__width': 0.05, 'dataset__image_size': LARGER.get(name, 16), **overrides,
    })  # fmt: skip


def shapes(config, size):
    """Of the variables of a model; nothing is computed."""
    images = jax.ShapeDtypeStruct((1, *models.input_shape(size, config.dataset.slices)), jnp.float32)
    return jax.eval_shape(lambda x: models.create(config.model).init(jax.random.key(0), x), images)


def random_variables(config):
    """Drawn without a program: to compile the drawing of many kernels takes longer than the network itself."""
    generator = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        spread = {'kernel': np.sqrt(2 / np.prod(leaf.shape[:-1])), 'bias': 0.1, 'mean': 0.1}.get(name, 0.0)
        return np.asarray(generator.normal(name in ('scale', 'var'), spread, leaf.shape), np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes(config, config.dataset.image_size))


def small_images(count=12, size=16):
    """uint8 images [N, H, W] with a bright square on every second one, and labels int32 [N]."""
    images = np.random.default_rng(0).integers(0, 100, (count, size, size), dtype=np.uint8)
    labels = (np.arange(count) % 2).astype(np.int32)
    images[labels == 1, 4:12, 4:12] = 220
    return images, labels


def small_lanes(config, seeds=(0,), epoch=0):
    """A lane for each seed, all else equal."""
    count = len(seeds)
    rates = optim.learning_rates(config.optimizer, 4, steps.steps_per_epoch(config))[epoch]
    return steps.Lane(
        seed=np.array(seeds, np.int32),
        phase=np.zeros(count, np.int32),
        epoch=np.full(count, epoch, np.int32),
        layer=np.zeros(count, np.int32),
        begins=np.zeros(count, bool),
        sources=np.tile(np.resize(np.arange(8, dtype=np.int32), config.augment.samples), (count, 1)),
        class_weights=np.ones((count, 2), np.float32),
        learning_rates=np.tile(rates, (count, 1)),
        values={name: np.full(count, value, np.float32) for name, value in table.traced(config).items()},
        scored=np.tile(np.arange(8, 12, dtype=np.int32), (count, 1)),
    )


def one(lanes, index=0):
    """One lane of several, without the leading axis."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[index]), lanes)
