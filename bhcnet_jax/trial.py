"""The Trial record and its identity, and the check that a config says something possible."""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bhcnet_jax import models, phases, steps
from bhcnet_jax.splits import Split

DATASETS = ('auto', 'head_ct', 'folder', 'phantom')
SCHEMES = ('holdout', 'kfold')
POLICIES = ('affine', 'distort', 'none')
MAX_SEED = 2**31 - 1


class ConfigError(ValueError):
    """A config that cannot be run; one line that says which key, what it is and what is allowed."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One complete training from one seed on one split.

    trial_id and recipe_id are SHA-256 hex digests: of everything that fixes the trial's result, and of the same
    without seed and fold.
    """

    trial_id: str
    recipe_id: str
    config: ConfigDict
    split: Split
    phases: tuple[phases.Phase, ...]


def make(config: ConfigDict, labels: np.ndarray, split: Split, fingerprint: str) -> Trial:
    """The trial that a config spans on a split of a data set (labels int [N], fingerprint of its files)."""
    recipe = resolve(config)
    identity = {**recipe, 'seed': config.seed, 'data': fingerprint, 'split': split.digest}
    planned = phases.plan(config, labels, split.train)
    return Trial(_digest(identity), _digest(recipe), config, split, planned)


def signature(this: Trial) -> str:
    """What fixes shapes and code paths, as JSON text: trials of equal signatures share a compiled program."""
    recipe = resolve(this.config)
    for name in ('phases', *this.config.phases, 'optimizer', 'split'):
        del recipe[name]
    del recipe['model']['dropout']
    recipe['augment'].pop(this.config.augment.policy, None)  # its strengths
    return json.dumps({**recipe, 'scored': len(this.split.test)}, sort_keys=True)


def batch_key(this: Trial) -> str:
    """What trials that train together have in common: the signature, and the phases, which they go through in step."""
    phases_of = {name: this.config[name].to_dict() for name in this.config.phases}
    return json.dumps([signature(this), phases_of])


def resolve(config: ConfigDict) -> dict[str, Any]:
    """What of a config fixes results: no label, place of files or engine setting, no section that is not in use.

    Seed and fold are left out: a recipe is what is the same in all rows that are compared.
    """
    policy = config.augment.policy
    recipe = {
        'phases': list(config.phases),
        'batch_size': config.batch_size,
        'dataset': {'image_size': config.dataset.image_size},
        'split': {key: config.split[key] for key in ('scheme', 'folds', 'seed')},
        'model': config.model.to_dict(),
        'optimizer': config.optimizer.to_dict(),
        'augment': {key: config.augment[key] for key in ('policy', 'samples', 'frozen')},
    }
    if policy != 'none':
        recipe['augment'][policy] = strengths(config)
    if config.model.name == 'cnn':
        del recipe['model']['recurrent_units']
    for place, name in enumerate(config.phases):
        recipe[name] = config[name].to_dict()
        if place == 0:  # nothing comes before it
            del recipe[name]['optimizer_state']
    return recipe


def strengths(config: ConfigDict) -> dict[str, float]:
    """The strengths of the augmentation policy in use."""
    return {} if config.augment.policy == 'none' else config.augment[config.augment.policy].to_dict()


def stack(trials: Sequence[Trial], phase_index: int) -> steps.Lane:
    """What trials of one signature bring to a phase, numpy [lanes, ...]: at its first epoch, at learning rate 0.

    The class weights are those of the phase's own images.
    """
    configs, count = [each.config for each in trials], len(trials)
    planned = [each.phases[phase_index] for each in trials]
    strengths_of = [strengths(each) for each in configs]
    return steps.Lane(
        seed=np.array([each.seed for each in configs], np.int32),
        phase=np.full(count, phase_index, np.int32),
        epoch=np.zeros(count, np.int32),
        sources=np.stack([phase.sources for phase in planned]),
        class_weights=np.stack([phases.class_weights(phase.counts) for phase in planned]),
        learning_rates=np.zeros((count, steps.steps_per_epoch(configs[0])), np.float32),
        weight_decay=np.array([each.optimizer.weight_decay for each in configs], np.float32),
        dropout=np.array([each.model.dropout for each in configs], np.float32),
        strengths={
            name: np.array([each[name] for each in strengths_of], np.float32) for name in strengths_of[0]
        },
        scored=np.stack([each.split.test for each in trials]),
    )


