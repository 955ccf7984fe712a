import os
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bhcnet_jax.errors import UserError
from bhcnet_jax.run.checkpoints import Checkpoints
from bhcnet_jax.training import engine as engines
from bhcnet_jax.training import lanes as widths
from bhcnet_jax.training.engine import Engine
from lanes import small_config, small_images, small_lanes
from runs import xla_flags


def train(config, seeds=(0,), epochs=2, lanes=1, spread='lanes'):
    """Trains lanes that differ by seed. -> engine, final states, results of the epochs."""
    engine = Engine(config, *small_images(), len(seeds), lanes=lanes, spread=spread)
    states = engine.to_devices(engine.init(small_lanes(config, seeds)))
    results = []
    for epoch in range(epochs):
        states, result = engine.epoch(states, small_lanes(config, seeds, epoch))
        results.append(result)
    return engine, engine.to_host(states, len(seeds)), results


@pytest.fixture(scope='module')
def pair():
    """Seeds 3 and 7, a lane on each of two devices."""
    return train(small_config(), (3, 7))


@pytest.fixture(scope='module')
def alone():
    """Seed 7 on one device."""
    return train(small_config(), (7,))


def assert_equal(first, second, lanes=(0, 0)):
    """Bit for bit, of one lane each."""
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a[lanes[0]], b[lanes[1]])


def test_these_tests_run_on_two_devices():
    assert jax.local_device_count() == 2


@pytest.mark.parametrize('norm', ['none', 'batch', 'group'])
@pytest.mark.parametrize('lanes', [1, 2])
@pytest.mark.slow
def test_a_lane_does_not_depend_on_its_neighbours(lanes, norm):
    # The second batch has one trial only and is filled up with copies of it.
    # Augmentation, which compiles long, is in one of the three.
    config = small_config(model__norm=norm, augment__policy='affine' if norm == 'none' else 'none')
    engine = Engine(config, *small_images(), 2 * lanes, lanes=lanes)
    ends = []
    for seeds in ((3, 7, 5)[: 2 * lanes], (7,)):
        states = engine.to_devices(engine.init(small_lanes(config, seeds)))
        states, result = engine.epoch(states, small_lanes(config, seeds))
        ends.append((engine.to_host(states, len(seeds)), result))
    assert_equal(ends[0], ends[1], (1, 0))


def test_a_lane_is_the_same_on_either_device(pair):
    engine, states, results = pair
    assert len(engine.devices) == 2
    swapped = engine.to_devices(engine.init(small_lanes(small_config(), (7, 3))))
    for epoch in range(2):
        swapped, result = engine.epoch(swapped, small_lanes(small_config(), (7, 3), epoch))
    assert_equal(states, engine.to_host(swapped, 2), (0, 1))
    assert_equal(results[1], result, (1, 0))


@pytest.mark.slow
def test_a_program_compiled_in_a_thread_trains_alike(alone):
    config = small_config()
    engine = Engine(config, *small_images())
    engine.start_compiling(small_lanes(config, (7,)))
    states = engine.init(small_lanes(config, (7,)))
    assert engine.is_compiling and not engine.is_compiled
    assert engine.compile(small_lanes(config, (7,))) > 0
    assert engine.is_compiled and not engine.is_compiling
    states, result = engine.epoch(engine.to_devices(states), small_lanes(config, (7,)))
    assert_equal(result, alone[2][0])


def test_two_devices_compute_what_one_does_up_to_rounding(pair, alone):
    assert len(alone[0].devices) == 1
    for both, one in zip(jax.tree.leaves(pair[1].params), jax.tree.leaves(alone[1].params), strict=True):
        np.testing.assert_allclose(both[1], one[0], atol=1e-4)


@pytest.mark.slow
def test_two_lanes_on_a_device_compute_what_one_does_up_to_rounding(pair):
    _, states, _ = train(small_config(), (3, 7), lanes=2)
    for together, apart in zip(jax.tree.leaves(states.params), jax.tree.leaves(pair[1].params), strict=True):
        np.testing.assert_allclose(together, apart, atol=1e-4)


