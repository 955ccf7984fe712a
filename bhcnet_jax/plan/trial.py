"""The Trial record and its identity, and the check that a config says something possible."""

import dataclasses
import hashlib
import json
import marshal
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from ml_collections import ConfigDict

from bhcnet_jax import models
from bhcnet_jax.errors import UserError
from bhcnet_jax.plan import phases
from bhcnet_jax.plan.splits import Split

DATASETS = ('auto', 'head_ct', 'folder', 'phantom')
SCHEMES = ('holdout', 'kfold')
POLICIES = ('affine', 'distort', 'none')
MAX_SEED = 2**31 - 1
# Keys that came after the first trials were trained, each with the value at which the code does what it did without
# them. They are no part of an identity at that value, so that rows from before are found again.
NEUTRAL = (
    ('split', 'val_folds', 0),
    ('dataset', 'equalise', False),
    ('model', 'convs', 1),
    ('model', 'norm', 'none'),
    ('model', 'pooling', 'mean'),
    ('augment', 'test_flip', False),
    ('optimizer', 'label_smoothing', 0.0),
    ('optimizer', 'ema', 0.0),
)
SCORED_MULTIPLE = 32  # folds of 200 images have 19 to 21; a program for each size would be compiled for nothing

T = TypeVar('T')
Config = ConfigDict | Mapping[str, Any]  # both are read with config[section][key]; a dict fifty times as fast


class Identity(NamedTuple):
    """What tells a trial apart and says with which it can train; a hundred thousand of them fit in memory.

    trial_id and recipe_id are SHA-256 hex digests: of everything that fixes the trial's result, and of the same
    without seed and fold. Trials of equal signature share a compiled program; those of equal batch_key also go through
    their phases in step, so that they can train together. point: what a sweep sets for this trial, by key.
    """

    trial_id: str
    recipe_id: str
    signature: str
    batch_key: str
    phase_names: tuple[str, ...]
    phase_epochs: tuple[int, ...]
    point: Mapping[str, Any]

    @property
    def epochs(self) -> int:
        """Of all phases."""
        return sum(self.phase_epochs)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One complete training from one seed on one split, ready to be trained."""

    identity: Identity
    config: ConfigDict
    split: Split
    phases: tuple[phases.Phase, ...]

    @property
    def trial_id(self) -> str:
        """See Identity."""
        return self.identity.trial_id


def identify(
    config: Config,
    split: Split,
    fingerprint: str,
    point: Mapping[str, Any] | None = None,
    labels: np.ndarray | None = None,
) -> Identity:
    """The identity of the trial that a config spans on a split of a data set (fingerprint of its files).

    labels: int [N]; None where only the recipe's id is wanted.
    """
    recipe = resolve(config)
    parts, recipe_id = _encode_recipe(recipe)
    rest = {'seed': config['seed'], 'data': fingerprint, 'split': split.digest}
    shapes = _shapes(recipe, config, split)
    if config['optimizer']['ema']:
        rest['ema'] = 'corrected'  # for its start; trials from before it was have another identity
    if labels is not None:
        rest |= phases.changes(config, labels, split.train)
        if not config['augment']['samples']:
            shapes['samples'] = phases.epoch_samples(config, labels, split.train)
    signature = _sign(shapes)
    return Identity(
        trial_id=_digest(parts | {key: _encode(value) for key, value in rest.items()}),
        recipe_id=recipe_id,
        signature=signature,
        batch_key=_digest({'signature': signature} | {name: parts[name] for name in config['phases']}),
        phase_names=tuple(config['phases']),
        phase_epochs=tuple(config[name]['epochs'] for name in config['phases']),
        point=point or {},
    )


def make(config: ConfigDict, labels: np.ndarray, split: Split, fingerprint: str) -> Trial:
    """The trial that a config spans, ready to be trained; see `identify` and `plan`."""
    return plan(identify(config, split, fingerprint, labels=labels), config, labels, split)


def plan(identity: Identity, config: ConfigDict, labels: np.ndarray, split: Split) -> Trial:
    """The trial of an identity, ready to be trained. labels: int [N]. ValueError as of `phases.plan`.

    The trial's config says the number of images per epoch, also where `augment.samples` was 0.
    """
    if not config.augment.samples:
        samples = phases.epoch_samples(config, labels, split.train)
        config = type(config)(set_point(config.to_dict(), {'augment.samples': samples}))
    return Trial(identity, config, split, phases.plan(config, labels, split.train))


def _shapes(recipe: dict[str, Any], config: Config, split: Split) -> dict[str, Any]:
    """What of a recipe fixes shapes and code paths."""
    strengths_of = config['augment']['policy']
    return {
        'batch_size': recipe['batch_size'],
        'dataset': recipe['dataset'],
        'model': {name: value for name, value in recipe['model'].items() if name != 'dropout'},
        'augment': {name: value for name, value in recipe['augment'].items() if name != strengths_of},
        'scored': scored_count(split),
    }


def scored_count(split: Split) -> int:
    """T, how many images a trial is scored on: test and validation part, filled up so that most folds have one T."""
    return -(-(len(split.test) + len(split.val)) // SCORED_MULTIPLE) * SCORED_MULTIPLE


def resolve(config: Config) -> dict[str, Any]:
    """What of a config fixes results: no label, place of files or engine setting, no section that is not in use.

    Seed and fold are left out: a recipe is what is the same in all rows that are compared. So are keys of NEUTRAL that
    have their neutral value.
    """
    augment, model, split = config['augment'], config['model'], config['split']
    policy = augment['policy']
    recipe = {
        'phases': list(config['phases']),
        'batch_size': config['batch_size'],
        'dataset': {key: config['dataset'][key] for key in ('image_size', 'equalise')},
        'split': {key: split[key] for key in split if key != 'fold'},
        'model': {**model, 'filters': list(model['filters'])},
        'optimizer': dict(config['optimizer']),
        'augment': {key: augment[key] for key in ('policy', 'samples', 'frozen', 'test_flip')},
    }
    if policy != 'none':
        recipe['augment'][policy] = strengths(config)
    del recipe['model']['recurrent_units' if model['name'] == 'cnn' else 'pooling']
    for place, name in enumerate(config['phases']):
        recipe[name] = dict(config[name])
        if place == 0:  # nothing comes before it
            del recipe[name]['optimizer_state']
    for section, key, neutral in NEUTRAL:
        if recipe[section].get(key) == neutral:
            del recipe[section][key]
    return recipe


def strengths(config: Config) -> dict[str, float]:
    """The strengths of the augmentation policy in use."""
    policy = config['augment']['policy']
    return {} if policy == 'none' else dict(config['augment'][policy])


def set_point(tree: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a nested dict with the values of a point (dotted keys); what is not changed is shared."""
    tree = dict(tree)
    for key, value in point.items():
        *sections, name = key.split('.')
        inner = tree
        for section in sections:
            inner[section] = dict(inner[section])
            inner = inner[section]
        inner[name] = value
    return tree


