"""Trains a batch of lanes, epoch by epoch, as one compiled program; the only pmap in the project.

Lanes are trials that train together. Spread 'lanes' gives each device lanes of its own; spread 'batch' gives every
device a part of each batch of the same lanes and adds the gradients (for data sets that need it).
Leading axes: D devices, L lanes per device.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from bhcnet_jax import steps

AXIS = 'devices'


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

    Raises:
      ValueError: the batch cannot be spread evenly over the devices.
    """

    def __init__(self, config: ConfigDict, images: np.ndarray, labels: np.ndarray, trials: int = 1, lanes: int = 1):
        self._spreads_batch = config.engine.spread == 'batch'
        self._lanes_per_device = lanes
        self.devices = jax.local_devices()
        if not self._spreads_batch:
            self.devices = self.devices[: -(-trials // self._lanes_per_device)]
        elif config.batch_size % len(self.devices):
            raise ValueError(
                f'batch_size is {config.batch_size}; to spread a batch over {len(self.devices)} devices it must be '
                f'a multiple of {len(self.devices)}.'
            )
        self.capacity = self._lanes_per_device * (1 if self._spreads_batch else len(self.devices))
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

            return lax.map(one_lane, (states, lanes), batch_size=self._lanes_per_device)

        return epoch

    def to_devices(self, tree: Any) -> Any:
        """[lanes, ...] -> [D, L, ...], filled up with copies of the last lane; spread 'batch' repeats it D times."""

        def stack(leaf: np.ndarray) -> np.ndarray:
            leaf = np.asarray(leaf)
            leaf = np.concatenate([leaf, np.repeat(leaf[-1:], self.capacity - len(leaf), axis=0)])
            if self._spreads_batch:
                return np.broadcast_to(leaf, (len(self.devices), *leaf.shape))
            return leaf.reshape(len(self.devices), self._lanes_per_device, *leaf.shape[1:])

        return jax.tree.map(stack, tree)

    def to_host(self, tree: Any, count: int) -> Any:
        """[D, L, ...] -> numpy [count, ...]: the first `count` lanes."""

        def unstack(leaf: jax.Array) -> np.ndarray:
            leaf = np.asarray(leaf)
            leaf = leaf[0] if self._spreads_batch else leaf.reshape(-1, *leaf.shape[2:])
            return leaf[:count]

        return jax.tree.map(unstack, tree)

    @property
    def settings(self):
        return f'devices {len(self.devices)}, lanes {self._lanes_per_device}'

    @property
    def device_bytes(self):
        a = self._compiled.memory_analysis()
        return a.temp_size_in_bytes + a.argument_size_in_bytes

    @classmethod
    def of_trials(cls, config, images, labels, count):
        return cls(config, images, labels, count, 1)

    def init(self, lanes: steps.Lane) -> steps.TrainState:
        """The states that the lanes start from, numpy [lanes, ...]."""
        count = len(lanes.seed)
        lanes = jax.tree.map(lambda leaf: np.concatenate([leaf, np.repeat(leaf[-1:], self.capacity - count, axis=0)]), lanes)
        return jax.tree.map(lambda leaf: leaf[:count], jax.device_get(self._init(lanes)))

    @property
    def is_compiled(self) -> bool:
        """Whether the next epoch can start at once."""
        return self._compiled is not None

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


def is_out_of_memory(error):
    return False