def test_one_batch_over_two_devices_equals_one_device(alone):
    # Dropout and augmentation have a key per image, so they are the same however the batch is spread.
    _, whole, whole_results = alone
    engine, spread, spread_results = train(small_config(), (7,), spread='batch')
    assert len(engine.devices) == 2
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(spread.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    for a, b in zip(whole_results, spread_results, strict=True):
        np.testing.assert_allclose(a.logits, b.logits, atol=1e-4)
        np.testing.assert_allclose(a.sums.loss, b.sums.loss, rtol=1e-4)
        np.testing.assert_array_equal(a.sums.images, b.sums.images)


@pytest.mark.parametrize(
    ('overrides', 'alone', 'spread'),
    [
        ({}, True, 'batch'),
        ({}, False, 'lanes'),
        ({'batch_size': 7}, True, 'lanes'),
        ({'model__norm': 'batch'}, True, 'batch'),
        ({'engine__spread': 'lanes'}, True, 'lanes'),
        ({'engine__spread': 'batch'}, False, 'batch'),
    ],
)
def test_on_a_cpu_devices_share_the_batch_of_a_trial_alone(overrides, alone, spread):
    assert engines.choose_spread(small_config(**overrides), alone) == spread


@pytest.mark.parametrize(
    ('said', 'devices'),
    [
        ({}, len(os.sched_getaffinity(0))),
        ({'XLA_FLAGS': '--xla_force_host_platform_device_count=3'}, 3),
        ({'JAX_NUM_CPU_DEVICES': '3'}, 3),
    ],
)
def test_every_core_is_a_device_unless_jax_is_told_otherwise(said, devices):
    program = (
        'import jax; from bhcnet_jax import machine; machine.make_every_core_a_device(); print(jax.device_count())'
    )
    environment = {**os.environ, 'XLA_FLAGS': '', **said}
    child = subprocess.run([sys.executable, '-c', program], env=environment, capture_output=True, text=True, check=True)
    assert int(child.stdout) == devices


def test_a_batch_that_cannot_be_cut_evenly_is_refused():
    with pytest.raises(UserError, match=r'batch_size is 7.*multiple of 2'):
        Engine(small_config(batch_size=7), *small_images(), spread='batch')


def test_a_state_goes_on_after_a_detour_over_the_host(alone):
    engine, straight, _ = alone
    states, _ = engine.epoch(engine.to_devices(engine.init(small_lanes(small_config(), (7,)))),
                             small_lanes(small_config(), (7,), 0))  # fmt: skip
    halfway = engine.to_devices(engine.to_host(states, 1))
    states, _ = engine.epoch(halfway, small_lanes(small_config(), (7,), 1))
    assert_equal(engine.to_host(states, 1), straight)


def test_other_traced_values_compile_nothing(alone):
    engine, lanes = alone[0], small_lanes(small_config(), (7,))
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
        values={name: value / 2 + np.float32(0.01) for name, value in lanes.values.items()},
        scored=lanes.scored - 1,
    )
    engine.epoch(engine.to_devices(engine.init(other)), other)
    assert compiled == []
    jax.jit(lambda x: x * 2 + 1)(np.float32(3))
    assert compiled  # the listener does listen


