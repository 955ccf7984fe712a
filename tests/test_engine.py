import jax
import numpy as np
import pytest

from bhcnet_jax.engine import Engine
from lanes import small_config, small_images, small_lanes


def train(config, seeds=(0,), epochs=3, trials=None):
    engine = Engine(config, *small_images(), trials or len(seeds))
    states = engine.to_devices(engine.init(small_lanes(config, seeds)))
    results = []
    for epoch in range(epochs):
        states, result = engine.epoch(states, small_lanes(config, seeds, epoch))
        results.append(result)
    return engine, engine.to_host(states, len(seeds)), results


def assert_equal(first, second, lanes=(0, 0)):
    """Bit for bit, of one lane each."""
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a[lanes[0]], b[lanes[1]])


def test_these_tests_run_on_two_devices():
    assert jax.local_device_count() == 2


@pytest.mark.parametrize('lanes', [1, 2])
def test_a_lane_does_not_depend_on_its_neighbours(lanes):
    config = small_config(engine__lanes=lanes)
    _, alone, alone_results = train(config, [7], trials=2 * lanes)
    _, among, among_results = train(config, [3, 7, 5][: 2 * lanes], trials=2 * lanes)
    assert_equal(alone, among, (0, 1))
    assert_equal(alone_results, among_results, (0, 1))


def test_a_lane_is_the_same_on_either_device():
    config = small_config()
    engine, first, _ = train(config, [3, 7])
    assert len(engine.devices) == 2
    _, second, _ = train(config, [7, 3])
    assert_equal(first, second, (0, 1))
    assert_equal(first, second, (1, 0))


def test_a_lane_on_two_devices_equals_one_device_up_to_rounding():
    _, both, _ = train(small_config(), [3, 7])
    engine, alone, _ = train(small_config(), [7])
    assert len(engine.devices) == 1
    for a, b in zip(jax.tree.leaves(both.params), jax.tree.leaves(alone.params), strict=True):
        np.testing.assert_allclose(a[1], b[0], atol=1e-4)


def test_a_lane_computes_with_other_lane_settings_up_to_rounding():
    one = train(small_config(engine__lanes=1), [3, 7])[1]
    two = train(small_config(engine__lanes=2), [3, 7])[1]
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize('policy', ['affine', 'distort'])
def test_one_batch_over_two_devices_equals_one_device(policy):
    # Dropout and augmentation have a key per image, so they are the same however the batch is spread.
    _, whole, whole_results = train(small_config(augment__policy=policy))
    config = small_config(augment__policy=policy, engine__spread='batch')
    engine, spread, spread_results = train(config)
    assert len(engine.devices) == 2
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(spread.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    for a, b in zip(whole_results, spread_results, strict=True):
        np.testing.assert_allclose(a.logits, b.logits, atol=1e-4)
        np.testing.assert_allclose(a.sums.loss, b.sums.loss, rtol=1e-4)
        np.testing.assert_array_equal(a.sums.images, b.sums.images)


def test_a_batch_that_cannot_be_cut_evenly_is_refused():
    with pytest.raises(ValueError, match=r'batch_size is 7.*multiple of 2'):
        Engine(small_config(engine__spread='batch', batch_size=7), *small_images())


def test_compiling_ahead_gives_the_same_program():
    config = small_config()
    engine = Engine(config, *small_images())
    lanes = small_lanes(config)
    assert engine.compile(lanes) > 0
    states, result = engine.epoch(engine.to_devices(engine.init(lanes)), lanes)
    _, expected, expected_results = train(config, epochs=1)
    assert_equal(engine.to_host(states, 1), expected)
    assert_equal(result, expected_results[0])


def test_a_state_goes_on_after_a_detour_over_the_host():
    config = small_config()
    _, straight, _ = train(config, [1, 2], epochs=2)
    engine, half, _ = train(config, [1, 2], epochs=1)
    states, _ = engine.epoch(engine.to_devices(half), small_lanes(config, [1, 2], 1))
    assert_equal(engine.to_host(states, 2), straight, (1, 1))


def test_other_traced_values_compile_nothing():
    config = small_config()
    engine = Engine(config, *small_images())
    lanes = small_lanes(config)
    states, _ = engine.epoch(engine.to_devices(engine.init(lanes)), lanes)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if 'backend_compile' in event else None
    )
    other = lanes.replace(
        seed=lanes.seed + 5,
        phase=lanes.phase + 1,
        sources=lanes.sources[:, ::-1].copy(),
        class_weights=lanes.class_weights * 2,
        learning_rates=lanes.learning_rates * 3,
        weight_decay=lanes.weight_decay + np.float32(0.1),
        dropout=lanes.dropout / 2,
        strengths={name: value / 2 for name, value in lanes.strengths.items()},
        scored=lanes.scored - 1,
    )
    states, _ = engine.epoch(states, other)
    assert compiled == []
    train(small_config(batch_size=4), epochs=1)
    assert compiled  # the listener does listen
