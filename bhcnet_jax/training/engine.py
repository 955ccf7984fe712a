"""Trains a batch of lanes, epoch by epoch, as one compiled program; the only pmap in the project.

Lanes are trials that train together. Spread 'lanes' gives each device its own lanes. Spread 'batch' gives all devices
the same lanes: each computes a part of every batch of images, and gradients are added. On a CPU every core is a device.
Leading axes: D devices, L lanes per device.

Several processes can be one program (`hosts.py`), with the devices of all: each makes the same calls with the same
arrays, and its devices get their rows of D.
"""

import functools
import json
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import serialization
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from bhcnet_jax import models
from bhcnet_jax.errors import UserError
from bhcnet_jax.plan import phases
from bhcnet_jax.training import hosts, steps

AXIS = 'devices'


class EpochResult(NamedTuple):
    """One epoch of each lane, on the host: sums over training images and the logits of the scored images."""

    sums: steps.Sums  # float32 [lanes] each
    logits: np.ndarray  # float32 [lanes, T]


class Engine:
    """Compiled programs for lanes of one signature.

    Trees of host arrays have the leading axis [lanes]; states stay on the devices between epochs, as [D, L, ...].

    Args:
      config: only what fixes shapes and code paths is read, and no engine setting.
      images: uint8 [N, H, W], copied to every device once.
      labels: int32 [N], 1 = positive.
      trials: how many lanes are to be trained; a device that would only train padding is not used.
      lanes: L; `lanes.choose_lanes` says how many are best.
      spread: 'lanes' or 'batch', what the devices share; see `choose_spread`.

    Raises:
      UserError: the batch cannot be spread evenly over the devices.
    """

    def __init__(
        self,
        config: ConfigDict,
        images: np.ndarray,
        labels: np.ndarray,
        trials: int = 1,
        *,
        lanes: int = 1,
        spread: str = 'lanes',
    ):
        self._spreads_batch = spread == 'batch'
        self._made_of = config, images, labels, trials
        self.lanes, self.spread = lanes, spread
        self.devices = jax.devices()
        if not self._spreads_batch and jax.process_count() == 1:
            self.devices = self.devices[: -(-trials // lanes)]
        elif self._spreads_batch and config.batch_size % len(self.devices):
            raise UserError(
                f'batch_size is {config.batch_size}; to spread a batch over {len(self.devices)} devices it must be '
                f'a multiple of {len(self.devices)}.'
            )
        self.capacity = lanes * (1 if self._spreads_batch else len(self.devices))
        self._init = jax.jit(functools.partial(lax.map, functools.partial(steps.init, config)))
        self._evaluate = jax.jit(self._make_evaluate(config))
        self._epoch = jax.pmap(self._make_epoch(config), AXIS, devices=self.devices, donate_argnums=0)
        self._data = self._compiled = None
        self._compiling: Future[tuple[Any, float]] | None = None

    def _tell(self, call: str, **arguments: Any) -> None:
        """Has the other processes make the same call of this engine."""
        hosts.tell({'engine': id(self), 'call': call, **arguments})

    def _copy_to_each(self, data: Any) -> Any:
        """Arrays [...] -> the same on every device, [D, ...]."""
        if jax.process_count() > 1:
            return self._join(jax.tree.map(lambda leaf: np.broadcast_to(leaf, (len(self.devices), *leaf.shape)), data))
        copy = jax.pmap(lambda _, data: data, in_axes=(0, None), devices=self.devices)
        return copy(np.arange(len(self.devices)), data)

    def _join(self, tree: Any) -> Any:
        """Host arrays [D, ...] -> arrays over the devices of all processes; unchanged if there is one only."""
        if jax.process_count() == 1:
            return tree
        rows = NamedSharding(Mesh(np.array(self.devices), (AXIS,)), PartitionSpec(AXIS))

        def join(leaf: Any) -> jax.Array:
            on_devices = isinstance(leaf, jax.Array)
            return leaf if on_devices else jax.make_array_from_callback(leaf.shape, rows, lambda index: leaf[index])

        return jax.tree.map(join, tree)

    def _make_epoch(self, config: ConfigDict) -> Callable[..., Any]:
        parts = {'axis': AXIS, 'shards': len(self.devices)} if self._spreads_batch else {}

        def epoch(states: steps.TrainState, lanes: steps.Lane, data: tuple[jax.Array, jax.Array]) -> Any:
            images, labels = data

            def one_lane(state_and_lane: tuple[steps.TrainState, steps.Lane]) -> Any:
                state, sums = steps.train_epoch(config, *state_and_lane, images, labels, **parts)
                scored = state_and_lane[1].scored
                # Where nothing is scored: None, since lax.map cannot put empty arrays together.
                logits = steps.evaluate(config, state.average, scored, images) if scored.size else None
                return state, EpochResult(sums, logits)

            # A batch of one would be a vmap over a dimension of 1, which costs transposes and compile time.
            return lax.map(one_lane, (states, lanes), batch_size=None if self.lanes == 1 else self.lanes)

        return epoch

    def _make_evaluate(self, config: ConfigDict) -> Callable[..., Any]:
        def evaluate(averages: Any, scored: jax.Array, images: jax.Array) -> jax.Array:
            return lax.map(lambda lane: steps.evaluate(config, *lane, images), (averages, scored))

        return evaluate

    def _stack(self, tree: Any) -> Any:
        """[lanes, ...] -> [D, L, ...], filled up with copies of the last lane; spread 'batch' repeats them."""

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

    def _unstack(self, tree: Any, count: int) -> Any:
        """[D, L, ...] -> numpy [count, ...]: the first `count` lanes."""

        def unstack(leaf: np.ndarray) -> np.ndarray:
            leaf = leaf[0] if self._spreads_batch else leaf.reshape(-1, *leaf.shape[2:])
            return leaf[:count]

        return jax.tree.map(unstack, hosts.gather(tree))

    def to_devices(self, tree: Any) -> Any:
        """States [lanes, ...] -> [D, L, ...], filled up with copies of the last lane; spread 'batch' repeats them.

        With several processes, one set of states is on the devices at a time, of an engine that is compiled.
        """
        self._tell('to_devices', leaves=jax.tree.leaves(tree))
        return self._stack(tree)

    def to_host(self, states: Any, count: int) -> Any:
        """States [D, L, ...] -> numpy [count, ...]: the first `count` lanes."""
        self._tell('to_host', count=count)
        return self._unstack(states, count)

    def init(self, lanes: steps.Lane) -> steps.TrainState:
        """The states that the lanes start from, numpy [lanes, ...]. UserError: model.weights names no such weights."""
        states = jax.device_get(self._init(self._fill_up(lanes)))  # filled up, so that it is compiled once
        states = jax.tree.map(lambda leaf: leaf[: len(lanes.seed)], states)
        config, _, _, _ = self._made_of
        found = models.initial(config.model, {'params': states.params, 'batch_stats': states.batch_stats})
        return states.replace(**found, average=found)

    def evaluate(self, averages: Any, scored: np.ndarray) -> np.ndarray:
        """Logits of the scored images without any training, float32 [lanes, T]. scored: as in `steps.Lane`.

        averages: as in `steps.TrainState`, numpy [lanes, ...].
        """
        _, images, _, _ = self._made_of
        return np.asarray(self._evaluate(*self._fill_up((averages, scored)), images))[: len(scored)]

    @property
    def is_compiled(self) -> bool:
        """Whether the next epoch can start at once."""
        return self._compiled is not None

    @property
    def is_compiling(self) -> bool:
        """Whether `compile` has something to wait for."""
        return self._compiling is not None

    @property
    def device_bytes(self) -> int:
        """Memory that the compiled epoch takes on each device: its arguments and what it computes with."""
        sizes = self._compiled.memory_analysis()
        return sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + sizes.output_size_in_bytes

    def compile(self, lanes: steps.Lane) -> float:
        """Compiles the epoch, once for all epochs of all phases. Returns the seconds that took."""
        if self._compiling is None:
            self.start_compiling(lanes)
        compiling, self._compiling = self._compiling, None
        self._compiled, seconds = compiling.result()
        return seconds

    def start_compiling(self, lanes: steps.Lane) -> None:
        """Has XLA begin in a thread, for other work meanwhile; `compile` waits for it, and raises what it raised."""
        config, images, labels, trials = self._made_of
        self._tell(
            'compile',
            config=json.dumps(config.to_dict()),
            images=images,
            labels=labels,
            trials=trials,
            width=self.lanes,
            spread=self.spread,
            lanes=serialization.to_state_dict(lanes),
        )
        thread = ThreadPoolExecutor(1)
        with hosts.together():
            self._data = self._copy_to_each((images, labels))
            shapes = jax.eval_shape(self._init, self._fill_up(lanes))
            states = self._stack(jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), shapes))
            self.structure = jax.tree.structure(states)
            start = time.perf_counter()
            lowered = self._epoch.lower(self._join(states), self._join(self._stack(lanes)), self._data)
            self._compiling = thread.submit(lambda: (lowered.compile(), time.perf_counter() - start))
            if jax.process_count() > 1:
                self._compiling.result()  # so that all processes know whether it failed in one
        thread.shutdown(wait=False)

    def epoch(self, states: Any, lanes: steps.Lane) -> tuple[Any, EpochResult]:
        """Trains every lane for one epoch and evaluates it. `states`, from `to_devices` or an epoch, is used up."""
        if not self.is_compiled:
            self.compile(lanes)
        self._tell('epoch', lanes=serialization.to_state_dict(lanes))
        with hosts.together():
            states, result = self._compiled(self._join(states), self._join(self._stack(lanes)), self._data)
            jax.block_until_ready(result)
        sums, logits = self._unstack(result, len(lanes.seed))
        return states, EpochResult(sums, np.zeros(lanes.scored.shape, np.float32) if logits is None else logits)

    def close(self) -> None:
        """Has the other processes forget the engine; in this one that happens once nothing refers to it."""
        self._tell('close')


