"""What trials bring to the lanes of an engine, and how many lanes a device trains together."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from bhcnet_jax.plan import phases, table, trial
from bhcnet_jax.plan.splits import Split
from bhcnet_jax.plan.trial import Trial
from bhcnet_jax.training import steps
from bhcnet_jax.training.engine import Engine, is_out_of_memory

MEASURED_IMAGES = 4096  # of the epoch that `measure_lanes` times
WORTHWHILE = 1.05  # growth of images/s below which more lanes are not worth their memory


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


def choose_lanes(
    config: ConfigDict, images: np.ndarray, labels: np.ndarray, lane: steps.Lane, trials: int, spread: str
) -> tuple[int, dict[int, float]]:
    """How many lanes a device should train together, and the measured images/s by number of lanes.

    Measures only on a GPU, and only if config.engine.lanes is 'auto'. On a CPU, lanes trained together are slower than
    one after the other: 64 images/s against 93 (4 lanes, 2 cores).

    lane: of one trial, leaves [1, ...]. trials: how many are to be trained. The other arguments: of `Engine`.
    """
    if config.engine.lanes != 'auto':
        return int(config.engine.lanes), {}
    if jax.default_backend() == 'cpu':
        return 1, {}
    return measure_lanes(config, images, labels, lane, trials, spread)


def measure_lanes(
    config: ConfigDict, images: np.ndarray, labels: np.ndarray, lane: steps.Lane, trials: int, spread: str
) -> tuple[int, dict[int, float]]:
    """Tries 1, 2, 4, ... lanes per device until images/s hardly grow, memory runs out or all trials fit.

    Arguments and result: of `choose_lanes`. An epoch longer than MEASURED_IMAGES is cut; a shorter one is the recipe's
    own, and JAX's cache then has its program for the training.
    """
    config, lane = shorten(config, lane, MEASURED_IMAGES)
    rates, best = {}, None
    for lanes in _widths(trials if spread == 'batch' else -(-trials // len(jax.devices()))):
        try:
            rates[lanes] = measure(config, images, labels, lane, lanes, lanes, spread).images_per_second
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
