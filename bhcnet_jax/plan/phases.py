"""The phases of a trial: which images each trains on, and what one hands over to the next (paper V.B).

Phase 'balanced' trains on as many images of each class (the paper's 90 + 90), phase 'imbalanced' on all negatives
and on `positives` positives, some of them twice (90 + 153). Both enlarge their images to M augmented ones.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

NAMES = ('balanced', 'imbalanced')


class Phase(NamedTuple):
    """One phase of one trial: its place in the trial, images per class before augmentation, sources int32 [M]."""

    name: str
    index: int
    epochs: int
    counts: tuple[int, int]  # negatives, positives
    sources: np.ndarray  # index of the image that each augmented image is made from


def plan(config: ConfigDict, labels: np.ndarray, train: np.ndarray) -> tuple[Phase, ...]:
    """The phases of a trial, a pure function of the arguments.

    labels: int [N], 1 = positive. train: int, indices of the training part.
    ValueError if `imbalanced.positives` is smaller than the number of positives in the training part.
    """
    by_class = [train[labels[train] == label] for label in (0, 1)]
    present = [len(indices) for indices in by_class]
    planned = []
    for index, name in enumerate(config.phases):
        counts = (max(present), max(present))
        if name == 'imbalanced':
            counts = (present[0], config.imbalanced.positives)
            if counts[1] < present[1]:
                raise ValueError(
                    f'imbalanced.positives is {counts[1]}, but the training part has {present[1]} positives: '
                    'expected at least as many, since some are drawn again and none is dropped.'
                )
        # Raw words of PCG64 are the same in every version of numpy (NEP 19); Generator's methods need not be.
        bits = np.random.PCG64([config.seed, index])
        pools = [_draw(indices, count, bits) for indices, count in zip(by_class, counts, strict=True)]
        sources = _enlarge(pools, config.augment.samples)
        planned.append(Phase(name, index, config[name].epochs, counts, sources))
    return tuple(planned)


def _draw(indices: np.ndarray, count: int, bits: np.random.BitGenerator) -> np.ndarray:
    """`count` of the indices in random order; none is drawn once more before every other has been."""
    rounds = -(-count // len(indices))
    return np.concatenate([indices[np.argsort(bits.random_raw(len(indices)))] for _ in range(rounds)])[:count]


def _enlarge(pools: list[np.ndarray], samples: int) -> np.ndarray:
    """Repeats the images of each class in turn until there are `samples`, in the proportion of the pools."""
    positives = round(samples * len(pools[1]) / sum(map(len, pools)))
    shares = (samples - positives, positives)
    parts = [np.resize(pool, share) for pool, share in zip(pools, shares, strict=True)]
    return np.concatenate(parts).astype(np.int32)


def class_weights(counts: tuple[int, int]) -> np.ndarray:
    """n / (2 n_class), so that both classes weigh the same in the loss; float32 [2]."""
    return (sum(counts) / (2 * np.array(counts))).astype(np.float32)


def begin(config: ConfigDict, name: str, computed: np.ndarray, carried: dict[str, Any]) -> dict[str, Any]:
    """What a phase after the first starts from: the weights of the phase before, and more as its section says.

    computed: float32 [lanes, 2], class weights of the phase's own images. carried: entries 'state' (TrainState) and
    'class_weights' of the phase before, leading axis [lanes]. Returns the same two entries.
    """
    section, state, weights = config[name], carried['state'], carried['class_weights']
    if section.class_weights == 'computed':
        weights = computed
    if section.optimizer_state == 'fresh':
        # Adam starts from zero moments and a zero count.
        state = state.replace(opt_state=jax.tree.map(np.zeros_like, state.opt_state))
    return {'state': state, 'class_weights': weights}
