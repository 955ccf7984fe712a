"""The phases of a trial: which images each trains on, and what one hands over to the next (paper V.B).

Phase 'balanced' trains on as many images of each class (the paper's 90 + 90), phase 'imbalanced' on all negatives
and on `positives` positives, some of them twice (90 + 153). Both enlarge their images to M augmented ones.

Phase 'phantom' trains on heads that are drawn as they are needed, and on no image of the set. So it depends on neither
the data nor the split: it is a training of its own, the pre-training, from which all trials go on that have the same.

Phase 'autoencoder' trains on the training images without their labels, one layer of the network after the other.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from bhcnet_jax import models
from bhcnet_jax.datasets.phantom.version import drawing_version

DRAWN = 'phantom'  # always the first
UNLABELLED = 'autoencoder'  # always the first of several
NAMES = ('balanced', 'imbalanced')  # on images of the set and their labels
PAPER_SET = [100, 100]  # negatives, positives
PAPER_POSITIVES = 153  # as in configs/base.py
POSITIVE_SHARE = 1.7  # of the positives in the training part, the paper's 153 of 90

Config = ConfigDict | Mapping[str, Any]


class Phase(NamedTuple):
    """One phase of one trial.

    Attributes:
      name: DRAWN, UNLABELLED or one of NAMES.
      index: its place in the trial.
      epochs: how many it has.
      counts: images per class before augmentation, negatives and positives; (1, 1) where no class is told apart.
      pools: int32, indices of the images of each class in random order, `counts` of them; empty if drawn. Without
        labels all are in the first.
      shares: how many images of each class an epoch has; their sum is M.
      is_fresh: whether each epoch goes on in the pools where the one before ended; else all have the same images.
      layers: how many learn one after the other, each by itself; 0: all together.
    """

    name: str
    index: int
    epochs: int
    counts: tuple[int, int]
    pools: tuple[np.ndarray, np.ndarray]
    shares: tuple[int, int]
    is_fresh: bool
    layers: int = 0

    @property
    def samples(self) -> int:
        """M, augmented images per epoch."""
        return sum(self.shares)

    def sources_of(self, epoch: int) -> np.ndarray:
        """The image that each augmented image of an epoch (0-based) is made from, int32 [M]; [0] if heads are drawn."""
        if self.name == DRAWN:
            return np.zeros(0, np.int32)
        first = epoch if self.is_fresh else 0
        parts = [
            pool[np.arange(first * share, (first + 1) * share) % len(pool)]
            for pool, share in zip(self.pools, self.shares, strict=True)
        ]
        return np.concatenate(parts)

    @property
    def parts(self) -> tuple[int, ...]:
        """The epochs of each layer that learns by itself, as equal as can be; of all together if none does."""
        count = max(1, self.layers)
        return tuple((self.epochs + place) // count for place in reversed(range(count)))

    def layer_of(self, epoch: int) -> int:
        """Which layer learns by itself in an epoch (0-based), 1 for the first; 0: all learn together."""
        ends = np.cumsum(self.parts)
        return 1 + int(np.searchsorted(ends, epoch, 'right')) if self.layers else 0

    def begins_layer(self, epoch: int) -> bool:
        """Whether an epoch (0-based) is the first of a layer that learns by itself."""
        return self.layers > 0 and (epoch == 0 or self.layer_of(epoch) > self.layer_of(epoch - 1))

    @property
    def sources(self) -> np.ndarray:
        """`sources_of` all epochs, one after the other; of one epoch if all have the same. int32 [M or epochs * M]."""
        return np.concatenate([self.sources_of(epoch) for epoch in range(self.epochs if self.is_fresh else 1)])

    @property
    def used(self) -> int:
        """How many different images it trains on in all epochs together."""
        epochs = self.epochs if self.is_fresh else 1
        parts = [pool[: epochs * share] for pool, share in zip(self.pools, self.shares, strict=True)]
        return len(np.unique(np.concatenate(parts)))


def plan(config: Config, labels: np.ndarray, train: np.ndarray) -> tuple[Phase, ...]:
    """The phases of a trial, a pure function of the arguments.

    labels: int [N], 1 = positive. train: int, indices of the training part, with both classes.
    ValueError if `imbalanced.positives` is smaller than the number of positives in the training part.
    """
    by_class = [train[labels[train] == label].astype(np.int32) for label in (0, 1)]
    present, samples = _present(labels, train), epoch_samples(config, labels, train)
    planned = []
    for index, name in enumerate(config['phases']):
        if name == DRAWN:
            planned.append(drawn(config))
            continue
        if name == UNLABELLED:
            planned.append(_unlabelled(config, train, samples))
            continue
        counts = _counts(config, name, labels, present)
        if counts[1] < present[1]:
            raise ValueError(
                f'imbalanced.positives is {counts[1]}, but the training part has {present[1]} positives: '
                'expected at least as many, since some are drawn again and none is dropped.'
            )
        # Raw words of PCG64 are the same in every version of numpy (NEP 19); Generator's methods need not be.
        bits = np.random.PCG64([config['seed'], index])
        pools = tuple(_draw(indices, count, bits) for indices, count in zip(by_class, counts, strict=True))
        shares = _shares(counts, samples)
        is_fresh = _is_fresh(config, shares, present)
        planned.append(Phase(name, index, config[name]['epochs'], counts, pools, shares, is_fresh))
    return tuple(planned)


def drawn(config: Config) -> Phase:
    """The phase of drawn heads. Both classes are equally likely, so that class weights are 1."""
    samples, nothing = config[DRAWN]['samples'], np.zeros(0, np.int32)
    shares = (samples - samples // 2, samples // 2)
    return Phase(DRAWN, 0, config[DRAWN]['epochs'], (1, 1), (nothing, nothing), shares, is_fresh=True)


def _unlabelled(config: Config, train: np.ndarray, samples: int) -> Phase:
    """The phase without labels: every training image as often as any other. samples: M."""
    bits, shares = np.random.PCG64([config['seed'], 0]), (samples, 0)
    pools = (_draw(train.astype(np.int32), len(train), bits), np.zeros(0, np.int32))
    is_fresh = _is_fresh(config, shares, (len(train), 0))
    epochs, layers = config[UNLABELLED]['epochs'], len(models.greedy(config['model']))
    return Phase(UNLABELLED, 0, epochs, (1, 1), pools, shares, is_fresh, layers)


def is_pretraining(config: Config) -> bool:
    """Whether all that a config trains on is drawn."""
    return tuple(config['phases']) == (DRAWN,)


def pretraining(config: Config) -> dict[str, Any]:
    """By dotted keys, what makes of a trial's config that of its pre-training.

    The keys of the section take the places of the usual ones. What this phase does not use has one value for all.
    """
    grey = 'intensity' if 'intensity' in config['augment']['policy'].split('+') else 'none'
    return {
        'phases': (DRAWN,),
        'augment.policy': grey,  # the drawing places and turns the heads itself
        'augment.samples': config[DRAWN]['samples'],
        'augment.frozen': False,
        'optimizer.peak_lr': config[DRAWN]['peak_lr'],
    }


def epoch_samples(config: Config, labels: np.ndarray, train: np.ndarray) -> int:
    """M, as `augment.samples` says. If that is 0: so many whole steps that an epoch of either phase has all images.

    Arguments as of `plan`.
    """
    if config['augment']['samples']:
        return config['augment']['samples']
    present = _present(labels, train)
    largest = max(sum(_counts(config, name, labels, present)) for name in NAMES)
    return -(-largest // config['batch_size']) * config['batch_size']


def changes(config: Config, labels: np.ndarray, train: np.ndarray) -> dict[str, Any]:
    """What a trial's images are beyond what its recipe has always meant, for its identity; {} where nothing.

    Once all epochs had the same sources, and `imbalanced.positives` was a number on all sets. Arguments as of `plan`.
    """
    present, samples, changed = _present(labels, train), epoch_samples(config, labels, train), {}
    for name in config['phases']:
        if name == DRAWN:
            changed['drawing'] = drawing_version()
            continue
        if name == UNLABELLED:
            continue
        counts = _counts(config, name, labels, present)
        if name == 'imbalanced' and counts[1] != config['imbalanced']['positives']:
            changed['positives'] = counts[1]
        if _is_fresh(config, _shares(counts, samples), present):
            changed['sources'] = 'fresh'
    return changed


def _present(labels: np.ndarray, train: np.ndarray) -> tuple[int, int]:
    positives = int(np.count_nonzero(labels[train]))
    return len(train) - positives, positives


def _counts(config: Config, name: str, labels: np.ndarray, present: tuple[int, int]) -> tuple[int, int]:
    """Images per class of a phase, before augmentation. present: those of the training part."""
    if name == 'balanced':
        return max(present), max(present)
    positives = config['imbalanced']['positives']
    if positives == PAPER_POSITIVES and np.bincount(labels, minlength=2).tolist() != PAPER_SET:
        positives = round(POSITIVE_SHARE * present[1])
    return present[0], positives


def _shares(counts: tuple[int, int], samples: int) -> tuple[int, int]:
    """Augmented images per class, in the proportion of the counts; at least one of each class."""
    positives = max(1, min(samples - 1, round(samples * counts[1] / sum(counts))))
    return max(1, samples - positives), positives


def _is_fresh(config: Config, shares: tuple[int, int], present: tuple[int, int]) -> bool:
    """Whether each epoch has other images: if augmentation is fresh and one epoch cannot have them all."""
    return not config['augment']['frozen'] and any(map(int.__lt__, shares, present))


def _draw(indices: np.ndarray, count: int, bits: np.random.BitGenerator) -> np.ndarray:
    """`count` of the indices in random order; none is drawn once more before every other has been."""
    rounds = -(-count // len(indices))
    return np.concatenate([indices[np.argsort(bits.random_raw(len(indices)))] for _ in range(rounds)])[:count]


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
