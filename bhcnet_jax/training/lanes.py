"""What trials bring to the lanes of an engine, and how many lanes a device trains together."""

import contextlib
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from bhcnet_jax import files, machine
from bhcnet_jax.errors import UserError
from bhcnet_jax.plan import phases, table, trial
from bhcnet_jax.plan.splits import Split
from bhcnet_jax.plan.trial import Trial
from bhcnet_jax.training import steps
from bhcnet_jax.training.engine import Engine

WIDEST = 32  # lanes; an H200 had 102 500 images/s with 16 and 105 300 with 32 (bfloat16)
COPIES = 3  # of an epoch's augmented images, float32, that a lane may take: drawn, changed, in order of the steps
TABLE = 'lanes.json'
UNUSABLE = (OSError, RuntimeError, UserError)  # no table there, no home directory, damaged


class Device(NamedTuple):
    """What is known of a device. platform: cpu, gpu. kind: its name. memory: bytes, 0 if unknown."""

    platform: str
    kind: str
    memory: int


def this_device() -> Device:
    """The first of this process."""
    device = jax.local_devices()[0]
    return Device(device.platform, device.device_kind, (device.memory_stats() or {}).get('bytes_limit', 0))


class Cost(NamedTuple):
    """Of one compiled epoch: seconds to compile, augmented images/s of all its lanes, bytes on each device."""

    compile_seconds: float
    images_per_second: float
    device_bytes: int


def stack(trials: Sequence[Trial], phase_index: int) -> steps.Lane:
    """The lanes of trials of one signature in the first epoch of a phase, numpy [lanes, ...].

    Learning rates are 0, class weights those of the phase's own images.
    """
    configs, count = [each.config for each in trials], len(trials)
    planned = [each.phases[phase_index] for each in trials]
    values = [table.traced(each) for each in configs]
    return steps.Lane(
        seed=np.array([each.seed for each in configs], np.int32),
        phase=np.full(count, phase_index, np.int32),
        epoch=np.zeros(count, np.int32),
        layer=np.full(count, planned[0].layer_of(0), np.int32),
        begins=np.full(count, planned[0].begins_layer(0)),
        sources=np.stack([phase.sources_of(0) for phase in planned]),
        class_weights=np.stack([phases.class_weights(phase.counts) for phase in planned]),
        learning_rates=np.zeros((count, steps.steps_per_epoch(configs[0])), np.float32),
        values={name: np.array([each[name] for each in values], np.float32) for name in values[0]},
        scored=np.stack([_scored(each.split) for each in trials]),
    )


def _scored(split: Split) -> np.ndarray:
    """The images that a trial is scored on, int32 [T]: test part, validation part, then copies of the first image."""
    scored = np.concatenate([split.test, split.val])
    return np.append(scored, np.repeat(scored[:1], trial.scored_count(split) - len(scored)))


def choose_lanes(config: ConfigDict, signature: str, device: Device) -> tuple[int, str]:
    """How many lanes a device trains together at most, and why; '' if the user or the platform says so.

    On a CPU, lanes trained together are slower than one after the other: 64 images/s against 93 (4 lanes, 2 cores). On
    a GPU nothing is measured: WIDEST, or what half of the memory has room for, or what `remember` was told. What does
    not fit all the same is halved when it is met. signature: of the trials.
    """
    if config.engine.lanes != 'auto':
        return int(config.engine.lanes), ''
    if device.platform == 'cpu':
        return 1, ''
    with contextlib.suppress(KeyError, *UNUSABLE):
        return _table()[device.kind][signature], 'more did not fit earlier'
    return _fitting(config, device.memory)


def _fitting(config: ConfigDict, memory: int) -> tuple[int, str]:
    images = config.augment.samples * config.dataset.image_size**2 * 4 * COPIES
    room, lanes = memory // 2 // images if memory else WIDEST, WIDEST
    while lanes > max(room, 1):
        lanes //= 2
    return lanes, 'wider gains little' if lanes == WIDEST else f'as {memory / 1e9:.1f} GB of memory allow'


def remember(device: Device, signature: str, lanes: int) -> None:
    """Keeps in the user's cache how many lanes fit, for the next `choose_lanes`; nothing if it cannot be written."""
    table = {}
    with contextlib.suppress(*UNUSABLE):
        table = _table()
    with contextlib.suppress(*UNUSABLE):
        machine.cache_folder().mkdir(parents=True, exist_ok=True)
        kept = {**table.get(device.kind, {}), signature: lanes}
        files.write_json(machine.cache_folder() / TABLE, {**table, device.kind: kept})


def _table() -> dict[str, dict[str, int]]:
    """Kind of device -> signature -> lanes."""
    return files.read_json(machine.cache_folder() / TABLE, {str: {str: int}}, 'Delete it.')


def shorten(config: ConfigDict, lane: steps.Lane, samples: int) -> tuple[ConfigDict, steps.Lane]:
    """A copy of the config and the lane [1, ...] with an epoch of at most `samples` augmented images."""
    config = ConfigDict(config.to_dict())  # ConfigDict(config) would share its sections
    config.augment.samples = min(config.augment.samples, samples)
    return config, lane.replace(
        sources=lane.sources[:, : config.augment.samples],
        learning_rates=lane.learning_rates[:, : steps.steps_per_epoch(config)],
    )


def measure(
    config: ConfigDict, images: np.ndarray, labels: np.ndarray, lane: steps.Lane, trials: int, lanes: int, spread: str
) -> Cost:
    """Compiles and times an epoch of as many equal lanes as would train together.

    lane: leaves [1, ...]. The other arguments: of `Engine`.
    """
    with contextlib.closing(Engine(config, images, labels, trials, lanes=lanes, spread=spread)) as engine:
        together = jax.tree.map(lambda leaf: np.repeat(leaf, min(trials, engine.capacity), axis=0), lane)
        compile_seconds = engine.compile(together)
        states, _ = engine.epoch(engine.to_devices(engine.init(together)), together)  # warms up
        start = time.perf_counter()
        engine.epoch(states, together)
        rate = len(together.seed) * config.augment.samples / (time.perf_counter() - start)
        return Cost(compile_seconds, rate, engine.device_bytes)
