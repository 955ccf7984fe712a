"""The mask head in use: where it says that blood is, and how that is shown."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bhcnet_jax
import simple_heads
from bhcnet_jax.datasets.phantom import heads as drawn_heads
from bhcnet_jax.errors import UserError
from bhcnet_jax.inference import gallery
from bhcnet_jax.models import layers
from bhcnet_jax.training import steps

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def segmenting(trained):
    """A network that has learnt on quick heads where blood is; maps of 8x8 over images of 16x16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawn_heads, 'draw', simple_heads.draw)
        run = trained('segmenting', {
            'phases': ('phantom',), 'phantom__epochs': 16, 'phantom__samples': 512, 'phantom__mask': 3.0,
            'model__mask_head': True, 'model__filters': (8, 8), 'model__convs': 2, 'phantom__peak_lr': 0.01,
            'augment__policy': 'none', 'recipe': 'segmenting',
        })  # fmt: skip
    return bhcnet_jax.load(run)


@pytest.fixture(scope='module')
def drawn():
    keys = jax.random.split(jax.random.key(7), 200)
    return jax.tree.map(np.asarray, jax.vmap(lambda key: simple_heads.draw(key, 16))(keys))


def test_the_mask_head_finds_the_blood_of_heads_it_has_not_seen(segmenting, drawn):
    blood = segmenting.segment(drawn.image)
    assert blood.shape == drawn.image.shape and blood.dtype == np.float32 and 0 <= blood.min() <= blood.max() <= 1
    large = drawn.mask.sum(axis=(1, 2)) >= 4
    inside = np.array([each[mask].mean() for each, mask in zip(blood[large], drawn.mask[large], strict=True)])
    outside = np.array([each[~mask].mean() for each, mask in zip(blood[large], drawn.mask[large], strict=True)])
    assert np.mean(inside > outside) > 0.95 and inside.mean() > 0.4 and outside.mean() < 0.15
    assert blood[drawn.label == 0].mean() < 0.1
    shifted = np.roll(drawn.mask[large], 8, axis=2)
    misplaced = np.array([each[mask].mean() for each, mask in zip(blood[large], shifted, strict=True)])
    assert misplaced.mean() < 0.5 * inside.mean()


def test_what_the_loss_teaches_of_a_share_of_blood_is_told_as_that_share(segmenting, drawn):
    blood = (jnp.arange(100) % 5 == 0).reshape(1, 10, 10)  # a fifth
    learnt = 0.0
    for _ in range(200):  # gradient descent on one logit for all pixels
        learnt -= jax.grad(lambda logit: steps.mask_loss(jnp.full((1, 10, 10), logit), blood)[0])(learnt)
    head = {'kernel': np.zeros((1, 8, 1), np.float32), 'bias': np.full((1, 1), learnt, np.float32)}
    trunk = {**segmenting.variables['params']['trunk'], layers.MASK_HEAD: head}
    params = {**segmenting.variables['params'], 'trunk': trunk}
    ignorant = dataclasses.replace(segmenting, variables={**segmenting.variables, 'params': params})
    np.testing.assert_allclose(ignorant.segment(drawn.image[:2]), 0.2, atol=1e-3)


def test_an_odd_image_is_covered_to_its_edge(trained, drawn):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawn_heads, 'draw', simple_heads.draw)
        run = trained('odd', {
            'phases': ('phantom',), 'phantom__epochs': 1, 'phantom__samples': 16, 'phantom__mask': 1.0,
            'model__mask_head': True, 'dataset__image_size': 19, 'augment__policy': 'none',
        })  # fmt: skip
    blood = bhcnet_jax.load(run).segment(np.zeros((2, 19, 19), np.uint8))
    assert blood.shape == (2, 19, 19)
    np.testing.assert_array_equal(blood[:, 18], blood[:, 17])


def test_a_mirrored_image_has_a_mirrored_mask_if_mirrored_images_are_averaged(segmenting, drawn):
    recipe = {**segmenting.recipe, 'augment': {**segmenting.recipe['augment'], 'test_flip': True}}
    both = dataclasses.replace(segmenting, recipe=recipe)
    np.testing.assert_allclose(
        both.segment(drawn.image[:8, :, ::-1])[:, :, ::-1], both.segment(drawn.image[:8]), atol=1e-4
    )


def test_a_network_without_the_head_refuses_in_one_line(crossed):
    net = bhcnet_jax.load(crossed)
    with pytest.raises(UserError, match='no mask head'):
        net.segment(np.zeros((1, 16, 16), np.uint8))
    with pytest.raises(UserError, match='can be explained by'):
        net.explain(np.zeros((1, 16, 16), np.uint8), 'mask')


def test_as_a_heat_map_the_largest_value_lies_in_the_blood(segmenting, drawn):
    bleeding = drawn.mask.sum(axis=(1, 2)) >= 4
    maps = segmenting.explain(drawn.image[bleeding], 'mask')
    assert np.allclose(maps.max(axis=(1, 2)), 1)
    hits = [mask.ravel()[each.argmax()] for each, mask in zip(maps, drawn.mask[bleeding], strict=True)]
    assert np.mean(hits) > 0.8


def test_a_contour_lies_around_the_blood_and_nowhere_without():
    blood = np.zeros((64, 64), np.float32)
    assert (gallery.contour(np.full((64, 64), 100, np.uint8), blood) == 100).all()
    blood[16:32, 16:32] = 1
    shown = gallery.contour(np.full((64, 64), 100, np.uint8), blood)
    assert shown.shape == (256, 256, 3)
    line = (shown == gallery.BLUE).all(axis=2)
    assert not line[:60].any() and not line[132:].any() and not line[72:120, 72:120].any()
    assert line[96, 60:72].any() and line[96, 120:132].any() and line[60:72, 96].any()
