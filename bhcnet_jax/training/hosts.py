"""Several processes as one program, on `jax.distributed`; all of it does nothing in a program of one process.

Process 0 has the data, the run directory and the database, and decides. It `tell`s the others each call of the engine
that all have to make; they `listen` and make the same call (`engine.follow`). Nothing else passes between processes but
what the call computes. If a process dies, the others raise ProcessLost or are ended by JAX, see `join`.
"""

import contextlib
import functools
import inspect
import signal
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import serialization
from jax.experimental import multihost_utils

HEARTBEAT_TIMEOUT = 30  # seconds; JAX's own default is 100
PIECE = 2**26  # bytes that are broadcast at a time, since they pass through the memory of every device
ERROR_BYTES = 512  # of an error that the other processes are told


class ProcessLost(ConnectionError):
    """Another process of the program is gone, and this one cannot go on without it; one line."""


def join(coordinator: str = '', processes: int = 0, process: int = -1) -> None:
    """Joins this process to the others of the program, before any other use of JAX.

    coordinator: 'host:port' of process 0; processes: how many there are; process: which this one is. Without them JAX
    asks the launcher: Slurm, Open MPI, or JAX_COORDINATOR_ADDRESS for the first.

    On CPUs a process that dies breaks its connections, and the others raise ProcessLost when they next wait for it:
    0.05 to 2.3 s after SIGKILL. Where no connection breaks (the machine is gone, on GPUs), JAX ends the others
    HEARTBEAT_TIMEOUT after the last sign of life, with lines of its own: 23 and 28 s after SIGSTOP.

    Raises:
      ValueError, RuntimeError: of `jax.distributed.initialize`.
      ProcessLost: a process died meanwhile.
    """
    usual = signal.getsignal(signal.SIGTERM)
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    initialize = jax.distributed.initialize
    if 'heartbeat_timeout_seconds' in inspect.signature(initialize).parameters:  # from JAX 0.7 on
        initialize = functools.partial(initialize, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT)
    initialize(coordinator or None, processes or None, process if process >= 0 else None)
    signal.signal(signal.SIGTERM, usual)  # JAX only notes the signal, and a run could not be ended with it
    # Connects all processes; later, where some are still busy, the first to arrive would wait for 30 s only.
    _broadcast(b' ')
    _errors('')


def tell(message: Any) -> None:
    """Has the other processes `listen` to what process 0 says; in them it does nothing.

    message: dicts, texts, numbers, None and numpy arrays.
    """
    if jax.process_count() > 1 and jax.process_index() == 0:
        _broadcast(serialization.msgpack_serialize(message))


def listen() -> Any:
    """The next message of process 0."""
    return serialization.msgpack_restore(_broadcast(b''))


def dismiss() -> None:
    """Lets the other processes end, once process 0 needs them no more."""
    with contextlib.suppress(ProcessLost):
        tell(None)


def _broadcast(data: bytes) -> bytes:
    """What process 0 calls it with, in all processes."""
    size = int.from_bytes(_broadcast_equal(len(data).to_bytes(8, 'little')), 'little')
    pieces = []
    for start in range(0, size, PIECE):
        length = min(PIECE, size - start)
        room = 1 << (length - 1).bit_length()  # few lengths, since each is compiled
        pieces.append(_broadcast_equal(data[start : start + length].ljust(room, b'\0'))[:length])
    return b''.join(pieces)


def _broadcast_equal(data: bytes) -> bytes:
    """The same for data that are equally long in all processes."""
    with _connected():
        return multihost_utils.broadcast_one_to_all(np.frombuffer(data, np.uint8)).tobytes()


def gather(tree: Any) -> Any:
    """Arrays [D, ...] over the devices of all processes -> numpy, in all processes."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    with _connected():
        return multihost_utils.process_allgather(tree, tiled=True)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What all processes do inside fails in all if it fails in one, so that process 0 can decide how to go on."""
    if jax.process_count() == 1:
        yield
        return
    try:
        yield
    except Exception as error:
        _errors(f'{type(error).__name__}: {error}')
        raise
    for process, text in _errors('').items():
        raise jax.errors.JaxRuntimeError(f'process {process}: {text}')


def _errors(text: str) -> dict[int, str]:
    """The errors of all processes, by process. text: of this one, '' for none."""
    mine = np.frombuffer(text.encode()[:ERROR_BYTES].ljust(ERROR_BYTES, b'\0'), np.uint8)
    with _connected():
        texts = multihost_utils.process_allgather(mine)
    found = (each.tobytes().rstrip(b'\0').decode(errors='replace') for each in texts)
    return {process: text for process, text in enumerate(found) if text}


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    """Raises ProcessLost if other processes cannot be reached."""
    try:
        yield
    except Exception as error:  # JaxRuntimeError or ValueError, whichever part of JAX notices
        mine, count, reason = jax.process_index(), jax.process_count(), str(error).splitlines()[0]
        raise ProcessLost(f'process {mine} of {count} ends, since another one is gone ({reason}).') from error
