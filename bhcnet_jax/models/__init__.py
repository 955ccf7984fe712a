"""The registry of models: a name in `config.model.name` to a Flax module, and what it consists of."""

from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from bhcnet_jax.models.cnn import CNN
from bhcnet_jax.models.recurrent import CELLS, CNNRecurrent

NAMES = ('cnn', *(f'cnn_{cell}' for cell in CELLS))
NORMS = ('none', 'batch', 'group')
POOLINGS = ('mean', 'max', 'mean_max')


class LayerRow(NamedTuple):
    """One layer of a model: its path, output shape without the batch axis, and number of parameters."""

    name: str
    shape: tuple[int, ...]
    parameters: int


def create(config: ConfigDict) -> nn.Module:
    """The module for `config.model`. ValueError if its name is not one of NAMES."""
    shared = {
        'filters': tuple(config.filters),
        'hidden_units': config.hidden_units,
        'convs': config.convs,
        'norm': config.norm,
        'dtype': jnp.dtype(config.dtype),
    }
    if config.name == 'cnn':
        return CNN(pooling=config.pooling, **shared)
    cell = config.name.removeprefix('cnn_')
    if cell in CELLS:
        return CNNRecurrent(cell=cell, recurrent_units=config.recurrent_units, **shared)
    raise ValueError(f'model.name is {config.name!r}; expected one of {", ".join(NAMES)}.')


def describe(model: nn.Module, image_size: int) -> list[LayerRow]:
    """The layers that hold parameters, in order of computation; shapes only, nothing is computed."""
    shapes = {}

    def record(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if context.method_name == '__call__':
            shapes[context.module.path] = jax.tree.leaves(output)[-1].shape[1:]
        return output

    images = jax.ShapeDtypeStruct((1, image_size, image_size, 1), jnp.float32)
    with nn.intercept_methods(record):
        variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)
    parameters = Counter()
    for path, leaf in flatten_dict(variables['params']).items():
        parameters[path[:1] if path[0] in CELLS else path[:-1]] += leaf.size  # a cell's gates are one layer
    return [LayerRow('/'.join(path), shape, parameters[path]) for path, shape in shapes.items() if path in parameters]