def _remembered(function: Callable[[Any], T]) -> Callable[[Any], T]:
    """Caches a function of a JSON-like value: most parts of most trials of a sweep are alike."""
    known: dict[bytes, T] = {}

    def remembered(value: Any) -> T:
        key = marshal.dumps(value)  # unlike a hash it tells 1, 1.0 and True apart
        if key not in known:
            if len(known) >= 10_000:
                known.clear()
            known[key] = function(value)
        return known[key]

    return remembered


@_remembered
def _encode(value: Any) -> str:
    """A value as JSON with sorted keys."""
    return json.dumps(value, sort_keys=True)


@_remembered
def _encode_recipe(recipe: dict[str, Any]) -> tuple[dict[str, str], str]:
    """The parts of a recipe as JSON, and its id."""
    parts = {key: _encode(value) for key, value in recipe.items()}
    return parts, _digest(parts)


@_remembered
def _sign(shapes: dict[str, Any]) -> str:
    return _digest({key: _encode(value) for key, value in shapes.items()})


def _digest(parts: Mapping[str, str]) -> str:
    """SHA-256 of a JSON object with sorted keys, from its values as JSON."""
    text = ', '.join(f'"{key}": {parts[key]}' for key in sorted(parts))
    return hashlib.sha256(f'{{{text}}}'.encode()).hexdigest()


def check(config: Config, changed: Collection[str] | None = None) -> None:
    """UserError if a value is impossible. What depends on the data (more folds than images) shows later.

    changed: the keys (dotted) in which the config differs from one that was checked; None: look at all.
    """
    for key, allowed in _CHOICES.items():
        if (changed is None or key in changed) and _get(config, key) not in allowed:
            raise UserError(f'{key} is {_get(config, key)!r}; expected one of {", ".join(allowed)}.')
    for key, low, high in _RANGES:
        if changed is None or key in changed:
            value = _get(config, key)
            if not (math.isfinite(value) and low <= value <= high):
                raise UserError(f'{key} is {value}; expected {low} to {high}.')
    lanes = config['engine']['lanes']
    if lanes != 'auto' and not re.fullmatch('[1-9][0-9]{0,4}', lanes):
        raise UserError(f"engine.lanes is {lanes!r}; expected 'auto' or a whole number from 1 to 99999.")
    _check_combinations(config)


