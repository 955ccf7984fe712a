"""The Trial record and its identity, and the check that a config says something possible."""

import dataclasses
import hashlib
import json
import marshal
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from ml_collections import ConfigDict

from bhcnet_jax import keys, models
from bhcnet_jax.errors import UserError
from bhcnet_jax.keys import Part
from bhcnet_jax.plan import phases, table
from bhcnet_jax.plan.splits import Split
from bhcnet_jax.plan.table import Config

# Keys that came after the first trials were trained, each with the value at which it is no part of an identity.
NEUTRAL = {name: key.neutral for name, key in table.keys().items() if key.neutral is not keys.NEVER}
SCORED_MULTIPLE = 32  # folds of 200 images have 19 to 21; a program for each size would be compiled for nothing

T = TypeVar('T')


class Identity(NamedTuple):
    """What tells a trial apart and says with which it can train; a hundred thousand of them fit in memory.

    trial_id and recipe_id are SHA-256 hex digests: of everything that fixes the trial's result, and of the same
    without seed and fold. Trials of equal signature share a compiled program; those of equal batch_key also go through
    their phases in step, so that they can train together. point: what a sweep sets for this trial, by key. starts_from:
    trial_id of its pre-training, see `pretraining`; '' without any, and of one itself.
    """

    trial_id: str
    recipe_id: str
    signature: str
    batch_key: str
    phase_names: tuple[str, ...]
    phase_epochs: tuple[int, ...]
    point: Mapping[str, Any]
    starts_from: str = ''

    @property
    def epochs(self) -> int:
        """Of all phases."""
        return sum(self.phase_epochs)

    @property
    def shared_epochs(self) -> int:
        """Those of its pre-training."""
        return self.phase_epochs[0] if self.starts_from else 0


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
    shapes = resolve(config, table.PROGRAM) | {'scored': scored_count(split)}
    if phases.DRAWN in config['phases']:
        shapes[phases.DRAWN] = 'before'
    if config['optimizer']['ema']:
        rest['ema'] = 'corrected'  # for its start; trials from before it was have another identity
    if labels is not None:
        rest |= phases.changes(config, labels, split.train)
        if not config['augment']['samples']:
            shapes['samples'] = phases.epoch_samples(config, labels, split.train)
    signature = digest(shapes)
    return Identity(
        trial_id=_digest(parts | {key: _encode(value) for key, value in rest.items()}),
        recipe_id=recipe_id,
        signature=signature,
        batch_key=_digest({'signature': signature} | {name: parts[name] for name in config['phases']}),
        phase_names=tuple(config['phases']),
        phase_epochs=tuple(config[name]['epochs'] for name in config['phases']),
        point=point or {},
        starts_from=pretraining(config).trial_id if phases.DRAWN in config['phases'] else '',
    )


