"""The published networks are those of their papers: parameters, maps, and logits on the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bhcnet_jax import models
from bhcnet_jax.configs import base
from bhcnet_jax.errors import UserError
from bhcnet_jax.models import alexnet, layers
from bhcnet_jax.plan import trial
from lanes import random_variables, shapes, tiny_config

pytestmark = pytest.mark.slow

CLASSES = 1000


def config_of(name, **settings):
    config = base.get_config()
    config.model.name = name
    config.model.update(settings)
    return config


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def for_grey(total, kernel, channels, features):
    """Parameters of a network for 3 channels and 1000 classes, less those that 1 channel and 1 logit do without.

    kernel, channels: of the first convolution. features: before the classifier.
    """
    return total - 2 * kernel**2 * channels - (CLASSES - 1) * (features + 1)


# torchvision's GoogLeNet has 3x3 kernels where the paper has 5x5 ones, [channels before and of them] in each module.
FIVES = [(16, 32), (32, 96), (16, 48), (24, 64), (24, 64), (32, 64), (32, 128), (32, 128), (48, 128)]

PARAMETERS = [  # as published by torchvision 0.29 and timm 1.0, the weights of all layers at 224 pixels a side
    ('alexnet', 'none', for_grey(61_100_840, 11, 64, 4096)),
    ('vgg11', 'none', for_grey(132_863_336, 3, 64, 4096)),
    ('vgg16', 'none', for_grey(138_357_544, 3, 64, 4096)),
    ('vgg11', 'batch', for_grey(132_868_840, 3, 64, 4096)),
    ('googlenet', 'batch', for_grey(6_624_904, 7, 64, 1024) + sum(16 * before * five for before, five in FIVES)),
    ('resnet18', 'batch', for_grey(11_689_512, 7, 64, 512)),
    ('resnet50', 'batch', for_grey(25_557_032, 7, 64, 2048)),
    ('efficientnet_lite0', 'batch', for_grey(4_652_008, 3, 32, 1280)),
]


@pytest.mark.parametrize(('name', 'norm', 'expected'), PARAMETERS)
def test_a_network_has_the_parameters_of_the_published_one(name, norm, expected):
    assert count(shapes(config_of(name, norm=norm), 224)['params']) == expected


def test_lenet5_has_the_parameters_of_1998_and_those_of_the_connections_that_it_left_out():
    c1, s2, c3, s4, c5, f6 = 156, 12, 1516, 32, 48_120, 10_164  # LeCun et al., 1998, section II.B
    assert count(shapes(config_of('lenet5'), 128)['params']) == c1 + s2 + c3 + 900 + s4 + c5 + f6 + 85


@pytest.mark.parametrize(('name', 'side', 'channels'), [
    ('lenet5', 10, 16), ('alexnet', 13, 256), ('vgg11', 14, 512), ('vgg16', 14, 512), ('googlenet', 7, 1024),
    ('resnet18', 7, 512), ('resnet50', 7, 2048), ('efficientnet_lite0', 7, 1280),
])  # fmt: skip
def test_the_last_maps_of_224_pixels_have_the_published_shape(name, side, channels):
    config = config_of(name)
    images = jax.ShapeDtypeStruct((2, 224, 224, 1), jnp.float32)
    found = jax.eval_shape(lambda v, x: models.apply_with_maps(config.model, v, x), shapes(config, 224), images)
    assert [each.shape for each in found] == [(2,), (2, side, side, channels)]


def test_a_width_scales_all_channels_and_units():
    whole, half = (count(shapes(config_of('vgg11', width=width), 64)['params']) for width in (1.0, 0.5))
    assert 0.24 < half / whole < 0.26
    assert count(shapes(config_of('vgg11', width=0.01), 64)['params']) < 10**5


def test_lenet5_sees_the_mean_of_the_area_under_each_pixel():
    x = jax.random.uniform(jax.random.key(0), (2, 64, 96, 1))
    np.testing.assert_allclose(layers.shrink(x, 32), x.reshape(2, 32, 2, 32, 3, 1).mean((2, 4)), atol=1e-6)
    ramp = jnp.broadcast_to(jnp.arange(48.0)[:, None, None], (1, 48, 32, 1))  # each pixel covers one and a half
    np.testing.assert_allclose(layers.shrink(ramp, 32)[0, :3, 0, 0], [1 / 3, 5 / 3, 10 / 3], rtol=1e-5)


def test_local_responses_are_divided_by_what_their_neighbours_say():
    x = np.random.default_rng(0).normal(0, 30, (2, 3, 3, 7)).astype(np.float32)
    expected = np.zeros_like(x)
    for channel in range(7):
        near = x[..., max(channel - 2, 0) : channel + 3]
        expected[..., channel] = x[..., channel] / (2 + 1e-4 * (near**2).sum(-1)) ** 0.75
    np.testing.assert_allclose(alexnet.local_response(jnp.asarray(x)), expected, rtol=1e-5)


def test_local_responses_are_an_option_of_alexnet():
    configs = [tiny_config('alexnet', model__lrn=lrn) for lrn in (False, True)]
    variables, x = random_variables(configs[0]), images_of(configs[0])
    plain, with_them = (jax.jit(models.create(config.model).apply)(variables, x) for config in configs)
    assert not np.allclose(plain, with_them, rtol=1e-2)


@pytest.mark.parametrize(('name', 'smallest'), [('alexnet', 63), ('vgg16', 32), ('googlenet', 31), ('resnet18', 8)])
def test_an_image_that_leaves_no_maps_is_refused(name, smallest):
    config = config_of(name)
    config.dataset.image_size = smallest
    trial.check(config)
    found = models.apply_with_maps
    variables, images = shapes(config, smallest), jax.ShapeDtypeStruct((1, smallest, smallest, 1), jnp.float32)
    assert 0 not in jax.eval_shape(lambda v, x: found(config.model, v, x), variables, images)[1].shape
    if smallest > 8:
        config.dataset.image_size = smallest - 1
        with pytest.raises(UserError, match=rf'image_size is {smallest - 1}; {name} needs at least {smallest}\.$'):
            trial.check(config)


def test_a_mask_head_is_refused_where_there_is_none():
    with pytest.raises(UserError, match=r'^model\.mask_head is True, but vgg11 has no mask head'):
        trial.check(config_of('vgg11', mask_head=True))


ONE_OF_EACH = ('lenet5', 'alexnet', 'vgg11', 'googlenet', 'resnet18', 'efficientnet_lite0')


def images_of(config, count=2):
    size = config.dataset.image_size
    return jax.random.uniform(jax.random.key(0), (count, size, size, 1))


@pytest.mark.parametrize('name', ONE_OF_EACH)
def test_reaching_the_maps_changes_no_logit_and_their_gradient_is_not_zero(name):
    config = tiny_config(name, model__norm='batch')
    variables, x = random_variables(config), images_of(config)

    @jax.jit
    def both(x):
        logits, maps = models.apply_with_maps(config.model, variables, x)
        gradient = jax.grad(lambda offset: models.apply_with_maps(config.model, variables, x, offset)[0].sum())
        return models.create(config.model).apply(variables, x), logits, gradient(jnp.zeros_like(maps))

    expected, logits, gradient = both(x)
    np.testing.assert_allclose(logits, expected, rtol=1e-5)
    assert np.ptp(logits) > 0 and gradient.any()


@pytest.mark.parametrize(('name', 'norm'), list(zip(ONE_OF_EACH, ('none', 'batch', 'group') * 2, strict=True)))
def test_every_norm_and_bfloat16_keep_float32_weights_and_logits(name, norm):
    config = tiny_config(name, model__norm=norm, model__dtype='bfloat16', model__hidden_units=3)
    with jax.numpy_dtype_promotion('standard'):  # flax computes moments of groups in float32
        variables, x = shapes(config, config.dataset.image_size), images_of(config)
        logits, maps = jax.eval_shape(lambda v, x: models.apply_with_maps(config.model, v, x), variables, x)
    assert (logits.shape, logits.dtype, maps.dtype) == ((2,), jnp.float32, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    assert ('batch_stats' in variables) == (norm == 'batch')
    assert count(variables['params']['head']['logit']) == 3 + 1


@pytest.mark.parametrize(('name', 'backend'), [*((name, 'cpu') for name in ONE_OF_EACH), ('resnet18', 'gpu')])
def test_lanes_need_no_grouped_convolution_and_no_scatter(name, backend, monkeypatch):
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    config = tiny_config(name, model__norm='batch')
    model, x = models.create(config.model), images_of(config)
    variables = shapes(config, config.dataset.image_size)
    together = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((3, *leaf.shape), leaf.dtype), variables)

    def loss(params, rest):
        values, keys = {'model.dropout': jnp.float32(0.5)}, jax.random.split(jax.random.key(0), 2)
        mask = layers.Mask(jnp.ones(2))
        logits, _ = model.apply({**rest, 'params': params}, x, values, keys, mask, mutable=['batch_stats'])
        return logits.sum()

    params = together.pop('params')
    text = jax.jit(jax.vmap(jax.grad(loss))).lower(params, together).as_text()
    assert 'dot_general' in text
    assert 'convolution' not in text and 'scatter' not in text


def test_each_dropout_of_a_network_draws_by_itself(monkeypatch):
    config, used = tiny_config('vgg11'), []
    dropout = layers.dropout
    monkeypatch.setattr(layers, 'dropout', lambda x, rate, keys: used.append(keys) or dropout(x, rate, keys))
    variables, x = random_variables(config), images_of(config)

    @jax.jit
    def keys_of(keys):
        values, mask = {'model.dropout': jnp.float32(0.5)}, layers.Mask(jnp.ones(2))
        models.create(config.model).apply(variables, x, values, keys, mask)
        return [jax.random.key_data(each) for each in used]

    found = np.concatenate(keys_of(jax.random.split(jax.random.key(1), 2)))
    assert len(np.unique(found, axis=0)) == len(found) == 4  # of two layers and two images