def choose_spread(config: ConfigDict, alone: bool) -> str:
    """What the devices share, 'lanes' or 'batch': what engine.spread says; if that is 'auto', the fastest.

    The fastest is 'lanes', but on a CPU the batch of a trial alone if it can be cut evenly. alone: there is no sweep;
    with one, every shard must choose alike.
    """
    if config.engine.spread != 'auto':
        return config.engine.spread
    can_share = alone and jax.default_backend() == 'cpu' and config.batch_size % jax.device_count() == 0
    return 'batch' if can_share else 'lanes'


def spread_of(config: ConfigDict, usual: str) -> str:
    """What devices share in training what a config says: `usual`, but of drawn heads as if that were alone.

    All trials of a sweep may wait for one pre-training.
    """
    return choose_spread(config, alone=True) if phases.is_pretraining(config) else usual


def is_out_of_memory(error: BaseException) -> bool:
    """Whether XLA raised it for lack of memory on a device, at run time or while compiling."""
    return isinstance(error, jax.errors.JaxRuntimeError) and 'RESOURCE_EXHAUSTED' in str(error)


def follow() -> None:
    """Makes the calls of process 0, until it dismisses this process. SIGINT and SIGTERM are for process 0 to heed.

    Raises:
      ProcessLost: another process is gone.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    engines, states = {}, None
    while (order := hosts.listen()) is not None:
        try:
            states = _make_call(engines, states, **order)
        except hosts.ProcessLost:
            raise
        except Exception as error:  # process 0 has it too, and decides how to go on
            print(f'process {jax.process_index()}: {type(error).__name__}: {error}', file=sys.stderr, flush=True)
            states = None


def _make_call(engines: dict[int, Engine], states: Any, engine: int, call: str, **arguments: Any) -> Any:
    """Makes a call of one of the engines. Returns the states that are on the devices then."""
    if call == 'compile':
        lanes, config = steps.Lane(**arguments['lanes']), ConfigDict(json.loads(arguments['config']))
        made_of = config, arguments['images'], arguments['labels'], arguments['trials']
        engines[engine] = Engine(*made_of, lanes=arguments['width'], spread=arguments['spread'])
        engines[engine].compile(lanes)
    elif call == 'to_devices':
        states = engines[engine].to_devices(jax.tree.unflatten(engines[engine].structure, arguments['leaves']))
    elif call == 'epoch':
        states, _ = engines[engine].epoch(states, steps.Lane(**arguments['lanes']))
    elif call == 'to_host':
        engines[engine].to_host(states, arguments['count'])
    elif call == 'close':
        engines.pop(engine, None)
    return states
