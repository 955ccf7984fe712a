"""Trains a batch of lanes, epoch by epoch, as one compiled program; the only pmap in the project.

Lanes are trials that train together. Spread 'lanes' gives each device lanes of its own; spread 'batch' gives every
device a part of each batch of the same lanes and adds the gradients (for data sets that need it).
Leading axes: D devices, L lanes per device.
"""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from bhcnet_jax import steps

AXIS = 'devices'
MEASURED_IMAGES = 4096  # of the epoch that `measure_lanes` times
WORTHWHILE = 1.05  # growth of images/s below which more lanes are not worth their memory


class EpochResult(NamedTuple):
    """Of one epoch, for each lane: sums over training images and the logits of the scored images, on the host."""

    sums: steps.Sums  # float32 [lanes] each
    logits: np.ndarray  # float32 [lanes, T]


class Engine:
    """Compiled programs for lanes of one signature.

    Trees of host arrays have the leading axis [lanes]; states stay on the devices between epochs, as [D, L, ...].

    Args:
      config: a recipe; only what fixes shapes and code paths is read.
      images: uint8 [N, H, W], copied to every device once.
      labels: int32 [N], 1 = hemorrhage.
      trials: how many lanes are to be trained; no device is used that would only train padding.
      lanes: L, of which `choose_lanes` knows how many are best.

    Raises:
      ValueError: the batch cannot be spread evenly over the devices.
    """

    def __init__(self, config: ConfigDict, images: np.ndarray, labels: np.ndarray, trials: int = 1, *, lanes: int = 1):
        self._spreads_batch = config.engine.spread == 'batch'
        self.lanes = lanes
        self.devices = jax.local_devices()
        if not self._spreads_batch:
            self.devices = self.devices[: -(-trials // self.lanes)]
        elif config.batch_size % len(self.devices):
            raise ValueError(
                f'batch_size is {config.batch_size}; to spread a batch over {len(self.devices)} devices it must be '
                f'a multiple of {len(self.devices)}.'
            )
        self.capacity = self.lanes * (1 if self._spreads_batch else len(self.devices))
        self._init = jax.jit(functools.partial(lax.map, steps.make_init(config)))
        copy_to_each = jax.pmap(lambda _, data: data, in_axes=(0, None), devices=self.devices)
        self._data = copy_to_each(np.arange(len(self.devices)), (images, labels))
        self._epoch = jax.pmap(self._make_epoch(config), AXIS, devices=self.devices, donate_argnums=0)
        self._compiled = None

    def _make_epoch(self, config: ConfigDict) -> Callable[..., Any]:
        spread = {'axis': AXIS, 'shards': len(self.devices)} if self._spreads_batch else {}
        train_epoch = steps.make_train_epoch(config, **spread)
        evaluate = steps.make_evaluate(config)

        def epoch(states: steps.TrainState, lanes: steps.Lane, data: tuple[jax.Array, jax.Array]) -> Any:
            images, labels = data

            def one_lane(state_and_lane: tuple[steps.TrainState, steps.Lane]) -> Any:
                state, sums = train_epoch(*state_and_lane, images, labels)
                return state, EpochResult(sums, evaluate(state.params, state_and_lane[1].scored, images))

            return lax.map(one_lane, (states, lanes), batch_size=self.lanes)

        return epoch

    def to_devices(self, tree: Any) -> Any:
        """[lanes, ...] -> [D, L, ...], filled up with copies of the last lane; spread 'batch' repeats it D times."""

        def stack(leaf: np.ndarray) -> np.ndarray:
            if self._spreads_batch:
                return np.broadcast_to(leaf, (len(self.devices), *leaf.shape))
            return leaf.reshape(len(self.devices), self.lanes, *leaf.shape[1:])

        return jax.tree.map(stack, self._fill_up(tree))

    def _fill_up(self, tree: Any) -> Any:
        """[lanes, ...] -> [capacity, ...] with copies of the last lane."""

        def repeat_last(leaf: np.ndarray) -> np.ndarray:
            leaf = np.asarray(leaf)
            return np.concatenate([leaf, np.repeat(leaf[-1:], self.capacity - len(leaf), axis=0)])

        return jax.tree.map(repeat_last, tree)

    def to_host(self, tree: Any, count: int) -> Any:
        """[D, L, ...] -> numpy [count, ...]: the first `count` lanes."""

        def unstack(leaf: jax.Array) -> np.ndarray:
            leaf = np.asarray(leaf)
            leaf = leaf[0] if self._spreads_batch else leaf.reshape(-1, *leaf.shape[2:])
            return leaf[:count]

        return jax.tree.map(unstack, tree)

    def init(self, lanes: steps.Lane) -> steps.TrainState:
        """The states that the lanes start from, numpy [lanes, ...]."""
        states = jax.device_get(self._init(self._fill_up(lanes)))  # filled up, so that it is compiled once
        return jax.tree.map(lambda leaf: leaf[: len(lanes.seed)], states)

    @property
    def is_compiled(self) -> bool:
        """Whether the next epoch can start at once."""
        return self._compiled is not None

    @property
    def device_bytes(self) -> int:
        """Memory that the compiled epoch takes on each device: its arguments and what it computes with."""
        sizes = self._compiled.memory_analysis()
        return sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + sizes.output_size_in_bytes

    def compile(self, lanes: steps.Lane) -> float:
        """Compiles the epoch, once for all epochs of all phases. Returns the seconds that took."""
        states = self.to_devices(jax.tree.map(np.asarray, self.init(lanes)))
        start = time.perf_counter()
        self._compiled = self._epoch.lower(states, self.to_devices(lanes), self._data).compile()
        return time.perf_counter() - start

    def epoch(self, states: Any, lanes: steps.Lane) -> tuple[Any, EpochResult]:
        """Trains every lane for one epoch and evaluates it. `states`, from `to_devices` or an epoch, is used up."""
        if not self.is_compiled:
            self.compile(lanes)
        states, result = self._compiled(states, self.to_devices(lanes), self._data)
        return states, self.to_host(result, len(lanes.seed))


def choose_lanes(
    config: ConfigDict, images: np.ndarray, labels: np.ndarray, lane: steps.Lane, trials: int
) -> tuple[int, dict[int, float]]:
    """How many lanes a device should train together, and the images/s measured for that, by lanes tried.

    Measured on a GPU only, if config.engine.lanes is 'auto'. On a CPU lanes that are computed together are slower than
    one after the other: 64 images/s against 93 (4 lanes, 2 cores).

    lane: of one trial, leaves [1, ...]. trials: how many are to be trained; other arguments: of `Engine`.
    """
    if config.engine.lanes != 'auto':
        return int(config.engine.lanes), {}
    if jax.default_backend() == 'cpu':
        return 1, {}
    return measure_lanes(config, images, labels, lane, trials)


def measure_lanes(
    config: ConfigDict, images: np.ndarray, labels: np.ndarray, lane: steps.Lane, trials: int
) -> tuple[int, dict[int, float]]:
    """Tries 1, 2, 4, ... lanes per device until images/s hardly grow, memory runs out or all trials fit.

    Arguments and result: of `choose_lanes`. An epoch of up to MEASURED_IMAGES is the recipe's own, so that JAX's cache
    has its program when it is compiled for training; a longer one is cut.
    """
    config, lane = _shorten(config, lane)
    rates, best = {}, None
    for lanes in _widths(trials if config.engine.spread == 'batch' else -(-trials // len(jax.local_devices()))):
        try:
            rates[lanes] = _measure(config, images, labels, lane, lanes)
        except jax.errors.JaxRuntimeError as error:
            if best is None or not is_out_of_memory(error):
                raise
            break
        if best is not None and rates[lanes] < WORTHWHILE * rates[best]:
            break
        best = lanes
    return best, rates


def _widths(needed: int) -> Iterator[int]:
    """1, 2, 4, ... and at the end the width at which all trials fit."""
    width = 1
    while width < needed:
        yield width
        width *= 2
    yield needed


def _shorten(config: ConfigDict, lane: steps.Lane) -> tuple[ConfigDict, steps.Lane]:
    """The same with an epoch of MEASURED_IMAGES at most."""
    config = config.copy_and_resolve_references()
    config.augment.samples = min(config.augment.samples, MEASURED_IMAGES)
    return config, lane.replace(
        sources=lane.sources[:, : config.augment.samples],
        learning_rates=lane.learning_rates[:, : steps.steps_per_epoch(config)],
    )


def _measure(config: ConfigDict, images: np.ndarray, labels: np.ndarray, lane: steps.Lane, lanes: int) -> float:
    """Images/s of a device (spread 'batch': of all) in an epoch of as many equal lanes, after one to warm up."""
    engine = Engine(config, images, labels, lanes, lanes=lanes)
    repeated = jax.tree.map(lambda leaf: np.repeat(leaf, lanes, axis=0), lane)
    engine.compile(repeated)
    states, _ = engine.epoch(engine.to_devices(engine.init(repeated)), repeated)
    start = time.perf_counter()
    engine.epoch(states, repeated)
    return lanes * config.augment.samples / (time.perf_counter() - start)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether XLA has raised it because a device's memory did not suffice, at run time or already in compilation."""
    return isinstance(error, jax.errors.JaxRuntimeError) and 'RESOURCE_EXHAUSTED' in str(error)
