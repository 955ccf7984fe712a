"""What trials bring to the lanes of an engine, and how many lanes a device trains together."""

import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from bhcnet_jax.plan import phases, trial
from bhcnet_jax.plan.splits import Split
from bhcnet_jax.plan.trial import Trial
from bhcnet_jax.training import steps
from bhcnet_jax.training.engine import Engine, is_out_of_memory

MEASURED_IMAGES = 4096  # of the epoch that `measure_lanes` times
WORTHWHILE = 1.05  # growth of images/s below which more lanes are not worth their memory


def stack(trials: Sequence[Trial], phase_index: int) -> steps.Lane:
    """What trials of one signature bring to a phase, numpy [lanes, ...]: at its first epoch, at learning rate 0.

    The class weights are those of the phase's own images.
    """
    configs, count = [each.config for each in trials], len(trials)
    planned = [each.phases[phase_index] for each in trials]
    strengths_of = [trial.strengths(each) for each in configs]
    return steps.Lane(
        seed=np.array([each.seed for each in configs], np.int32),
        phase=np.full(count, phase_index, np.int32),
        epoch=np.zeros(count, np.int32),
        sources=np.stack([phase.sources_of(0) for phase in planned]),
        class_weights=np.stack([phases.class_weights(phase.counts) for phase in planned]),
        learning_rates=np.zeros((count, steps.steps_per_epoch(configs[0])), np.float32),
        weight_decay=np.array([each.optimizer.weight_decay for each in configs], np.float32),
        ema=np.array([each.optimizer.ema for each in configs], np.float32),
        label_smoothing=np.array([each.optimizer.label_smoothing for each in configs], np.float32),
        dropout=np.array([each.model.dropout for each in configs], np.float32),
        strengths={
            name: np.array([each[name] for each in strengths_of], np.float32) for name in strengths_of[0]
        },
        scored=np.stack([_scored(each.split) for each in trials]),
    )


def _scored(split: Split) -> np.ndarray:
    """The images that a trial is scored on, test part first; filled up with the first of them. int32 [T]."""
    scored = np.concatenate([split.test, split.val])
    return np.append(scored, np.repeat(scored[:1], trial.scored_count(split) - len(scored)))


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
    for lanes in _widths(trials if config.engine.spread == 'batch' else -(-trials // len(jax.devices()))):
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
