"""The keys of a config, all of them: what each allows and what it is part of. Their defaults are in configs/base.py.

Those of the section `model` are in the files of models/. A new key needs a line there or here and one in base.py; a
traced one is found in `Lane.values` by its name then, and training/steps.py makes use of it.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from bhcnet_jax import models
from bhcnet_jax.keys import NEVER, Allowed, Key, Part, Switches, between, flag, matching, one_of, text
from bhcnet_jax.plan import phases

Config = ConfigDict | Mapping[str, Any]  # both are read with config[section][key]; a dict fifty times as fast

MAX_SEED = 2**31 - 1
DATASETS = ('auto', 'head_ct', 'folder', 'phantom')
SCHEMES = ('holdout', 'kfold')
LANES = "'auto' or a whole number from 1 to 99999, as text"
PHASE_NAMES = (phases.DRAWN, *phases.NAMES, phases.UNLABELLED)
PHASES = (
    f'some of {", ".join(PHASE_NAMES)}, each once, {phases.DRAWN} only as the first, {phases.UNLABELLED} only as the '
    'first of several'
)
POLICIES = ('affine', 'distort', 'none', 'intensity', 'affine+distort', 'affine+intensity', 'distort+intensity')


def _phases(value: Any) -> bool:
    known = isinstance(value, tuple | list) and all(name in PHASE_NAMES for name in value)
    are_placed = known and not {phases.DRAWN, phases.UNLABELLED}.intersection(value[1:])
    return are_placed and 0 < len(value) == len(set(value)) and tuple(value) != (phases.UNLABELLED,)


def _has_drawn(switches: Switches) -> bool:
    return phases.DRAWN in switches.phases


def _has_real(switches: Switches) -> bool:
    return switches.phases != (phases.DRAWN,)


def _of_phase(name: str) -> tuple[Key, ...]:
    """What the sections of all phases on real images with labels have."""

    def is_there(switches: Switches) -> bool:
        return name in switches.phases

    def follows_another(switches: Switches) -> bool:
        return name in switches.phases[1:]

    handed_over = one_of('fresh', 'carried')
    return (
        Key(f'{name}.epochs', between(1, 10**6), Part.PLAN, when=is_there),
        Key(f'{name}.class_weights', one_of('computed', 'carried'), Part.PLAN, when=is_there),
        Key(f'{name}.optimizer_state', handed_over, Part.PLAN, when=follows_another),
    )


def _strength(name: str, low: float, high: float) -> Key:
    """Of an augmentation policy, 'affine.flip'."""
    policy = name.partition('.')[0]

    def is_part(switches: Switches) -> bool:
        return policy in switches.policy.split('+') and (policy == 'intensity' or _has_real(switches))

    return Key(f'augment.{name}', between(low, high), Part.TRACED, when=is_part)


COMMON = (
    Key('recipe', text, Part.CALL),
    Key('sweep', text, Part.CALL),
    Key('trials', Allowed('a tuple of dicts', lambda value: isinstance(value, tuple | list)), Part.CALL),
    Key('seed', between(0, MAX_SEED), Part.TRIAL),
    Key('phases', Allowed(PHASES, _phases), Part.PLAN),
    Key('batch_size', between(1, 2**16), Part.PROGRAM),
    Key('dataset.name', one_of(*DATASETS), Part.CALL),
    Key('dataset.dir', text, Part.CALL),
    Key('dataset.label', text, Part.CALL),
    Key('dataset.columns', text, Part.CALL),
    Key('dataset.positive', text, Part.CALL),
    Key('dataset.image_size', between(8, 4096), Part.PROGRAM),
    Key('dataset.equalise', flag, Part.PROGRAM, neutral=False),
    Key('dataset.slices', between(1, 512), Part.PROGRAM, neutral=1),
    Key('split.scheme', one_of(*SCHEMES), Part.PLAN),
    Key('split.folds', between(2, 2**16), Part.PLAN),
    Key('split.fold', between(0, 2**16), Part.TRIAL),
    Key('split.seed', between(0, MAX_SEED), Part.PLAN),
    Key('split.val_folds', between(0, 2**16), Part.PLAN, neutral=0),
    Key('split.train_folds', between(1, 2**16), Part.PLAN, neutral=1),
    Key('phantom.epochs', between(1, 10**6), Part.PLAN, when=_has_drawn),
    Key('phantom.samples', between(2, 10**8), Part.PLAN, when=_has_drawn),
    Key('phantom.peak_lr', between(0.0, 10.0), Part.PLAN, when=_has_drawn),
    Key('phantom.mask', between(0.0, 10**3), Part.TRACED, when=_has_drawn),
    Key('autoencoder.epochs', between(1, 10**6), Part.PLAN, when=lambda switches: phases.UNLABELLED in switches.phases),
    *(key for name in phases.NAMES for key in _of_phase(name)),
    Key('imbalanced.positives', between(1, 10**6), Part.PLAN, when=lambda switches: 'imbalanced' in switches.phases),
    Key('augment.policy', one_of(*POLICIES), Part.PROGRAM),
    Key('augment.samples', between(0, 10**8), Part.PROGRAM, when=_has_real),
    Key('augment.frozen', flag, Part.PROGRAM, when=_has_real),
    Key('augment.test_flip', flag, Part.PROGRAM, neutral=False),
    _strength('affine.flip', 0.0, 1.0),
    _strength('affine.shear', 0.0, 60.0),
    _strength('affine.zoom', 0.0, 0.9),
    _strength('affine.rotation', 0.0, 180.0),
    _strength('affine.shift', 0.0, 1.0),
    _strength('distort.crop', 0.1, 1.0),
    _strength('distort.rotation', 0.0, 180.0),
    _strength('distort.resize', 0.0, 0.9),
    _strength('distort.optical', 0.0, 1 / 3),
    _strength('distort.grid', 0.0, 0.9),
    _strength('distort.noise', 0.0, 1.0),
    _strength('intensity.blur', 0.0, 16.0),
    _strength('intensity.coarseness', 0.0, 7.0),
    _strength('intensity.brightness', 0.0, 1.0),
    _strength('intensity.contrast', 0.0, 1.0),
    _strength('intensity.gamma', 0.0, 3.0),
    _strength('intensity.noise', 0.0, 1.0),
    Key('optimizer.peak_lr', between(0.0, 10.0), Part.PLAN, when=_has_real),
    Key('optimizer.warmup', between(0.0, 0.9), Part.PLAN),
    Key('optimizer.weight_decay', between(0.0, 10.0), Part.TRACED),
    Key('optimizer.label_smoothing', between(0.0, 0.9), Part.TRACED, neutral=0.0),
    Key('optimizer.ema', between(0.0, 0.9999), Part.TRACED, neutral=0.0),
    Key('engine.lanes', matching('auto|[1-9][0-9]{0,4}', LANES), Part.CALL),
    Key('engine.spread', one_of('auto', 'lanes', 'batch'), Part.CALL),
    Key('engine.checkpoint_seconds', between(0.0, 1e6), Part.CALL),
    Key('engine.keep_weights', one_of('final', 'none'), Part.CALL),
)


# What a recipe consists of, and the two of it that a compiled program sees.
RECIPE = frozenset({Part.PROGRAM, Part.TRACED, Part.PLAN})
PROGRAM, TRACED = frozenset({Part.PROGRAM}), frozenset({Part.TRACED})


def keys() -> dict[str, Key]:
    """Every key by its name, those of all families of models included."""
    return _keys(tuple(models.FAMILIES))


@functools.cache
def _keys(families: tuple[str, ...]) -> dict[str, Key]:
    of_models = (key for name in families for key in models.FAMILIES[name].keys)
    name = Key('model.name', one_of(*families), Part.PROGRAM)
    return {key.name: key for key in (*COMMON, name, *of_models)}


class Section(NamedTuple):
    """Some keys of a section, by their names in it, and the neutral values of those that have one."""

    path: tuple[str, ...]
    keys: dict[str, Key]
    neutral: dict[str, Any]


def in_use(config: Config, parts: frozenset[Part]) -> tuple[Section, ...]:
    """The keys of these parts that the recipe of a config has."""
    switches = Switches(tuple(config['phases']), config['model']['name'], config['augment']['policy'])
    return _in_use(switches, parts)


@functools.cache
def _in_use(switches: Switches, parts: frozenset[Part]) -> tuple[Section, ...]:
    found: dict[tuple[str, ...], Section] = {}
    for key in (*COMMON, keys()['model.name'], *models.FAMILIES[switches.model].keys):
        if key.part in parts and key.when(switches):
            *path, name = key.path
            section = found.setdefault(tuple(path), Section(tuple(path), {}, {}))
            section.keys[name] = key
            if key.neutral is not NEVER:
                section.neutral[name] = key.neutral
    return tuple(found.values())


def traced(config: Config) -> dict[str, float]:
    """What the trial of a config brings to `Lane.values`, by the names of the keys."""
    return {key.name: value_of(config, key) for section in in_use(config, TRACED) for key in section.keys.values()}


def value_of(config: Config, key: Key) -> Any:
    """What a config says of a key."""
    value = config
    for name in key.path:
        value = value[name]
    return value


def leaves(config: Config, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """What a config says, by names like those of keys."""
    for name, value in config.items():
        if isinstance(value, ConfigDict | Mapping):
            yield from leaves(value, f'{prefix}{name}.')
        else:
            yield prefix + name, value
