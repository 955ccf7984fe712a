"""Heat maps are what their papers define, and lie where a network looks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from ml_collections import FrozenConfigDict

import bhcnet_jax
from bhcnet_jax import models
from bhcnet_jax.errors import UserError
from bhcnet_jax.inference import saliency
from bhcnet_jax.models.family import Family
from bhcnet_jax.training import steps
from lanes import BLOCKS, small_config, small_images

pytestmark = pytest.mark.slow

HEAT_MAPS = [how for how in saliency.METHODS if how != 'mask']  # the mask head's are in test_segment.py
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 16, 16), np.uint8)


def frozen(**overrides):
    return FrozenConfigDict(small_config(**overrides))


def random_networks(config, count=1):
    """Variables of networks that are not trained, with a leading axis."""
    blank = jnp.zeros((1, 16, 16, 1))
    made = [models.create(config.model).init(jax.random.key(seed), blank) for seed in range(count)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)


def by_hand(logit, left=1.0):
    """Variables of a network of two feature maps: the image, and the image moved to the right. Its logit weighs them.

    logit: weights [2]. left: of the pixel to the left.
    """
    kernel = np.zeros((3, 3, 1, 2), np.float32)
    kernel[1, 1, 0, 0], kernel[1, 0, 0, 1] = 1, left
    weights = {'kernel': np.array(logit, np.float32)[:, None], 'bias': np.zeros(1, np.float32)}
    conv = {'kernel': kernel, 'bias': np.zeros(2, np.float32)}
    return {'params': {'trunk': {'conv1': conv}, 'head': {'logit': weights}}}


def stacked(*networks):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *networks)


def normalised(maps):
    positive = np.maximum(maps, 0)
    return positive / positive.max(axis=(1, 2), keepdims=True)


@pytest.mark.parametrize('how', saliency.OF_MAPS)
@pytest.mark.parametrize('test_flip', [False, True])
def test_the_map_of_a_network_made_by_hand_is_the_weighted_sum_of_its_feature_maps(test_flip, how):
    config = frozen(model__filters=(2,), augment__test_flip=test_flip)
    found = saliency.explain(config, stacked(by_hand((2, -1))), IMAGES, how)
    image = IMAGES / 255

    def weighted(image):
        moved = np.pad(image, ((0, 0), (0, 0), (1, 0)))[:, :, :-1]
        return 2 * image - moved

    mirrored = weighted(image[:, :, ::-1])[:, :, ::-1]
    expected = (weighted(image) + mirrored) / 2 if test_flip else weighted(image)
    np.testing.assert_allclose(found, normalised(expected), atol=1e-6)


@pytest.mark.parametrize('pooling', ['mean', 'max', 'mean_max'])
def test_hires_cam_adds_up_to_the_logit_before_a_linear_head(pooling):
    config = frozen(model__pooling=pooling)
    network = jax.tree.map(lambda leaf: leaf[0], random_networks(config))
    network['params']['head']['logit']['bias'] += 3.0
    found = saliency.METHODS['hires_cam'](config, network, jnp.asarray(IMAGES[:4]))
    logits = steps.evaluate(config, network, jnp.arange(4), jnp.asarray(IMAGES))
    np.testing.assert_allclose(found.sum(axis=(1, 2)), logits - 3, atol=1e-5)


def test_under_a_maximum_grad_cam_marks_all_bright_places_and_hires_cam_the_one_that_counted():
    config, image = frozen(model__filters=(2,), model__pooling='max'), np.zeros((1, 16, 16), np.uint8)
    image[0, 2, 3], image[0, 9, 9] = 200, 190
    found = {how: saliency.explain(config, stacked(by_hand((2, 0))), image, how)[0] for how in saliency.OF_MAPS}
    assert np.argwhere(found['hires_cam']).tolist() == [[2, 3]]
    assert np.argwhere(found['grad_cam']).tolist() == [[2, 3], [9, 9]]


def test_integrated_gradients_of_a_linear_network_are_its_terms():
    # Each pixel counts twice by itself, and thrice as the left neighbour of another; the last column has none.
    config = frozen(model__filters=(2,))
    found = saliency.explain(config, stacked(by_hand((2, 3))), IMAGES, 'integrated_gradients')
    times = np.where(np.arange(16) < 15, 5, 2)
    np.testing.assert_allclose(found, normalised(IMAGES / 255 * times), atol=1e-6)


@pytest.mark.parametrize('name', [*BLOCKS, 'lenet5'])
def test_integrated_gradients_add_up_to_the_difference_of_the_logit_from_a_black_image(name):
    config = frozen(model__name=name)
    network = jax.tree.map(lambda leaf: leaf[0], random_networks(config))
    found = saliency.METHODS['integrated_gradients'](config, network, jnp.asarray(IMAGES))
    logits = steps.evaluate(config, network, jnp.arange(6), jnp.asarray(np.pad(IMAGES, ((0, 1), (0, 0), (0, 0)))))
    np.testing.assert_allclose(found.sum(axis=(1, 2)), logits[:5] - logits[5], rtol=0.02, atol=0.002)


def test_occlusion_is_what_a_loop_over_squares_finds(crossed, heads):
    model = bhcnet_jax.load(crossed)
    images = np.stack([model.preprocess(heads / f'{number:02}.png') for number in range(4)])
    sums, counts = np.zeros(images.shape), np.zeros(images.shape)
    for top in range(15):
        for left in range(15):  # squares of 2 x 2 pixels, which slide by one
            covered = images.copy()
            for each in covered:
                each[top : top + 2, left : left + 2] = round(each.mean())
            counts[:, top : top + 2, left : left + 2] += 1
            fall = model.logits(images) - model.logits(covered)
            sums[:, top : top + 2, left : left + 2] += fall[:, None, None]
    np.testing.assert_allclose(model.explain(images, 'occlusion'), normalised(sums / counts), atol=1e-3)


@pytest.mark.parametrize('size', [1, 3, 16, 50, 64, 127])
def test_squares_cover_every_pixel_and_stay_inside(size):
    covers = np.asarray(saliency._covers(size))
    assert covers.any(axis=0).all() and len({*covers.sum(axis=1)}) == 1


def with_squares(count, seed):
    """Noise uint8 [N, 16, 16], labels float32 [N], and where the squares of 4 x 4 pixels are that label 1 has, bool."""
    generator = np.random.default_rng(seed)
    images, squares = generator.integers(0, 120, (count, 16, 16), np.uint8), np.zeros((count, 16, 16), bool)
    for each, (top, left) in zip(squares[1::2], generator.integers(0, 13, (count // 2, 2)), strict=True):
        each[top : top + 4, left : left + 4] = True
    images[squares] += 100
    return images, (np.arange(count) % 2).astype(np.float32), squares


@pytest.fixture(scope='module')
def finder():
    """The config and the variables of a network that tells whether there is a square."""
    config = frozen(model__filters=(4, 8), model__pooling='mean_max')
    images, labels, _ = with_squares(64, 0)
    inputs, adam = jnp.asarray(images, jnp.float32)[..., None] / 255, optax.adam(0.02)
    model = models.create(config.model)

    def loss(network):
        return optax.sigmoid_binary_cross_entropy(model.apply(network, inputs), labels).mean()

    @jax.jit
    def step(network, moments):
        with jax.numpy_dtype_promotion('standard'):
            changes, moments = adam.update(jax.grad(loss)(network), moments)
        return optax.apply_updates(network, changes), moments

    network = jax.tree.map(lambda leaf: leaf[0], random_networks(config))
    moments = adam.init(network)
    for _ in range(120):
        network, moments = step(network, moments)
    assert loss(network) < 0.05
    return config, stacked(network)


@pytest.mark.parametrize('how', HEAT_MAPS)
def test_maps_of_a_network_that_was_trained_to_find_a_square_point_at_it(how, finder):
    images, labels, squares = with_squares(40, 1)
    maps, squares = saliency.explain(*finder, images, how)[labels == 1], squares[labels == 1]
    hits = [square.ravel()[each.argmax()] for each, square in zip(maps.reshape(20, -1), squares, strict=True)]
    assert np.mean(hits) >= 0.8  # by chance: 0.06


@pytest.mark.parametrize('how', HEAT_MAPS)
def test_the_map_of_an_ensemble_is_that_of_its_mean_logit(how):
    config = frozen(model__filters=(2,))
    for_it, against_it = by_hand((2, 3)), by_hand((-2, -3))
    alone = saliency.explain(config, stacked(for_it), IMAGES, how)
    np.testing.assert_allclose(saliency.explain(config, stacked(for_it, for_it), IMAGES, how), alone, atol=1e-5)
    stronger = stacked(by_hand((6, 9)), against_it)
    np.testing.assert_allclose(saliency.explain(config, stronger, IMAGES, how), alone, atol=1e-4)
    np.testing.assert_array_equal(saliency.explain(config, stacked(for_it, against_it), IMAGES, how), 0)


@pytest.mark.parametrize('how', HEAT_MAPS)
@pytest.mark.parametrize('norm', ['none', 'batch', 'group'])
@pytest.mark.parametrize('name', [*BLOCKS, 'lenet5'])
def test_every_family_and_norm_has_maps_from_0_to_1(name, norm, how):
    config = frozen(model__name=name, model__norm=norm)
    maps = saliency.explain(config, random_networks(config, 2), IMAGES, how)
    assert (maps.shape, maps.dtype) == ((5, 16, 16), np.float32)
    assert maps.min() == 0 and {*maps.max(axis=(1, 2))} <= {0, 1} and maps.any()


@pytest.mark.parametrize('pooling', ['max', 'mean_max'])
def test_every_pooling_and_bfloat16_have_maps(pooling):
    config = frozen(model__pooling=pooling, model__dtype='bfloat16', model__hidden_units=4)
    for how in HEAT_MAPS:
        maps = saliency.explain(config, random_networks(config), IMAGES, how)
        assert maps.dtype == np.float32 and np.isfinite(maps).all() and maps.max() <= 1


@pytest.mark.parametrize('name', BLOCKS)
def test_reaching_the_feature_maps_changes_no_logit(name):
    config = frozen(model__name=name).model
    network, x = jax.tree.map(lambda leaf: leaf[0], random_networks(frozen(model__name=name))), IMAGES[..., None] / 255
    logits, maps = models.apply_with_maps(config, network, jnp.asarray(x, jnp.float32))
    np.testing.assert_array_equal(logits, models.create(config).apply(network, jnp.asarray(x, jnp.float32)))
    assert maps.shape == (5, 8, 8, 6)


def test_the_gradient_of_the_offset_is_that_of_the_maps():
    config = frozen(model__name='cnn', model__filters=(2,)).model
    network, x = by_hand((2, -1)), jnp.asarray(IMAGES[..., None] / 255, jnp.float32)
    gradient = jax.grad(lambda offset: models.apply_with_maps(config, network, x, offset)[0].sum())
    np.testing.assert_allclose(gradient(jnp.zeros((5, 16, 16, 2))), np.broadcast_to([2, -1], (5, 16, 16, 2)) / 256)


def test_images_one_by_one_have_the_maps_of_images_together(crossed):
    model, (images, _) = bhcnet_jax.load(crossed), small_images(70)
    maps = model.explain(images)
    assert maps.shape == (70, 16, 16)
    for number in (0, 63, 64, 69):
        np.testing.assert_allclose(model.explain(images[number : number + 1])[0], maps[number], atol=1e-4)
    assert model.explain(images[:0]).shape == (0, 16, 16)


def test_other_ways_and_other_images_are_refused(crossed):
    model = bhcnet_jax.load(crossed)
    with pytest.raises(UserError, match='hires_cam, grad_cam, integrated_gradients, occlusion'):
        model.explain(IMAGES, 'lime')
    with pytest.raises(UserError, match=r'expected uint8 \[N, 16, 16\]'):
        model.explain(IMAGES / 255)


def test_a_family_without_feature_maps_is_explained_without_them(monkeypatch):
    class Logistic(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(1)(x.reshape(len(x), -1))[:, 0]

    monkeypatch.setitem(models.FAMILIES, 'logistic', Family(lambda config: Logistic(), keys=()))
    config = frozen(model__name='logistic')
    with pytest.raises(UserError, match='can be explained by integrated_gradients, occlusion'):
        saliency.explain(config, random_networks(config), IMAGES, 'grad_cam')
    for how in saliency.methods(config):
        assert saliency.explain(config, random_networks(config), IMAGES, how).any()
