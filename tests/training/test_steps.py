import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bhcnet_jax import models
from bhcnet_jax.models.layers import Mask
from bhcnet_jax.training import steps
from bhcnet_jax.training.augment import augment
from lanes import BLOCKS, one, small_config, small_images, small_lanes, tiny_config


def trees_equal(first, second):
    return all(map(np.array_equal, jax.tree.leaves(first), jax.tree.leaves(second)))


def compiled(function, config):
    return jax.jit(functools.partial(function, config))


def start(config, seed=0):
    images, labels = small_images()
    lane = one(small_lanes(config, [seed]))
    return compiled(steps.init, config)(lane), lane, jnp.asarray(images), jnp.asarray(labels)


def step_once(config, lane, state, images, labels, positions=8, mask=None):
    mask = jnp.ones(positions) if mask is None else mask
    positions = jnp.arange(len(mask))
    batch = steps.Batch(steps.draw(config, lane, images, positions), positions, mask)
    return compiled(steps.train_step, config)(state, lane, labels, batch, jnp.float32(1e-3))


@pytest.mark.slow
def test_a_step_changes_every_weight():
    config = small_config()
    state, lane, images, labels = start(config)
    after, _ = step_once(config, lane, state, images, labels)
    for before, changed in zip(jax.tree.leaves(state.params), jax.tree.leaves(after.params), strict=True):
        assert not np.array_equal(before, changed)


