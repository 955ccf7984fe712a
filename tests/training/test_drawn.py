"""Training on drawn heads: what they depend on, the mask head, and the compiled program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import simple_heads
from bhcnet_jax import models
from bhcnet_jax.datasets.phantom import heads
from bhcnet_jax.models import layers
from bhcnet_jax.training import engine, steps
from lanes import BLOCKS, one, small_config, small_images, small_lanes

SIZE, SAMPLES = 16, 20
DRAW = heads.draw


@pytest.fixture(autouse=True)
def _simple_heads(monkeypatch):
    monkeypatch.setattr(heads, 'draw', simple_heads.draw)


def drawn_config(**overrides):
    """As of a pre-training; see `phases.pretraining`."""
    defaults = {'phases': ('phantom',), 'augment__policy': 'none', 'model__dropout': 0.0, 'model__mask_head': True,
                'phantom__mask': 1.0}  # fmt: skip
    return small_config(**defaults | overrides)


def drawn_lanes(config, seeds=(0,), epoch=0):
    lanes = small_lanes(config, seeds, epoch)
    return lanes.replace(sources=lanes.sources[:, :0], scored=lanes.scored[:, :0])


def draw(config, lane, positions):
    """The heads of some positions."""
    batch = steps.Batch(None, jnp.asarray(positions), jnp.ones(len(positions)))
    return jax.jit(functools.partial(steps.draw_heads, config))(lane, batch)


@pytest.mark.slow
def test_a_head_depends_on_seed_phase_epoch_and_position_alone():
    config = drawn_config()
    lane = one(drawn_lanes(config))
    first = draw(config, lane, [3, 5])
    np.testing.assert_array_equal(draw(config, lane, [7, 5, 9, 3]).inputs[jnp.array([3, 1])], first.inputs)
    for changed in (lane.replace(seed=1), lane.replace(phase=1), lane.replace(epoch=1)):
        assert not np.array_equal(draw(config, changed, [3, 5]).inputs, first.inputs)
    assert not np.array_equal(first.inputs[0], first.inputs[1])


@pytest.mark.slow
def test_a_batch_has_the_images_labels_and_masks_of_the_drawing(monkeypatch):
    monkeypatch.setattr(heads, 'draw', DRAW)
    config = drawn_config()
    lane = one(drawn_lanes(config))
    batch = draw(config, lane, [4])
    drawn = heads.draw(steps.stream(0, 'phantom', 0, 0, 4), SIZE)
    np.testing.assert_allclose(batch.inputs[0], np.asarray(drawn.image) / 255.0, atol=1e-6)
    np.testing.assert_array_equal(batch.truth.labels[0], drawn.label)
    np.testing.assert_array_equal(batch.truth.blood[0], drawn.mask)


@pytest.mark.slow
def test_intensity_changes_the_image_of_a_head_and_not_its_mask():
    plain, changed = (
        draw(config, one(drawn_lanes(config)), np.arange(8))
        for config in (drawn_config(), drawn_config(augment__policy='intensity'))
    )
    np.testing.assert_array_equal(plain.truth.blood, changed.truth.blood)
    assert not np.allclose(plain.inputs, changed.inputs, atol=0.02)


def test_the_loss_on_masks_is_that_of_numpy():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(3, 4, 4)).astype(np.float32)
    blood = generator.random((3, 17, 16)) < 0.02
    blood[2] = False
    expected = np.zeros(3)
    for image, row, col in np.ndindex(3, 4, 4):
        is_covered = blood[image, 4 * row : 4 * row + 4, 4 * col : 4 * col + 4].any()
        probability = 1 / (1 + np.exp(-np.float64(logits[image, row, col])))
        expected[image] -= (10 * np.log(probability) if is_covered else np.log(1 - probability)) / 16
    np.testing.assert_allclose(steps.mask_loss(jnp.asarray(logits), jnp.asarray(blood)), expected, rtol=1e-5)


@pytest.mark.parametrize('name', BLOCKS)
def test_the_mask_head_is_no_part_of_the_output(name):
    plain, with_head = (
        models.create(small_config(model__name=name, model__mask_head=has_head).model) for has_head in (False, True)
    )
    images = jnp.ones((2, SIZE, SIZE, 1)) * jnp.linspace(0, 1, SIZE)[:, None]
    variables = {'params': with_head.init(jax.random.key(0), images)['params']}
    logits, found = with_head.apply(variables, images, mutable=[layers.MASKS])
    assert jax.tree.leaves(found)[0].shape == (2, SIZE // 2, SIZE // 2)
    np.testing.assert_array_equal(logits, plain.apply(plain.init(jax.random.key(0), images), images))
    np.testing.assert_array_equal(logits, with_head.apply(variables, images))


def train(config, epochs, rate=1e-2):
    """The state after some epochs of 64 drawn heads, and the sums of the last."""
    config.augment.samples = 64
    lane = one(drawn_lanes(config)).replace(learning_rates=jnp.full(8, rate))
    state = jax.jit(functools.partial(steps.init, config))(lane)
    epoch = jax.jit(functools.partial(steps.train_epoch, config))
    nothing = jnp.zeros((1, SIZE, SIZE), jnp.uint8), jnp.zeros(1, jnp.int32)
    for number in range(epochs):
        state, sums = epoch(state, lane.replace(epoch=number), *nothing)
    return state, sums


@pytest.mark.slow
def test_the_mask_head_learns_where_blood_is_and_the_network_whether():
    config = drawn_config(model__filters=(8, 16), model__convs=2, model__pooling='max')
    state, sums = train(config, 60, rate=3e-3)
    assert float(sums.hits / sums.images) > 0.9
    new = draw(config, one(drawn_lanes(config)).replace(phase=1), np.arange(64))
    _, found = models.create(config.model).apply(state.average, new.inputs[..., None], mutable=[layers.MASKS])
    is_blood = new.truth.blood.reshape(64, 8, 2, 8, 2).any((2, 4))
    predicted = jax.tree.leaves(found)[0] > 0
    dice = 2 * np.sum(predicted & is_blood) / (np.sum(predicted) + np.sum(is_blood))
    assert dice > 0.6


@pytest.mark.slow
def test_the_mask_weighs_in_the_gradient_and_not_in_the_recorded_loss():
    states, expected = {}, train(drawn_config(), 1, 0.0)[1].loss
    for weight in (0.0, 1.0):
        config = drawn_config(phantom__mask=weight)
        states[weight], sums = train(config, 1, rate=0.0)
        np.testing.assert_allclose(sums.loss, expected, rtol=1e-5)
    moments = {weight: state.opt_state[0].mu['trunk'][layers.MASK_HEAD]['kernel'] for weight, state in states.items()}
    assert not np.any(moments[0.0]) and np.all(moments[1.0] != 0)


def test_real_images_leave_the_mask_head_as_it_is_whatever_the_weight_decay():
    config = small_config(model__mask_head=True, optimizer__weight_decay=1.0)
    images, labels = map(jnp.asarray, small_images())
    lane = one(small_lanes(config))
    state = jax.jit(functools.partial(steps.init, config))(lane)
    after, _ = jax.jit(functools.partial(steps.train_epoch, config))(state, lane, images, labels)
    changed = jax.tree.map(lambda *both: not np.array_equal(*both), after.params, state.params)
    head = changed['trunk'].pop(layers.MASK_HEAD)
    assert not any(jax.tree.leaves(head)) and all(jax.tree.leaves(changed))


@pytest.mark.parametrize('lanes', [1, 2])
@pytest.mark.slow
def test_the_program_has_no_grouped_convolution_and_no_select_and_scatter(lanes):
    config = drawn_config(augment__policy='intensity')
    images, labels = small_images(1)
    together = drawn_lanes(config, range(lanes))
    made = engine.Engine(config, images, labels, lanes, lanes=lanes)
    made.compile(together)
    text = made._compiled.as_text()
    assert 'dot(' in text
    assert not [word for word in ('group_count', 'select-and-scatter', 'callback', 'infeed(') if word in text]


def epoch_of(config, seeds, **settings):
    images, labels = small_images(1)
    lanes = drawn_lanes(config, seeds)
    made = engine.Engine(config, images, labels, len(seeds), **settings)
    states, result = made.epoch(made.to_devices(made.init(lanes)), lanes)
    return made.to_host(states, len(seeds)), result


@pytest.mark.parametrize('lanes', [1, 2])
@pytest.mark.slow
def test_a_lane_draws_the_same_heads_whatever_its_neighbours(lanes):
    config = drawn_config(augment__policy='intensity')
    count = 2 * lanes  # on two devices
    first, second = (epoch_of(config, seeds[:count], lanes=lanes) for seeds in ((0, 1, 2, 3), (0, 5, 2, 7)))
    for lane, is_same in ((0, True), (1, False), (2, True))[:count]:
        equal = [np.array_equal(mine[lane], theirs[lane]) for mine, theirs in
                 zip(*(jax.tree.leaves(state.params) for state, _ in (first, second)), strict=True)]  # fmt: skip
        assert all(equal) if is_same else not any(equal)


@pytest.mark.slow
def test_a_batch_over_two_devices_has_the_heads_of_one_device():
    config = drawn_config()
    (alone, sums), (spread, spread_sums) = (epoch_of(config, (0,), spread=spread) for spread in ('lanes', 'batch'))
    np.testing.assert_allclose(sums.sums.loss, spread_sums.sums.loss, rtol=1e-5)
    assert float(spread_sums.sums.images[0]) == SAMPLES
    for mine, theirs in zip(*map(jax.tree.leaves, (alone.params, spread.params)), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
