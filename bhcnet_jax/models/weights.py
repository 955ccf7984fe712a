"""Weights to start from instead of random ones: a safetensors file in the layout of timm, checked and never unpickled.

A recipe means a file by its SHA-256, wherever it lies: another file is another recipe, and never taken for this one.
"""

import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from bhcnet_jax.errors import UserError
from bhcnet_jax.keys import Key, Part, matching, text

KEYS = (
    Key('model.weights', text, Part.CALL),
    Key(
        'model.weights_sha256',
        matching('|[0-9a-f]{64}', 'a SHA-256, 64 digits of 0-9 and a-f, or an empty text'),
        Part.PROGRAM,
        neutral='',
    ),
)
LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean', 'var': 'running_var'}
CLASSIFIERS = ('fc.', 'classifier.')  # left out: they name the classes of ImageNet
COUNTER = '.num_batches_tracked'  # of steps, which nothing here needs


def check(model: Mapping[str, Any], has_weights: bool) -> None:
    """UserError if the weights that a section `model` names are not there, or are others than its SHA-256 says.

    has_weights: whether its family can start from a file.
    """
    path, expected = model['weights'], model['weights_sha256']
    if not path and not expected:
        return
    if not has_weights:
        raise UserError(f'model.weights is {path!r}, but {model["name"]} cannot start from a file; leave it out.')
    if not path:
        raise UserError(f'model.weights_sha256 is {expected}, but model.weights names no file; set it to the file.')
    if model['norm'] != 'batch':
        raise UserError(f"model.weights needs model.norm = 'batch', but it is {model['norm']!r}.")
    if model['width'] != 1:
        raise UserError(f'model.weights needs model.width = 1.0, but it is {model["width"]}.')
    try:
        found = os.stat(path)
        digest = _digest(path, found.st_mtime_ns, found.st_size)
    except OSError as error:
        raise _unreadable(path, error) from error
    _refuse_other(path, expected, digest)


@functools.lru_cache
def _digest(path: str, changed: int, size: int) -> str:
    """SHA-256 of a file, read once for each time that it changed."""
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def _unreadable(path: str, error: OSError) -> UserError:
    return UserError(f'model.weights: {path} cannot be read ({error.strerror}).')


def _refuse_other(path: str, expected: str, found: str) -> None:
    if not expected:
        raise UserError(
            f'model.weights_sha256 is empty; it tells recipes with different weights apart. The SHA-256 of {path} is '
            f'{found}; set it to this.'
        )
    if found != expected:
        raise UserError(
            f'model.weights: {path} has the SHA-256 {found}, but model.weights_sha256 is {expected}. Restore the file, '
            'or start another run with its SHA-256.'
        )


def read(model: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of a file in place of those of a model; each head keeps its own.

    model: of a config. variables: 'params' and 'batch_stats' of the model, arrays [lanes, ...]. UserError: the file
    cannot be read, has another SHA-256 than model.weights_sha256, or does not hold this network in float32.
    """
    path = model['weights']
    try:
        content = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    _refuse_other(path, model['weights_sha256'], hashlib.sha256(content).hexdigest())
    try:
        found = safetensors.numpy.load(content)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:  # KeyError: a dtype that numpy lacks
        raise UserError(f'model.weights: {path} is not a safetensors file of numbers ({error}).') from error
    ours = traverse_util.flatten_dict(variables)
    names = {place: _name(place) for place in ours if 'trunk' in place}
    tensors = {name: value for name, value in found.items() if not name.startswith(CLASSIFIERS)}
    tensors = {name: value for name, value in tensors.items() if not name.endswith(COUNTER)}
    _refuse_names(path, model['name'], tensors.keys(), set(names.values()))
    taken = {
        place: np.broadcast_to(_fit(path, name, tensors[name], ours[place].shape[1:]), ours[place].shape)
        for place, name in names.items()
    }
    return traverse_util.unflatten_dict({**ours, **taken})


def _name(place: tuple[str, ...]) -> str:
    """timm's name of ours: params/trunk/layer1_0/bn1/BatchNorm_0/scale is layer1.0.bn1.weight."""
    modules = [re.sub(r'_(\d)', r'.\1', part) for part in place[2:-1] if part != 'BatchNorm_0']
    return '.'.join([*modules, LEAVES[place[-1]]])


def _refuse_names(path: str, network: str, found: Any, expected: set[str]) -> None:
    missing, unknown = sorted(expected - set(found)), sorted(set(found) - expected)
    if missing or unknown:
        first = f'it lacks {missing[0]}' if missing else f'it has {unknown[0]}'
        raise UserError(
            f'model.weights: {path} does not hold {network} in the layout of timm: {len(missing)} tensors are missing '
            f'and {len(unknown)} unknown; {first}.'
        )


def _fit(path: str, name: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor in our order of axes; kernels OIHW become HWIO, and one for RGB that for three equal greys."""
    if tensor.ndim == 4:
        tensor = tensor.transpose(2, 3, 1, 0)
        if tensor.shape[2] == 3 and shape[2] == 1:
            tensor = tensor.sum(axis=2, keepdims=True)
    if tensor.dtype != np.float32 or tensor.shape != shape:
        raise UserError(
            f'model.weights: {name} of {path} is {tensor.dtype} {list(tensor.shape)} (kernels as HWIO), expected '
            f'float32 {list(shape)}.'
        )
    return tensor