def pretraining(config: Config, point: Mapping[str, Any] | None = None) -> Identity:
    """The identity of the training on drawn heads from which the trial of a config goes on.

    It knows neither data nor split, nor keys of later phases: trials that differ in these alone share it.
    point: of the trial.
    """
    changed = phases.pretraining(config)
    config = set_point(config, changed)
    recipe = resolve(config)
    del recipe['split']
    parts, recipe_id = _encode_recipe(recipe)
    rest = {'seed': config['seed'], 'drawing': phases.drawing_version()}
    shapes = {phases.DRAWN: 'here', 'samples': config[phases.DRAWN]['samples']}
    signature = digest(resolve(config, table.PROGRAM) | shapes)
    epochs = config[phases.DRAWN]['epochs']
    return Identity(
        trial_id=_digest(parts | {key: _encode(value) for key, value in rest.items()}),
        recipe_id=recipe_id,
        signature=signature,
        batch_key=digest({'signature': signature, 'epochs': epochs}),
        phase_names=(phases.DRAWN,),
        phase_epochs=(epochs,),
        point={**(point or {}), **changed},
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


def scored_count(split: Split) -> int:
    """T, how many images a trial is scored on: test and validation part, filled up so that most folds have one T."""
    return -(-(len(split.test) + len(split.val)) // SCORED_MULTIPLE) * SCORED_MULTIPLE


def resolve(config: Config, parts: frozenset[Part] = table.RECIPE) -> dict[str, Any]:
    """What of a config fixes results, nested as there; of these parts.

    No label, place of files or engine setting, no key that is not in use. Seed and fold are left out: a recipe is what
    is the same in all rows that are compared. So are keys at their neutral value.
    """
    recipe: dict[str, Any] = {}
    for section in table.in_use(config, parts):
        source, target = config, recipe
        for name in section.path:
            source, target = source[name], target.setdefault(name, {})
        for name in section.keys:
            target[name] = source[name]
        for name, neutral in section.neutral.items():
            if target[name] == neutral:
                del target[name]
    return recipe


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
def digest(tree: dict[str, Any]) -> str:
    """SHA-256, hex, of a JSON-like dict, whatever the order of its keys."""
    return _digest({key: _encode(value) for key, value in tree.items()})


def _digest(parts: Mapping[str, str]) -> str:
    """SHA-256 of a JSON object with sorted keys, from its values as JSON."""
    text = ', '.join(f'"{key}": {parts[key]}' for key in sorted(parts))
    return hashlib.sha256(f'{{{text}}}'.encode()).hexdigest()


def check(config: Config, changed: Collection[str] | None = None) -> None:
    """UserError if a value is impossible. What depends on the data (more folds than images) shows later.

    changed: the keys (dotted) in which the config differs from one that was checked; None: look at all, and at their
    names.
    """
    every = table.keys()
    if changed is None:
        _check_names(config, every)
    for key in every.values() if changed is None else (every[name] for name in changed):
        value = table.value_of(config, key)
        if not key.allowed.accepts(value):
            raise UserError(f'{key.name} is {value!r}; expected {key.allowed.words}.')
    _check_combinations(config)
    models.FAMILIES[config['model']['name']].check(config)


def _check_names(config: Config, every: Collection[str]) -> None:
    """UserError if a config has other keys than `every`."""
    found = dict(table.leaves(config))
    for name, value in found.items():
        if any(key.startswith(f'{name}.') for key in every):
            raise UserError(f'{name} is {value!r}; expected a section of keys, as in configs/base.py.')
        if name not in every:
            raise UserError(f'{name}: no such key; {keys.hint(name, every)}')
    for name in every:
        if name not in found:
            raise UserError(f'{name} is missing; start from get_config() of configs/base.py, which has every key.')


def _check_combinations(config: Config) -> None:
    if config['augment']['samples'] == 1:
        raise UserError('augment.samples is 1, but each phase needs both classes; expected 2 or more, or 0 for all.')
    names = tuple(config['phases'])
    _check_volumes(config)
    if phases.DRAWN in names and config['phantom']['mask'] and not config['model']['mask_head']:
        raise UserError(
            f'phantom.mask is {config["phantom"]["mask"]}, but the model has no mask head; set model.mask_head to '
            'True, or phantom.mask to 0.'
        )
    if phases.UNLABELLED in names:
        _check_layers(config['model'], config[phases.UNLABELLED]['epochs'])
    if names[0] in phases.NAMES and config[names[0]]['class_weights'] == 'carried':
        raise UserError(
            f"{names[0]}.class_weights is 'carried', but no phase comes before {names[0]} in phases={names}; "
            "set it to 'computed'."
        )
    scheme, folds, fold = (config['split'][key] for key in ('scheme', 'folds', 'fold'))
    allowed = 0 if scheme == 'holdout' else folds - 1
    if not 0 <= fold <= allowed:
        other = "; for other folds set split.scheme to 'kfold'" if scheme == 'holdout' else ''
        raise UserError(f'split.fold is {fold}; split.scheme {scheme!r} of {folds} folds allows 0 to {allowed}{other}.')
    if config['split']['val_folds'] == 1:
        raise UserError('split.val_folds is 1, which leaves nothing to train on; expected 0 (none), or 2 or more.')


def _check_volumes(config: Config) -> None:
    """UserError if the images are not what the model sees, or volumes are asked for that nobody draws."""
    dataset, name = config['dataset'], config['model']['name']
    sees_volumes = models.FAMILIES[name].sees_volumes
    if sees_volumes != (dataset['slices'] > 1):
        expected = '2 or more, such as 24' if sees_volumes else '1'
        what = 'volumes' if sees_volumes else 'single slices'
        raise UserError(f'dataset.slices is {dataset["slices"]}, but {name} sees {what}; expected {expected}.')
    if not sees_volumes:
        return
    allowed = (
        ('dataset.name', dataset['name'], ('phantom', 'auto')),  # auto: a bundle holds no name
        ('dataset.equalise', dataset['equalise'], (False,)),
        ('phases', tuple(config['phases']), ((phases.DRAWN,),)),
    )
    for key, found, expected in allowed:
        if found not in expected:
            raise UserError(
                f'{key} is {found!r}, but {name} sees volumes, which are drawn only; set it to {expected[0]!r}.'
            )
    if 'intensity' in config['augment']['policy'].split('+'):
        raise UserError(
            f'augment.policy is {config["augment"]["policy"]!r}, but intensity changes single slices, and {name} sees '
            "volumes; set it to 'none'."
        )


def _check_layers(model: Mapping[str, Any], epochs: int) -> None:
    """UserError if the layers of a model cannot learn one by one in so many epochs."""
    layers = len(models.greedy(model))
    if not layers:
        raise UserError(
            f'phases has {phases.UNLABELLED}, but {model["name"]} has no layers that learn by themselves; leave the '
            "phase out, or set model.name to 'autoencoder'."
        )
    if epochs < layers:
        raise UserError(
            f'{phases.UNLABELLED}.epochs is {epochs}, but {layers} layers of {model["name"]} learn one after the '
            f'other; expected {layers} or more.'
        )