@pytest.mark.slow
def test_a_step_is_adam_on_the_weighted_cross_entropy():
    config = small_config(augment__policy='none', model__dropout=0.0)
    state, lane, images, labels = start(config)
    lane = lane.replace(class_weights=jnp.array([0.5, 2.0]))
    # The last three of the eight images are padding.
    after, sums = step_once(config, lane, state, images, labels, mask=jnp.array([1.0] * 5 + [0.0] * 3))

    inputs, target = steps.to_unit(images[:5, ..., None]), labels[:5]
    model = models.create(config.model)

    def loss(params):
        losses = optax.sigmoid_binary_cross_entropy(model.apply({'params': params}, inputs), target.astype(float))
        return jnp.mean(jnp.array([0.5, 2.0])[target] * losses)

    found, expected = after.opt_state[0], jax.jit(jax.grad(loss))(state.params)
    gradient = jax.tree.map(lambda moment: moment / 0.1, found.mu)
    for ours, wanted in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-6, rtol=1e-4)
    # Adam's first step is as long for a gradient that is only rounding: it is compared on the gradient found.
    adam = optax.adam(1e-3)
    with jax.numpy_dtype_promotion('standard'):
        updates, _ = adam.update(gradient, adam.init(state.params), state.params)
    expected = optax.apply_updates(state.params, updates)
    for ours, wanted in zip(jax.tree.leaves(after.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, wanted, atol=2e-6)
    assert float(sums.loss / sums.images) == pytest.approx(float(loss(state.params)), rel=1e-5)


@pytest.mark.slow
def test_masked_images_change_nothing():
    config = small_config()
    state, lane, images, labels = start(config)
    mask = jnp.array([1.0] * 5 + [0.0] * 3)
    padded, padded_sums = step_once(config, lane, state, images, labels, mask=mask)
    other = lane.replace(sources=lane.sources.at[5:8].set(8))
    other_padded, other_sums = step_once(config, other, state, images, labels, mask=mask)
    assert trees_equal((padded, padded_sums), (other_padded, other_sums))
    # Without padding they are computed in other numbers at a time, so they round otherwise.
    short, short_sums = step_once(config, lane, state, images, labels, mask=jnp.ones(5))
    assert float(padded_sums.images) == 5
    np.testing.assert_allclose(short_sums, padded_sums, rtol=1e-6)
    for first, second in zip(jax.tree.leaves(short.opt_state), jax.tree.leaves(padded.opt_state), strict=True):
        np.testing.assert_allclose(first, second, atol=1e-6)


@pytest.mark.slow
def test_an_epoch_shows_every_augmented_image_once():
    # 20 images in batches of 8: the last step is filled up with 4 masked ones.
    config = small_config(model__dropout=0.0, optimizer__peak_lr=0.0)
    state, lane, images, labels = start(config)
    lane = lane.replace(learning_rates=jnp.zeros(3))
    _, sums = compiled(steps.train_epoch, config)(state, lane, images, labels)
    assert float(sums.images) == 20
    # The weights stand still, so the epoch's loss is that of the 20 images one by one, each with its own key.
    model = models.create(config.model)

    @jax.jit
    def cost(position):
        key = steps.stream(lane.seed, 'augment', 0, 0, position)
        source = lane.sources[position]
        image = augment(key, steps.to_unit(images[source]), steps.strengths(lane, 'affine'), 'affine')
        logit = model.apply({'params': state.params}, image[None, ..., None])[0]
        return optax.sigmoid_binary_cross_entropy(logit, labels[source].astype(float))

    assert float(sums.loss) == pytest.approx(sum(float(cost(position)) for position in range(20)), rel=1e-4)


@pytest.mark.parametrize('frozen', [True, False])
def test_frozen_augmentation_is_the_same_in_every_epoch_and_fresh_is_not(frozen):
    config = small_config(augment__frozen=frozen, model__dropout=0.0)
    state, lane, images, labels = start(config)
    lane = lane.replace(learning_rates=jnp.zeros(3))
    train_epoch = compiled(steps.train_epoch, config)
    losses = [float(train_epoch(state, lane.replace(epoch=epoch), images, labels)[1].loss) for epoch in (0, 1)]
    # Frozen images come in another order each epoch, so their sum is equal up to rounding.
    assert (abs(losses[0] - losses[1]) < 1e-4) == frozen


def test_the_two_phases_draw_other_augmented_images():
    config = small_config(model__dropout=0.0)
    state, lane, images, labels = start(config)
    lane = lane.replace(learning_rates=jnp.zeros(3))
    train_epoch = compiled(steps.train_epoch, config)
    losses = [float(train_epoch(state, lane.replace(phase=phase), images, labels)[1].loss) for phase in (0, 1)]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_two_seeds_give_different_weights():
    config = small_config()
    first, second = (start(config, seed)[0].params for seed in (0, 1))
    assert not np.array_equal(first['trunk']['conv1']['kernel'], second['trunk']['conv1']['kernel'])
    assert trees_equal(first, start(config, 0)[0].params)


def test_two_seeds_give_different_augmentation():
    image = steps.to_unit(jnp.asarray(small_images()[0][1]))
    strengths = steps.strengths(one(small_lanes(small_config())), 'affine')
    first, second = (augment(steps.stream(seed, 'augment', 0, 0, 0), image, strengths, 'affine') for seed in (0, 1))
    assert not np.allclose(first, second)


@pytest.mark.parametrize(
    ('stream', 'overrides'),
    [('dropout', {'augment__policy': 'none'}), ('shuffle', {'augment__policy': 'none', 'model__dropout': 0.0})],
)
def test_two_seeds_give_different_dropout_and_another_order(stream, overrides):
    # Same weights and same images, so what differs after an epoch comes from the one stream that is left.
    config = small_config(**overrides)
    state, lane, images, labels = start(config)
    if stream == 'dropout':  # one batch: its order changes sums by rounding only
        config.batch_size = 20
        lane = lane.replace(learning_rates=lane.learning_rates[:1])
    train_epoch = compiled(steps.train_epoch, config)
    losses = [float(train_epoch(state, lane.replace(seed=seed), images, labels)[1].loss) for seed in (0, 1)]
    assert abs(losses[0] - losses[1]) > 1e-5


def test_no_two_streams_share_a_key():
    keys = [
        jax.random.key_data(steps.stream(seed, name, *indices)).tobytes()
        for seed in (0, 1)
        for name in steps.STREAMS
        for indices in [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 1), (0, 1, 0)]
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize('count', [1, 4, 8, 11])
def test_evaluation_scores_every_image_in_its_place(count):
    config = small_config()
    state, _, images, _ = start(config)
    scored = jnp.arange(count)[::-1]
    logits = steps.evaluate(config, state.average, scored, images)
    expected = models.create(config.model).apply(
        {'params': state.params}, steps.to_unit(images[scored])[..., None]
    )
    assert logits.shape == (count,)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_nothing_moves_between_host_and_device_inside_an_epoch():
    config = small_config()
    state, lane, images, labels = start(config)
    program = compiled(steps.train_epoch, config).lower(state, lane, images, labels).compile()
    calls = [line for line in program.as_text().splitlines() if 'custom-call' in line]
    assert not [line for line in calls if 'callback' in line]
    assert not [word for word in ('infeed(', 'outfeed(', ' send(', ' recv(') if word in program.as_text()]
    with jax.transfer_guard('disallow'):
        program(state, lane, images, labels)


@pytest.mark.parametrize(
    ('name', 'norm'), [*((name, 'none') for name in BLOCKS), ('lenet5', 'none'), ('resnet18', 'batch')]
)
@pytest.mark.slow
def test_training_learns_an_easy_task(name, norm):
    config = tiny_config(
        name, model__dropout=0.0, optimizer__peak_lr=1e-2, augment__samples=64, augment__policy='none', model__norm=norm
    )
    state, lane, images, labels = start(config)
    lane = lane.replace(sources=jnp.arange(64) % 8, learning_rates=jnp.full(8, 1e-2))
    train_epoch = compiled(steps.train_epoch, config)
    for epoch in range(12):
        state, sums = train_epoch(state, lane.replace(epoch=epoch), images, labels)
    logits = steps.evaluate(config, state.average, jnp.arange(8, 12), images)
    assert float(sums.hits / sums.images) == 1.0
    np.testing.assert_array_equal(logits > 0, labels[8:12] == 1)


def batch_normed(**overrides):
    return small_config(model__norm='batch', augment__policy='none', model__dropout=0.0, **overrides)


@pytest.mark.slow
def test_batch_normalisation_is_that_of_the_images_that_count():
    config = batch_normed()
    state, lane, images, labels = start(config)
    after, sums = step_once(config, lane, state, images, labels, mask=jnp.array([1.0] * 5 + [0.0] * 3))
    # The reference sees the five images alone, all at once.
    variables = {'params': state.params, 'batch_stats': state.batch_stats}
    inputs, values = steps.to_unit(images[:5, ..., None]), {'model.dropout': jnp.float32(0)}
    keys = jax.random.split(jax.random.key(0), 5)
    apply = jax.jit(functools.partial(models.create(config.model).apply, mutable=['batch_stats']))
    logits, changed = apply(variables, inputs, values, keys, Mask(jnp.ones(5)))
    losses = optax.sigmoid_binary_cross_entropy(logits, labels[:5].astype(float))
    np.testing.assert_allclose(sums.loss, losses.sum(), rtol=1e-5)
    for ours, wanted in zip(jax.tree.leaves(after.batch_stats), jax.tree.leaves(changed), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('counting', [8, 6, 4])  # of eight; the second part has four, two or none of them
@pytest.mark.slow
def test_a_spread_batch_is_normalised_as_a_whole(counting):
    config = batch_normed()
    # In 2 of 12 seeds a pixel is so near the kink of ReLU that rounding decides its gradient; not in this one.
    state, lane, images, labels = start(config, seed=2)
    positions, mask = jnp.arange(8), (jnp.arange(8) < counting).astype(jnp.float32)
    whole = steps.Batch(steps.draw(config, lane, images, positions), positions, mask)
    rate = jnp.float32(1e-3)

    @jax.jit
    def spread(batch):
        step = functools.partial(steps.train_step, config, axis='parts')
        return jax.vmap(lambda part: step(state, lane, labels, part, rate), axis_name='parts')(batch)

    after, sums = spread(jax.tree.map(lambda each: each.reshape(2, 4, *each.shape[1:]), whole))
    wanted, wanted_sums = step_once(config, lane, state, images, labels, mask=mask)
    # Not the weights: Adam makes steps of rounding errors where a gradient is zero, as that of a bias before a norm.
    found = after.opt_state[0].mu, after.batch_stats, sums
    expected = wanted.opt_state[0].mu, wanted.batch_stats, wanted_sums
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, np.stack([theirs, theirs]), rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_group_normalisation_does_not_depend_on_the_other_images():
    config = small_config(model__norm='group', model__filters=(8, 16), model__convs=2)
    state, _, images, _ = start(config)
    evaluate = functools.partial(steps.evaluate, config)
    together, alone = (evaluate(state.average, jnp.array(scored), images) for scored in ([0, 1, 2, 3], [2]))
    np.testing.assert_allclose(together[2], alone[0], rtol=1e-5, atol=1e-6)


def test_the_running_mean_of_the_weights_is_that_of_its_decay():
    config = small_config(optimizer__ema=0.75)
    state, lane, images, labels = start(config)
    first, _ = step_once(config, lane, state, images, labels)
    second, _ = step_once(config, lane, first, images, labels)
    for average, *weights in zip(
        *(jax.tree.leaves(tree) for tree in (second.average['params'], state.params, first.params, second.params)),
        strict=True,
    ):
        expected = np.average(weights, axis=0, weights=[0, 0.75, 1])  # none of the initial weights
        np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-7)


def test_without_a_decay_the_weights_themselves_are_evaluated():
    config = small_config()
    state, lane, images, labels = start(config)
    after, _ = step_once(config, lane, state, images, labels)
    assert trees_equal(after.average['params'], after.params)


def test_smoothed_labels_cost_as_much_as_both_labels_together():
    plain = small_config(augment__policy='none', model__dropout=0.0)
    smooth = small_config(augment__policy='none', model__dropout=0.0, optimizer__label_smoothing=0.2)
    state, lane, images, labels = start(plain)
    _, right = step_once(plain, lane, state, images, labels)
    _, wrong = step_once(plain, lane, state, images, 1 - labels)
    _, mixed = step_once(smooth, one(small_lanes(smooth)), state, images, labels)
    np.testing.assert_allclose(mixed.loss, 0.9 * right.loss + 0.1 * wrong.loss, rtol=1e-5)


def test_a_mirrored_image_has_the_same_logit_with_test_flip():
    config = small_config(augment__test_flip=True)
    state, _, images, _ = start(config)
    images = images.at[:, :, :5].set(0)  # so that an image and its mirror image differ
    evaluate, scored = functools.partial(steps.evaluate, config), jnp.arange(8, 12)
    logits = evaluate(state.average, scored, images)
    np.testing.assert_allclose(logits, evaluate(state.average, scored, images[:, :, ::-1]), rtol=1e-5, atol=1e-7)
    plain = functools.partial(steps.evaluate, small_config())
    both = [plain(state.average, scored, each) for each in (images, images[:, :, ::-1])]
    assert not np.allclose(*both, atol=1e-6)
    np.testing.assert_allclose(logits, np.mean(both, axis=0), rtol=1e-5, atol=1e-6)
