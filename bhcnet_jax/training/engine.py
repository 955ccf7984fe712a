"""Trains a batch of lanes, epoch by epoch, as one compiled program; the only pmap in the project.

Lanes are trials that train together. Spread 'lanes' gives each device its own lanes. Spread 'batch' gives all devices
the same lanes: each computes a part of every batch of images, and gradients are added. On a CPU every core is a device.
Leading axes: D devices, L lanes per device.

Several processes can be one program, with the devices of all. Process 0 leads: it alone has data, run directory and
database, and calls the engine as if it were by itself. The others `follow`: each mirrors the leader's calls on its own
devices, with the rows of D that are theirs. Commands, arrays and results go over a connection of Python's
multiprocessing, sums of gradients over JAX's collectives. A connection ends with either of its processes, so none waits
for one that is gone.
"""

import contextlib
import functools
import json
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Client, Connection, Listener
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from bhcnet_jax.errors import UserError
from bhcnet_jax.training import steps

AXIS = 'devices'
_followers: list[Connection] = []  # the leader's connections to the processes 1, 2, ...
_leader: list[Connection] = []  # a follower's one connection


class ProcessLost(ConnectionError):
    """Another process of the program is gone, and this one cannot go on without it; one line."""


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
      lanes: L; `choose_lanes` says how many are best.
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
        self.lanes, self.spread = lanes, spread
        self.devices = sorted(jax.devices(), key=lambda device: device.process_index)
        if not self._spreads_batch:
            self.devices = self.devices[: -(-trials // lanes)]
        elif config.batch_size % len(self.devices):
            raise UserError(
                f'batch_size is {config.batch_size}; to spread a batch over {len(self.devices)} devices it must be '
                f'a multiple of {len(self.devices)}.'
            )
        self.capacity = lanes * (1 if self._spreads_batch else len(self.devices))
        processes = [device.process_index for device in self.devices]
        self._shares = [processes.count(process) for process in sorted(set(processes))]  # devices of each process
        self._init = jax.jit(functools.partial(lax.map, functools.partial(steps.init, config)))
        self._epoch = jax.pmap(self._make_epoch(config), AXIS, devices=self.devices, donate_argnums=0)
        self._compiled = None
        with self._others('make', [(config, images, labels, trials, lanes, spread)] * len(self._shares)):
            self._data = self._copy_to_each((images, labels))

    @contextlib.contextmanager
    def _others(self, command: str, parts: Sequence[Any]) -> Iterator[list[Any]]:
        """Has the followers run a command, each on its part, beside what this process does inside.

        parts: of all processes, this one's first. Yields the list of their replies, filled when the context ends.
        """
        others = list(enumerate(_followers[: len(parts) - 1], start=1))
        for process, connection in others:
            _send(connection, process, (id(self), command, parts[process]))
        replies = []
        try:
            yield replies
        finally:  # after an error here too: if one of them is gone, that explains it
            answers = [_receive(connection, process) for process, connection in others]
        for result, out_of_memory in answers:
            if out_of_memory:
                raise jax.errors.JaxRuntimeError(out_of_memory)
            replies.append(result)

    def _copy_to_each(self, data: Any) -> Any:
        """Arrays [...] -> the same on every device, [D, ...]."""
        if len(self._shares) == 1:
            copy = jax.pmap(lambda _, data: data, in_axes=(0, None), devices=self.devices)
            return copy(np.arange(len(self.devices)), data)
        here = sum(device.process_index == jax.process_index() for device in self.devices)
        return self._join(jax.tree.map(lambda leaf: np.broadcast_to(leaf, (here, *leaf.shape)), data))

    def _join(self, tree: Any) -> Any:
        """This process's rows of D -> arrays [D, ...] of all processes; unchanged if there is one only."""
        if len(self._shares) == 1:
            return tree
        rows = NamedSharding(Mesh(np.array(self.devices), (AXIS,)), PartitionSpec(AXIS))

        def join(leaf: Any) -> jax.Array:
            return leaf if isinstance(leaf, jax.Array) else jax.make_array_from_process_local_data(rows, leaf)

        return jax.tree.map(join, tree)

    def _rows(self, tree: Any) -> Any:
        """Arrays [D, ...] -> this process's rows, numpy."""

        def rows(leaf: jax.Array) -> np.ndarray:
            if leaf.is_fully_addressable:
                return np.asarray(leaf)
            shards = sorted(leaf.addressable_shards, key=lambda shard: shard.index[0].start)
            return np.concatenate([shard.data for shard in shards])

        return jax.tree.map(rows, tree)

    def _make_epoch(self, config: ConfigDict) -> Callable[..., Any]:
        parts = {'axis': AXIS, 'shards': len(self.devices)} if self._spreads_batch else {}

        def epoch(states: steps.TrainState, lanes: steps.Lane, data: tuple[jax.Array, jax.Array]) -> Any:
            images, labels = data

            def one_lane(state_and_lane: tuple[steps.TrainState, steps.Lane]) -> Any:
                state, sums = steps.train_epoch(config, *state_and_lane, images, labels, **parts)
                return state, EpochResult(sums, steps.evaluate(config, state.average, state_and_lane[1].scored, images))

            # A batch of one would be a vmap over a dimension of 1, which costs transposes and compile time.
            return lax.map(one_lane, (states, lanes), batch_size=None if self.lanes == 1 else self.lanes)

        return epoch

    def _parts(self, tree: Any) -> list[Any]:
        """[lanes, ...] -> for each process its rows of [D, L, ...]."""

        def stack(leaf: np.ndarray) -> np.ndarray:
            if self._spreads_batch:
                return np.broadcast_to(leaf, (len(self.devices), *leaf.shape))
            return leaf.reshape(len(self.devices), self.lanes, *leaf.shape[1:])

        whole, ends = jax.tree.map(stack, self._fill_up(tree)), np.cumsum(self._shares)
        return [
            jax.tree.map(lambda leaf, rows=slice(end - share, end): leaf[rows], whole)
            for share, end in zip(self._shares, ends, strict=True)
        ]

    def _fill_up(self, tree: Any) -> Any:
        """[lanes, ...] -> [capacity, ...] with copies of the last lane."""

        def repeat_last(leaf: np.ndarray) -> np.ndarray:
            leaf = np.asarray(leaf)
            return np.concatenate([leaf, np.repeat(leaf[-1:], self.capacity - len(leaf), axis=0)])

        return jax.tree.map(repeat_last, tree)

    def _lanes(self, parts: Sequence[Any], count: int) -> Any:
        """Rows of [D, L, ...] of each process -> numpy [count, ...]: the first `count` lanes."""

        def unstack(*leaves: np.ndarray) -> np.ndarray:
            leaf = np.concatenate(leaves) if len(leaves) > 1 else leaves[0]
            leaf = leaf[0] if self._spreads_batch else leaf.reshape(-1, *leaf.shape[2:])
            return leaf[:count]

        return jax.tree.map(unstack, *parts)

    def to_devices(self, tree: Any) -> Any:
        """States [lanes, ...] -> [D, L, ...], padded with copies of the last lane; spread 'batch' repeats them.

        With several processes, one set of states is on the devices at a time.
        """
        parts = self._parts(tree)
        with self._others('put', parts):
            return parts[0]

    def to_host(self, states: Any, count: int) -> Any:
        """States [D, L, ...] -> numpy [count, ...]: the first `count` lanes."""
        with self._others('get', [None] * len(self._shares)) as theirs:
            mine = self._rows(states)
        return self._lanes([mine, *theirs], count)

    def init(self, lanes: steps.Lane) -> steps.TrainState:
        """The states that the lanes start from, numpy [lanes, ...]."""
        states = jax.device_get(self._init(self._fill_up(lanes)))  # padded, so that it is compiled once
        return jax.tree.map(lambda leaf: leaf[: len(lanes.seed)], states)

    @property
    def is_compiled(self) -> bool:
        """Whether the next epoch can start at once."""
        return self._compiled is not None

    @property
    def device_bytes(self) -> int:
        """Memory of the compiled epoch on each device: arguments, results and temporary values."""
        sizes = self._compiled.memory_analysis()
        return sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + sizes.output_size_in_bytes

    def compile(self, lanes: steps.Lane) -> float:
        """Compiles the epoch, once for all epochs of all phases. Returns the seconds taken."""
        states = self.to_devices(jax.tree.map(np.asarray, self.init(lanes)))
        parts = self._parts(lanes)
        start = time.perf_counter()
        with self._others('compile', parts):
            self._compile_part(states, parts[0])
        return time.perf_counter() - start

    def epoch(self, states: Any, lanes: steps.Lane) -> tuple[Any, EpochResult]:
        """Trains every lane for one epoch and evaluates it. `states`, from `to_devices` or an epoch, is used up."""
        if not self.is_compiled:
            self.compile(lanes)
        parts = self._parts(lanes)
        with self._others('epoch', parts) as theirs:
            states, mine = self._epoch_part(states, parts[0])
        return states, self._lanes([mine, *theirs], len(lanes.seed))

    def _compile_part(self, states: Any, lanes: steps.Lane) -> None:
        self._compiled = self._epoch.lower(self._join(states), self._join(lanes), self._data).compile()

    def _epoch_part(self, states: Any, lanes: steps.Lane) -> tuple[Any, EpochResult]:
        """Of this process's rows: states on the devices, the result as numpy."""
        states, result = self._compiled(self._join(states), self._join(lanes), self._data)
        return states, self._rows(result)


def choose_spread(config: ConfigDict, alone: bool) -> str:
    """What the devices share, 'lanes' or 'batch': what engine.spread says; if that is 'auto', the fastest.

    The fastest is 'lanes', but on a CPU the batch of a trial alone if it can be cut evenly. Batch normalisation never
    spreads its batch unless asked to: each device has the moments of its own part. alone: there is no sweep; with one,
    every shard must choose alike.
    """
    if config.engine.spread != 'auto':
        return config.engine.spread
    can = config.batch_size % jax.device_count() == 0 and config.model.norm != 'batch'
    return 'batch' if alone and can and jax.default_backend() == 'cpu' else 'lanes'


def is_out_of_memory(error: BaseException) -> bool:
    """Whether XLA raised it for lack of memory on a device, at run time or while compiling."""
    return isinstance(error, jax.errors.JaxRuntimeError) and 'RESOURCE_EXHAUSTED' in str(error)


def start(coordinator: str = '', processes: int = 0, process: int = -1) -> bool:
    """Joins this process to the others of the program, before any other use of JAX. Returns whether it leads.

    coordinator: 'host:port' of process 0; processes: how many there are; process: which this one is. Without them JAX
    asks the launcher: Slurm, Open MPI, or JAX_COORDINATOR_ADDRESS for the first.

    Raises:
      ValueError, RuntimeError: of `jax.distributed.initialize`.
      ProcessLost: process 0 cannot be reached.
    """
    usual = signal.getsignal(signal.SIGTERM)
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.distributed.initialize(coordinator or None, processes or None, process if process >= 0 else None)
    signal.signal(signal.SIGTERM, usual)  # JAX only notes the signal, and a run could not be ended with it
    leads = jax.process_index() == 0
    if not leads:
        host, port, key = json.loads(_from_leader(b''))
        try:
            _leader.append(Client((host, port), authkey=bytes.fromhex(key)))
        except OSError as error:
            raise ProcessLost(f'process 0 cannot be reached at {host}:{port}: {error.strerror}.') from error
        _leader[0].send(jax.process_index())
        return False
    address = coordinator or os.environ.get('JAX_COORDINATOR_ADDRESS', '')
    host, key = address.rpartition(':')[0] or socket.gethostname(), secrets.token_bytes(32)
    with Listener(('', 0), backlog=jax.process_count(), authkey=key) as listener:
        _from_leader(json.dumps([host, listener.address[1], key.hex()]).encode())
        _followers.extend(_accept(listener))
    return True


def _from_leader(message: bytes) -> bytes:
    """What the leader has said, in all processes."""
    padded = np.frombuffer(message.ljust(1024), np.uint8)  # equally long in all processes
    return multihost_utils.broadcast_one_to_all(padded).tobytes()


def dismiss() -> None:
    """Lets the followers end, once the leader needs them no more."""
    while _followers:
        with contextlib.suppress(OSError), _followers.pop() as connection:
            connection.send(None)


def follow() -> None:
    """Mirrors the leader's calls until it dismisses this process. SIGINT and SIGTERM are for the leader to heed.

    Raises:
      ProcessLost: the leader is gone.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    engines, states = {}, None
    while (command := _receive(_leader[0], 0)) is not None:
        try:
            states, result = _mirror(engines, states, *command)
            reply = result, None
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            states, reply = None, (None, str(error))
        _send(_leader[0], 0, reply)


def _mirror(engines: dict[int, Engine], states: Any, number: int, command: str, part: Any) -> tuple[Any, Any]:
    """Does in a follower what the leader does in `Engine._others`. Returns this process's states and the reply."""
    if command == 'make':
        *arguments, lanes, spread = part
        engines[number] = Engine(*arguments, lanes=lanes, spread=spread)
        return None, None
    if command == 'put':
        return part, None
    if command == 'compile':
        return states, engines[number]._compile_part(states, part)
    if command == 'epoch':
        return engines[number]._epoch_part(states, part)
    return states, engines[number]._rows(states)


def _accept(listener: Listener) -> list[Connection]:
    """The connections of all followers, in the order of their processes."""
    connections = [listener.accept() for _ in range(jax.process_count() - 1)]
    return [connection for _, connection in sorted((each.recv(), each) for each in connections)]


def _send(connection: Connection, process: int, message: Any) -> None:
    try:
        connection.send(message)
    except OSError as error:
        raise _lost(process) from error


def _receive(connection: Connection, process: int) -> Any:
    try:
        return connection.recv()
    except (EOFError, OSError) as error:
        raise _lost(process) from error


def _lost(process: int) -> ProcessLost:
    return ProcessLost(f'process {process} of {jax.process_count()} is gone; process {jax.process_index()} ends too.')
