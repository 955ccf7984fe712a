"""The run directory: the config and data it belongs to, the starts that wrote it, and its lock."""

import contextlib
import datetime
import errno
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bhcnet_jax.datasets.input_pipeline import ImageSet
from bhcnet_jax.errors import UserError
from bhcnet_jax.files import PARTIAL, write_json
from bhcnet_jax.machine import code_version, hardware, variables
from bhcnet_jax.plan.groups import Grouping
from bhcnet_jax.plan.trial import Trial, resolve

PACKAGES = (
    'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'tensorflow-datasets', 'grain',
    'numpy', 'pillow', 'scikit-learn',
)  # fmt: skip
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)


@contextlib.contextmanager
def claim(
    path: pathlib.Path,
    config: ConfigDict,
    image_set: ImageSet,
    swept: Sequence[str] = (),
    recipe: Mapping[str, Any] | None = None,
) -> Iterator[None]:
    """Makes the directory or opens it again, and keeps other processes out of it.

    The config must be that of earlier calls, but for keys in `swept`, of this call or of earlier ones: their trials
    live side by side. recipe: the part of the config that fixes results, without seed and fold; None: `trial.resolve`.
    UserError if the directory belongs to another config or other data, if another process writes to it, if it holds
    other files, if its database is lost, or if it cannot be written.
    """
    mine = {
        'dataset': image_set.label,
        'swept': sorted(swept),
        'identity': _identity(config, image_set, resolve(config) if recipe is None else recipe),
        'config': config.to_dict(),
    }
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f'{path} cannot be used: {error.strerror}. Use another --workdir.') from error
    try:
        _lock(lock, path)
        _refuse_lost_database(path)
        if (path / 'config.json').exists():
            _join(path, mine)
        else:
            _refuse_strangers(path)
            write_json(path / 'config.json', mine)
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise UserError(
            f'{path} cannot be written: {error.strerror}. What was written is safe. Remove the cause and start again.'
        ) from error
    finally:
        os.close(lock)


def _identity(config: ConfigDict, image_set: ImageSet, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """All that fixes the results of a config, flat: dotted key -> value."""
    seed_and_fold = {'seed': config.seed, 'split.fold': config.split.fold}
    tree = {**recipe, **seed_and_fold, 'data fingerprint': image_set.fingerprint}
    return dict(_flatten('', json.loads(json.dumps(tree))))


def _flatten(prefix: str, tree: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _flatten(f'{prefix}.{key}' if prefix else key, value)
    else:
        yield prefix, tree


def _lock(descriptor: int, path: pathlib.Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system frees it when the process ends
    except BlockingIOError:
        raise UserError(f'{path}: another process is training here. Wait for it, or use another --workdir.') from None


def _refuse_strangers(path: pathlib.Path) -> None:
    if any(file.suffix != PARTIAL for file in path.iterdir()):
        raise UserError(f'{path} holds files but no config.json: not a run directory. Use another --workdir.')


def _refuse_lost_database(path: pathlib.Path) -> None:
    """Raises UserError if there are weights or scores of trials, but no database that explains them."""
    database = path / 'results.sqlite'
    left = [*path.glob('checkpoints/*'), *path.glob('results.csv')]
    if left and not (database.exists() and database.stat().st_size):
        raise UserError(
            f'{path} has {left[0].relative_to(path)}, but its database results.sqlite is missing or empty. '
            'Restore it from a copy, or use another --workdir.'
        )


def _join(path: pathlib.Path, mine: dict[str, Any]) -> None:
    """Raises UserError if more than swept keys differ; remembers newly swept keys."""
    try:
        theirs = json.loads((path / 'config.json').read_text())
        identity, swept = theirs['identity'], {*theirs['swept'], *mine['swept']}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path}/config.json cannot be read ({error}). Use another --workdir.') from error
    keys = [key for key in {**identity, **mine['identity']} if identity.get(key) != mine['identity'].get(key)]
    keys = [key for key in keys if key not in swept]
    if keys:
        shown = '; '.join(f'{key} is {identity.get(key)} there, {mine["identity"].get(key)} here' for key in keys[:3])
        more = f'; and {len(keys) - 3} more' if len(keys) > 3 else ''
        raise UserError(f'{path} holds another run ({shown}{more}). Use another --workdir.')
    if swept != set(theirs['swept']):
        write_json(path / 'config.json', {**theirs, 'swept': sorted(swept)})


def record_start(path: pathlib.Path, command: str) -> None:
    """Adds this process to env.json, a list: a resumed run has several, maybe on several machines."""
    file = path / 'env.json'
    starts = json.loads(file.read_text()) if file.exists() else []
    starts.append(
        {
            'started': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
            'command': command,
            'code': code_version(),
            'python': platform.python_version(),
            'packages': {name: importlib.metadata.version(name) for name in PACKAGES},
            'platform': platform.platform(),
            'hardware': hardware(),
            'XLA_FLAGS': os.environ.get('XLA_FLAGS', ''),
            'variables': variables(),
        }
    )
    write_json(file, starts)


def record_data(path: pathlib.Path, image_set: ImageSet, grouping: Grouping, trial: Trial | None) -> None:
    """Writes data.json: the fingerprint, the groups by image id, and a single trial's split and phases."""
    ids = np.array(image_set.ids)
    members = [ids[grouping.groups == group].tolist() for group in np.unique(grouping.groups)]
    classes = image_set.class_names
    tree = {
        'dataset': image_set.label,
        'fingerprint': image_set.fingerprint,
        'images': {name: int(np.sum(image_set.labels == label)) for label, name in enumerate(classes)},
        'groups': [group for group in members if len(group) > 1],
        'pairs': [_pair(ids, pair) for pair in grouping.pairs],
    }
    if trial:
        tree |= {
            'split_digest': trial.split.digest,
            'train': ids[trial.split.train].tolist(),
            'test': ids[trial.split.test].tolist(),
            'phases': {
                phase.name: {**dict(zip(classes, phase.counts, strict=True)), 'augmented': phase.samples}
                for phase in trial.phases
            },
        }
    write_json(path / 'data.json', tree)


def _pair(ids: Sequence[str], pair: Any) -> dict[str, Any]:
    return {
        'a': str(ids[pair.a]),
        'b': str(ids[pair.b]),
        'reason': pair.reason,
        'similarity': round(pair.similarity, 4),
    }