_RANGES = (
    ('seed', 0, MAX_SEED),
    ('batch_size', 1, 2**16),
    ('dataset.image_size', 8, 4096),
    ('split.folds', 2, 2**16),
    ('split.seed', 0, MAX_SEED),
    ('split.val_folds', 0, 2**16),
    ('imbalanced.positives', 1, 10**6),
    *((f'{name}.epochs', 1, 10**6) for name in phases.NAMES),
    ('model.convs', 1, 16),
    ('model.hidden_units', 0, 2**16),
    ('model.recurrent_units', 1, 2**16),
    ('model.dropout', 0.0, 0.99),
    ('augment.samples', 0, 10**8),
    ('augment.affine.flip', 0.0, 1.0),
    ('augment.affine.shear', 0.0, 60.0),
    ('augment.affine.zoom', 0.0, 0.9),
    ('augment.affine.rotation', 0.0, 180.0),
    ('augment.affine.shift', 0.0, 1.0),
    ('augment.distort.crop', 0.1, 1.0),
    ('augment.distort.rotation', 0.0, 180.0),
    ('augment.distort.resize', 0.0, 0.9),
    ('augment.distort.optical', 0.0, 1 / 3),
    ('augment.distort.grid', 0.0, 0.9),
    ('augment.distort.noise', 0.0, 1.0),
    ('optimizer.peak_lr', 0.0, 10.0),
    ('optimizer.warmup', 0.0, 0.9),
    ('optimizer.weight_decay', 0.0, 10.0),
    ('optimizer.label_smoothing', 0.0, 0.9),
    ('optimizer.ema', 0.0, 0.9999),
    ('engine.checkpoint_every', 1, 10**6),
)


def _get(config: Config, key: str) -> Any:
    value = config
    for part in key.split('.'):
        value = value[part]
    return value


_CHOICES = {
    'dataset.name': DATASETS,
    'split.scheme': SCHEMES,
    'model.name': models.NAMES,
    'model.norm': models.NORMS,
    'model.pooling': models.POOLINGS,
    'model.dtype': ('float32', 'bfloat16'),
    'augment.policy': POLICIES,
    'engine.spread': ('auto', 'lanes', 'batch'),
    'engine.keep_weights': ('final', 'none'),
    **{f'{name}.class_weights': ('computed', 'carried') for name in phases.NAMES},
    **{f'{name}.optimizer_state': ('fresh', 'carried') for name in phases.NAMES},
}


def _check_combinations(config: Config) -> None:
    if config['augment']['samples'] == 1:
        raise UserError('augment.samples is 1, but each phase needs both classes; expected 2 or more, or 0 for all.')
    names = tuple(config['phases'])
    if not names or set(names) - set(phases.NAMES) or len(set(names)) < len(names):
        raise UserError(f'phases is {names}; expected {", ".join(phases.NAMES)} or both, each once.')
    if config[names[0]]['class_weights'] == 'carried':
        raise UserError(
            f"{names[0]}.class_weights is 'carried', but no phase comes before {names[0]} in phases={names}; "
            "set it to 'computed'."
        )
    scheme, folds, fold = (config['split'][key] for key in ('scheme', 'folds', 'fold'))
    allowed = 0 if scheme == 'holdout' else folds - 1
    if not 0 <= fold <= allowed:
        raise UserError(f'split.fold is {fold}; split.scheme {scheme!r} of {folds} folds allows 0 to {allowed}.')
    if config['split']['val_folds'] == 1:
        raise UserError('split.val_folds is 1, which leaves nothing to train on; expected 0 (none), or 2 or more.')
    filters, image_size = tuple(config['model']['filters']), config['dataset']['image_size']
    if not filters or not all(isinstance(count, int) and 1 <= count <= 2**16 for count in filters):
        raise UserError(f'model.filters is {filters}; expected one whole number of 1 or more per block.')
    if image_size >> (len(filters) - 1) < 1:
        raise UserError(
            f'dataset.image_size is {image_size}; {len(filters)} blocks halve it '
            f'{len(filters) - 1} times, so it must be at least {2 ** (len(filters) - 1)}.'
        )
