"""What a run directory says of itself beside its database, checked when it is read.

    config.json  'config', as of configs/base.py; 'identity', what of it fixes results, flat; 'swept', keys of sweeps
    env.json     the starts, a list: command, sweep, code, versions, machine
    data.json    'dataset', 'fingerprint', 'images' of each class, 'groups' and 'pairs' of look-alikes

Keys that a version before this one did not write may be missing. UserError: a file cannot be read, or has another
shape.
"""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

from bhcnet_jax import files
from bhcnet_jax.configs import base
from bhcnet_jax.errors import UserError

ADVICE = 'Restore it from a copy, or move it away.'
_START = {'command?': str, 'sweep?': str, 'code?': str, 'python?': str, 'packages?': {str: str}}
_DATA = {
    'dataset': str,
    'fingerprint': str,
    'images': {str: int},
    'groups': [[str]],
    'pairs': [{'reason': str}],
    'resolution?': int,
    'pixel_sha256?': {str: str},
}


def config(directory: pathlib.Path, advice: str = ADVICE) -> dict[str, Any]:
    """What config.json holds, {} if there is none. advice: see `files.read_json`."""
    try:
        return files.read_json(directory / 'config.json', _config_shape(), advice)
    except FileNotFoundError:
        return {}


def starts(directory: pathlib.Path, advice: str = ADVICE) -> list[dict[str, Any]]:
    """What env.json holds, [] if there is none; as of `config`."""
    try:
        return files.read_json(directory / 'env.json', [_START], advice)
    except FileNotFoundError:
        return []


def data(directory: pathlib.Path, advice: str = ADVICE) -> dict[str, Any]:
    """What data.json holds, {} if there is none; as of `config`."""
    file = directory / 'data.json'
    try:
        found = files.read_json(file, _DATA, advice)
    except FileNotFoundError:
        return {}
    if len(found['images']) != 2:
        raise UserError(f"{file} cannot be read ('images' has {len(found['images'])} classes, expected 2). {advice}")
    return found


@functools.cache
def _config_shape() -> dict[str, Any]:
    tree = _shape_of(base.get_config().to_dict())
    return {'config': {**tree, 'trials?': [{str: object}]}, 'identity': {str: object}, 'swept': [str]}


def _shape_of(value: Any) -> Any:
    """Of a config's value: keys may be missing, numbers with and without a point are alike."""
    if isinstance(value, Mapping):
        return {f'{key}?': _shape_of(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return [_shape_of(value[0])] if value else list
    return (int, float) if isinstance(value, float) else type(value)