# Trains lanes on four devices for one epoch, saves them, and is killed.
FOUR_DEVICES = """
import os, pathlib, signal, sys
from bhcnet_jax.run.checkpoints import Checkpoints
from bhcnet_jax.training.engine import Engine
from lanes import small_config, small_images, small_lanes
config = small_config(augment__policy='none', model__filters=(2,))
seeds, epoch, directory = (3, 7, 5, 9), int(sys.argv[1]), pathlib.Path(sys.argv[2])
engine = Engine(config, *small_images(), 4)
assert len(engine.devices) == 4
states, checkpoints = engine.init(small_lanes(config, seeds)), Checkpoints(directory, 'abcd')
if epoch:
    states = checkpoints.restore(states, epoch)[1]
states, _ = engine.epoch(engine.to_devices(states), small_lanes(config, seeds, epoch))
checkpoints.save(epoch + 1, engine.to_host(states, 4))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_what_four_devices_have_begun_goes_on_with_one_and_the_other_way_round(tmp_path):
    config, seeds = small_config(augment__policy='none', model__filters=(2,)), (3, 7, 5, 9)

    def on_four_devices(epoch):
        environment = os.environ | {
            'XLA_FLAGS': xla_flags(devices=4),
            'PYTHONPATH': str(pathlib.Path(__file__).parents[1]),
            'JAX_NUMPY_DTYPE_PROMOTION': 'strict',
        }
        child = subprocess.run(
            [sys.executable, '-c', FOUR_DEVICES, str(epoch), str(tmp_path)], env=environment, timeout=120, check=False
        )
        assert child.returncode == -signal.SIGKILL

    on_four_devices(0)
    engine = Engine(config, *small_images(), 4, lanes=4)
    assert len(engine.devices) == 1
    checkpoints = Checkpoints(tmp_path, 'abcd')
    _, states = checkpoints.restore(engine.init(small_lanes(config, seeds)), 1)
    states, _ = engine.epoch(engine.to_devices(states), small_lanes(config, seeds, 1))
    checkpoints.save(2, engine.to_host(states, 4))
    checkpoints.close()
    on_four_devices(2)
    checkpoints = Checkpoints(tmp_path, 'abcd')
    _, moved = checkpoints.restore(engine.to_host(states, 4), 3)
    checkpoints.close()
    states = engine.to_devices(engine.init(small_lanes(config, seeds)))
    for epoch in range(3):
        states, _ = engine.epoch(states, small_lanes(config, seeds, epoch))
    for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(engine.to_host(states, 4)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


CPU, CARD = widths.Device('cpu', 'cpu', 0), widths.Device('gpu', 'NVIDIA X', 140 * 10**9)


@pytest.mark.parametrize(
    ('said', 'device', 'lanes', 'reason'),
    [
        ('auto', CPU, 1, ''),
        ('6', CPU, 6, ''),
        ('6', CARD, 6, ''),
        ('auto', CARD, 32, 'wider gains little'),
        ('auto', CARD._replace(memory=0), 32, 'wider gains little'),  # unknown
        ('auto', CARD._replace(memory=2 * 10**6), 16, 'as 0.0 GB of memory allow'),
        ('auto', CARD._replace(memory=1), 1, 'as 0.0 GB of memory allow'),
    ],
)
def test_lanes_are_chosen_by_the_device(said, device, lanes, reason, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    config = small_config(engine__lanes=said)
    config.dataset.image_size = 16  # 20 images of 1024 bytes, three times, in half of the memory
    assert widths.choose_lanes(config, 'a', device) == (lanes, reason)


def test_what_did_not_fit_is_remembered_for_its_device_and_programs(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    config = small_config(engine__lanes='auto')
    widths.remember(CARD, 'a', 8)
    widths.remember(CARD, 'b', 4)
    assert widths.choose_lanes(config, 'a', CARD) == (8, 'more did not fit earlier')
    assert widths.choose_lanes(config, 'b', CARD)[0] == 4
    assert widths.choose_lanes(config, 'a', CARD._replace(kind='NVIDIA Y'))[0] == 32
    assert widths.choose_lanes(config, 'c', CARD)[0] == 32
    (tmp_path / 'bhcnet_jax/lanes.json').write_text('{"NVIDIA X": 3}')
    assert widths.choose_lanes(config, 'a', CARD)[0] == 32
    widths.remember(CARD, 'a', 2)
    assert widths.choose_lanes(config, 'a', CARD)[0] == 2
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'bhcnet_jax/lanes.json'))  # no folder can be made there
    widths.remember(CARD, 'a', 1)
    assert widths.choose_lanes(config, 'a', CARD)[0] == 32


def exhaust(*_):
    jax.block_until_ready(jnp.zeros(2**45, jnp.float32))  # 128 TiB


def test_only_a_lack_of_memory_is_told_as_such():
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        exhaust()
    assert engines.is_out_of_memory(caught.value)
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        jax.pure_callback(lambda: 1 / 0, jax.ShapeDtypeStruct((), np.float32)).block_until_ready()
    assert not engines.is_out_of_memory(caught.value)
    assert not engines.is_out_of_memory(MemoryError('RESOURCE_EXHAUSTED'))  # of the host
