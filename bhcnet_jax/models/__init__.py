"""The registry of models: a name in `config.model.name` to its family, and what a model consists of."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from bhcnet_jax.models import (
    alexnet,
    autoencoder,
    cnn,
    cnn3d,
    efficientnet,
    googlenet,
    layers,
    lenet,
    mask_roi,
    recurrent,
    resnet,
    vgg,
    weights,
)
from bhcnet_jax.models.family import Family

FAMILIES: dict[str, Family] = {
    'cnn': cnn.FAMILY,
    'cnn_lstm': recurrent.LSTM,
    'cnn_gru': recurrent.GRU,
    'lenet5': lenet.FAMILY,
    'alexnet': alexnet.FAMILY,
    'vgg11': vgg.VGG11,
    'vgg16': vgg.VGG16,
    'googlenet': googlenet.FAMILY,
    'resnet18': resnet.RESNET18,
    'resnet50': resnet.RESNET50,
    'efficientnet_lite0': efficientnet.LITE0,
    'cnn3d': cnn3d.FAMILY,
    'mask_roi': mask_roi.FAMILY,
    'autoencoder': autoencoder.FAMILY,
}


class LayerRow(NamedTuple):
    """One layer of a model: its path, output shape without the batch axis, and number of parameters."""

    name: str
    shape: tuple[int, ...]
    parameters: int


def create(config: ConfigDict) -> nn.Module:
    """The module for `config.model`. ValueError if no family has its name."""
    if config.name not in FAMILIES:
        raise ValueError(f'model.name is {config.name!r}; expected one of {", ".join(FAMILIES)}.')
    return FAMILIES[config.name].create(config)


def input_shape(image_size: int, slices: int) -> tuple[int, ...]:
    """Of what a model sees of an image, or of a volume of several slices, without the batch axis."""
    return (*((slices,) if slices > 1 else ()), image_size, image_size, 1)


def check_weights(config: Mapping[str, Any]) -> None:
    """UserError if the file with the weights that `config.model` starts from is missing or another; see `weights`."""
    weights.check(config, has_weights=any(key in weights.KEYS for key in FAMILIES[config['name']].keys))


def initial(config: ConfigDict, variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """The variables that lanes start from: those of the file that `config.model` names, if any, and their random ones.

    variables: as of `weights.read`, which says what it raises.
    """
    return weights.read(config, variables) if config.weights else variables


def describe(config: ConfigDict, image_size: int, slices: int = 1) -> list[LayerRow]:
    """The layers of `config.model` that hold parameters, in order of computation; nothing is computed but shapes."""
    model, composite = create(config), FAMILIES[config.name].composite
    shapes = {}

    def record(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if context.method_name == '__call__':
            shapes[context.module.path] = jax.tree.leaves(output)[-1].shape[1:]
        return output

    with nn.intercept_methods(record):
        variables = _variables(model, image_size, slices)
    parameters = Counter()
    for path, leaf in flatten_dict(variables['params']).items():
        layer = next((whole for whole in composite if path[: len(whole)] == whole), path[:-1])
        parameters[layer] += leaf.size
    return [LayerRow('/'.join(path), shape, parameters[path]) for path, shape in shapes.items() if path in parameters]


def operations(config: ConfigDict, image_size: int, slices: int = 1) -> int:
    """Floating-point operations of one image in evaluation, counted as published: two for each weight at each place.

    Biases, normalisation, activations and pooling are left out, and however a convolution is really computed.
    """
    count = 0

    def record(call, args, kwargs, context):
        nonlocal count
        output = call(*args, **kwargs)
        if context.method_name == '__call__':
            count += 2 * _products(context.module, args, output)
        return output

    model = create(config)
    variables, images = _variables(model, image_size, slices), _images(image_size, slices)
    with nn.intercept_methods(record):
        jax.eval_shape(model.apply, variables, images)
    return count


def _products(module: nn.Module, args: tuple[Any, ...], output: Any) -> int:
    """Multiplications by a module's own kernels for one image."""
    if isinstance(module, recurrent.Recurrent):  # its kernels are its gates', all used in each step
        kernels = flatten_dict(module.variables['params'])
        return args[0].shape[1] * sum(leaf.size for path, leaf in kernels.items() if path[-1] == 'kernel')
    if isinstance(module, recurrent.Weights) or not module.has_variable('params', 'kernel'):
        return 0
    return math.prod(output.shape[:-1]) * module.variables['params']['kernel'].size


