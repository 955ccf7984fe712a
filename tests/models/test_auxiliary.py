"""GoogLeNet's auxiliary classifiers: they teach the trunk in training, and nothing else knows of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bhcnet_jax import models
from bhcnet_jax.models import googlenet, layers
from bhcnet_jax.models.family import AUXILIARY
from bhcnet_jax.training import steps
from lanes import random_variables, shapes, small_images, small_lanes, tiny_config

pytestmark = pytest.mark.slow

PLAIN, WITH_THEM = (tiny_config('googlenet', model__auxiliary=has_them) for has_them in (False, True))
BOTH = ('auxiliary4a', 'auxiliary4d')


def without(variables):
    """The variables of the same network without auxiliary classifiers."""
    params = variables['params']
    trunk = {name: part for name, part in params['trunk'].items() if name not in BOTH}
    return {'params': {**params, 'trunk': trunk}}


def images(count=2):
    size = PLAIN.dataset.image_size
    return jax.random.uniform(jax.random.key(0), (count, size, size, 1))


def test_they_have_the_parameters_of_the_published_ones():
    config = tiny_config('googlenet', model__auxiliary=True, model__width=1.0, model__norm='batch')
    params = shapes(config, 224)['params']['trunk']
    found = sum(leaf.size for name in BOTH for leaf in jax.tree.leaves(params[name]))
    assert found == 13_004_888 - 6_624_904 - 2 * 999 * 1025  # torchvision 0.29, with and without, for 1000 classes


def test_a_classifier_averages_the_maps_to_4x4_pixels():
    classifier = googlenet.AuxiliaryClassifier(0.05, 'none', jnp.float32)
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 5))
    params = classifier.init(jax.random.key(2), x, None, None)['params']
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # biases, too, are not 0
    found = classifier.apply({'params': params}, x, layers.Mask(jnp.ones(2)), None)
    pixels = np.asarray(x, np.float64).reshape(2, 4, 2, 4, 2, 5).mean((2, 4))
    maps = np.maximum(pixels @ params['conv']['kernel'][0, 0] + params['conv']['bias'], 0).reshape(2, -1)
    units = np.maximum(maps @ params['dense']['kernel'] + params['dense']['bias'], 0)
    expected = units @ params['head']['logit']['kernel'] + params['head']['logit']['bias']
    np.testing.assert_allclose(found, expected[:, 0], rtol=1e-4)


def test_evaluation_is_that_of_the_network_without_them():
    variables, x = random_variables(WITH_THEM), images()
    programs = [
        jax.jit(models.create(config.model).apply).lower(values, x).compile()
        for config, values in ((PLAIN, without(variables)), (WITH_THEM, variables))
    ]
    flops = [program.cost_analysis()['flops'] for program in programs]
    plain, with_them = programs[0](without(variables), x), programs[1](variables, x)
    np.testing.assert_array_equal(plain, with_them)
    assert np.ptp(plain) > 0 and flops[0] == flops[1]
    assert models.operations(PLAIN.model, 32) == models.operations(WITH_THEM.model, 32)


def test_the_loss_adds_three_tenths_of_theirs_and_the_sums_do_not_know_them():
    config = tiny_config('googlenet', model__auxiliary=True, model__dropout=0.0)
    variables = random_variables(config)
    lane = jax.tree.map(lambda leaf: leaf[0], small_lanes(config))
    labels = small_images(size=32)[1]
    batch = steps.Batch(images(4)[..., 0], jnp.arange(4), jnp.array([1.0, 1.0, 1.0, 0.0]))

    def loss_of(config, variables):
        return jax.jit(lambda params: steps.loss(config, params, {}, lane, labels, batch))(variables['params'])

    def auxiliary_of(params):
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
            steps.stream(lane.seed, 'dropout', lane.phase, lane.epoch), batch.positions
        )
        _, found = models.create(config.model).apply(
            {'params': params}, batch.inputs[..., None], lane.values, keys, batch.mask, mutable=[AUXILIARY]
        )
        return found[AUXILIARY]

    total, (sums, _) = loss_of(config, variables)
    plain_total, (plain_sums, _) = loss_of(
        tiny_config('googlenet', model__dropout=0.0), without(variables)
    )
    logits = np.array(jax.tree.leaves(jax.jit(auxiliary_of)(variables['params'])), np.float64)
    assert logits.shape == (2, 4)
    target = labels[np.asarray(lane.sources)[:4]]
    theirs = np.log1p(np.exp(np.where(target == 1, -logits, logits)))[:, :3].sum()
    np.testing.assert_allclose(total, plain_total + 0.3 * theirs, rtol=1e-5)
    np.testing.assert_allclose(plain_total, plain_sums.loss, rtol=1e-6)
    np.testing.assert_allclose(sums.loss, plain_sums.loss, rtol=1e-5)


def test_each_of_the_three_dropouts_draws_by_itself(monkeypatch):
    used, dropout = [], layers.dropout
    monkeypatch.setattr(layers, 'dropout', lambda x, rate, keys: used.append((rate, keys)) or dropout(x, rate, keys))
    variables, x = random_variables(WITH_THEM), images()

    @jax.jit
    def draws(keys):
        values = {'model.dropout': jnp.float32(0.5)}
        models.create(WITH_THEM.model).apply(variables, x, values, keys, jnp.ones(2), mutable=[AUXILIARY])
        return [(rate, jax.random.key_data(keys)) for rate, keys in used]

    rates, keys = zip(*draws(jax.random.split(jax.random.key(1), 2)), strict=True)
    np.testing.assert_allclose(rates, [0.7, 0.7, 0.5])
    assert len(np.unique(np.concatenate(keys), axis=0)) == 6  # of three layers and two images