def _digest(tree: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def check(config: ConfigDict) -> None:
    """ConfigError if a value is impossible. What depends on the data (more folds than images) shows later."""
    _check_names(config)
    for key, low, high in _RANGES:
        value = _get(config, key)
        if not (math.isfinite(value) and low <= value <= high):
            raise ConfigError(f'{key} is {value}; expected {low} to {high}.')
    _check_combinations(config)


_RANGES = (
    ('seed', 0, MAX_SEED),
    ('batch_size', 1, 2**16),
    ('dataset.image_size', 8, 4096),
    ('split.folds', 2, 2**16),
    ('split.seed', 0, MAX_SEED),
    ('imbalanced.positives', 1, MAX_SEED),
    *((f'{name}.epochs', 1, 10**6) for name in phases.NAMES),
    ('model.hidden_units', 0, 2**16),
    ('model.recurrent_units', 1, 2**16),
    ('model.dropout', 0.0, 0.99),
    ('augment.samples', 1, 10**8),
    ('augment.affine.flip', 0.0, 1.0),
    ('augment.affine.shear', 0.0, 60.0),
    ('augment.affine.zoom', 0.0, 0.9),
    ('augment.affine.rotation', 0.0, 180.0),
    ('augment.affine.shift', 0.0, 1.0),
    ('augment.distort.crop', 0.1, 1.0),
    ('augment.distort.rotation', 0.0, 180.0),
    ('augment.distort.resize', 0.0, 0.9),
    ('augment.distort.optical', 0.0, 0.9),
    ('augment.distort.grid', 0.0, 0.9),
    ('augment.distort.noise', 0.0, 1.0),
    ('optimizer.peak_lr', 0.0, 10.0),
    ('optimizer.warmup', 0.0, 0.9),
    ('optimizer.weight_decay', 0.0, 10.0),
    ('engine.checkpoint_every', 1, 10**6),
)


def _get(config: ConfigDict, key: str) -> Any:
    value = config
    for part in key.split('.'):
        value = value[part]
    return value


def _check_names(config: ConfigDict) -> None:
    choices = {
        'dataset.name': DATASETS,
        'split.scheme': SCHEMES,
        'model.name': models.NAMES,
        'model.dtype': ('float32', 'bfloat16'),
        'augment.policy': POLICIES,
        'engine.spread': ('lanes', 'batch'),
        'engine.keep_weights': ('final', 'none'),
        **{f'{name}.class_weights': ('computed', 'carried') for name in phases.NAMES},
        **{f'{name}.optimizer_state': ('fresh', 'carried') for name in phases.NAMES},
    }
    for key, allowed in choices.items():
        if _get(config, key) not in allowed:
            raise ConfigError(f'{key} is {_get(config, key)!r}; expected one of {", ".join(allowed)}.')
    lanes = config.engine.lanes
    if lanes != 'auto' and not re.fullmatch('[1-9][0-9]{0,4}', lanes):
        raise ConfigError(f"engine.lanes is {lanes!r}; expected 'auto' or a whole number from 1 to 99999.")


def _check_combinations(config: ConfigDict) -> None:
    names = tuple(config.phases)
    if not names or set(names) - set(phases.NAMES) or len(set(names)) < len(names):
        raise ConfigError(f'phases is {names}; expected {", ".join(phases.NAMES)} or both, each once.')
    if config[names[0]].class_weights == 'carried':
        raise ConfigError(
            f"{names[0]}.class_weights is 'carried', but no phase comes before {names[0]} in phases={names}; "
            "set it to 'computed'."
        )
    folds, fold = config.split.folds, config.split.fold
    allowed = 0 if config.split.scheme == 'holdout' else folds - 1
    if not 0 <= fold <= allowed:
        raise ConfigError(
            f'split.fold is {fold}; split.scheme {config.split.scheme!r} of {folds} folds allows 0 to {allowed}.'
        )
    filters = tuple(config.model.filters)
    if not filters or not all(isinstance(count, int) and 1 <= count <= 2**16 for count in filters):
        raise ConfigError(f'model.filters is {filters}; expected one whole number of 1 or more per convolution.')
    if config.dataset.image_size >> (len(filters) - 1) < 1:
        raise ConfigError(
            f'dataset.image_size is {config.dataset.image_size}; {len(filters)} convolutions halve it '
            f'{len(filters) - 1} times, so it must be at least {2 ** (len(filters) - 1)}.'
        )