def apply_with_maps(
    config: ConfigDict, variables: Any, x: jax.Array, offset: jax.Array | float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Logits of `config.model` in evaluation, float32 [B], and the feature maps after its last convolution.

    offset: [B, h, w, F] or 0, is added to the maps, of the same shape; the gradient of the logits with respect to it is
    that with respect to the maps. The family needs `Family.maps`.
    """
    path, maps = FAMILIES[config.name].maps, []

    def add(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if context.module.path == path and context.method_name == '__call__':
            maps.append(output + jnp.asarray(offset, output.dtype))
            return maps[-1]
        return output

    with nn.intercept_methods(add):
        return create(config).apply(variables, x), maps[0]


def features(config: ConfigDict, variables: Any, x: jax.Array) -> jax.Array:
    """What the head of `config.model` sees in evaluation, [B, D]; x: float [B, H, W, 1] in [0, 1]."""
    seen = []

    def keep(call, args, kwargs, context):
        if context.module.path == ('head',) and context.method_name == '__call__':
            seen.append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(keep):
        create(config).apply(variables, x)
    return seen[0]


def mask_logits(config: ConfigDict, variables: Any, x: jax.Array) -> jax.Array:
    """What the mask head of `config.model` says in evaluation, float32 [B, h, w]; the model needs `model.mask_head`."""
    _, changed = create(config).apply(variables, x, mutable=[layers.MASKS])
    return jax.tree.leaves(changed)[0]


def _variables(model: nn.Module, image_size: int, slices: int) -> Any:
    """Shapes and dtypes of what a model holds."""
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x), _images(image_size, slices))


def _images(image_size: int, slices: int) -> jax.ShapeDtypeStruct:
    """Those of a batch of one."""
    return jax.ShapeDtypeStruct((1, *input_shape(image_size, slices)), jnp.float32)


def freeze_mask_head(updates: Any) -> Any:
    """Updates of a model's weights, with zeros for its mask head."""

    def freeze(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return jnp.zeros_like(leaf) if layers.MASK_HEAD in (entry.key for entry in path) else leaf

    return jax.tree_util.tree_map_with_path(freeze, updates)


def at_once(config: ConfigDict) -> int:
    """`Family.at_once` of `config.model`."""
    return FAMILIES[config.name].at_once


def greedy(config: Mapping[str, Any]) -> tuple[str, ...]:
    """`Family.greedy` of a section `model`."""
    return FAMILIES[config['name']].greedy


def freeze_others(config: ConfigDict, updates: Mapping[str, Any], layer: jax.Array) -> dict[str, Any]:
    """Updates of a model's weights, with zeros for all but a layer.

    layer: int32, 1 for the first of `greedy`; 0: all learn.
    """
    names = ('', *greedy(config))  # the head has no number but that of all

    def freeze(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        number = names.index(path[0].key) if path[0].key in names else 0
        return jnp.where((layer == 0) | (layer == number), leaf, jnp.zeros_like(leaf))

    return jax.tree_util.tree_map_with_path(freeze, updates)


def first_convolution(config: ConfigDict, params: Any) -> Any:
    """Of the weights of `config.model` those of the first convolution, 'kernel' and maybe 'bias'; None without one."""
    path = FAMILIES[config.name].first_convolution
    for name in path:
        params = params[name]
    return params if path else None
