"""The run directory: the config and data it belongs to, the starts that wrote it, and its lock."""

import contextlib
import datetime
import errno
import fcntl
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import shlex
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bhcnet_jax.datasets.input_pipeline import ImageSet
from bhcnet_jax.errors import UserError
from bhcnet_jax.files import PARTIAL, write_json
from bhcnet_jax.machine import code_version, hardware, variables
from bhcnet_jax.plan.groups import Grouping
from bhcnet_jax.plan.phases import DRAWN
from bhcnet_jax.plan.trial import NEUTRAL, Trial, resolve
from bhcnet_jax.records import merge, run_files

PACKAGES = (
    'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'tensorflow-datasets', 'grain',
    'numpy', 'pillow', 'scikit-learn',
)  # fmt: skip
DELETION_SECONDS = 2  # that deleting a run directory may take after its database went
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

    The config must be that of earlier calls that trained, but for keys in `swept`, of this call or of earlier ones,
    and for keys that one of them does not use: their trials live side by side. recipe: the part of the config that
    fixes results, without seed and fold; None: `trial.resolve`.

    UserError if the directory belongs to another config or other data, if another process writes to it, if it holds
    other files, if its database is lost, or if it cannot be written.
    """
    mine, is_claimed = _describe(config, image_set, swept, recipe), False
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f'{path} cannot be used: {error.strerror}. {_elsewhere(path)}') from error
    try:
        _lock(lock, path)
        admitted = _admit(path, mine)
        if admitted is not None:
            write_json(path / 'config.json', admitted)
        is_claimed = True
        yield
    except Exception as error:
        if is_claimed and _is_deleted(path, isinstance(error, FileNotFoundError)):
            shutil.rmtree(path, ignore_errors=True)  # what was written meanwhile would keep the next start out
            raise UserError(f'{path} was deleted while this process wrote to it. Start again.') from error
        if not isinstance(error, OSError):
            raise
        where = _inside(path, error)
        if where is None:
            raise
        raise UserError(
            f'{where} cannot be used: {error.strerror}. What was written is safe. Remove the cause and start again.'
        ) from error
    finally:
        os.close(lock)


def check(path: pathlib.Path, config: ConfigDict, image_set: ImageSet, swept: Sequence[str] = ()) -> None:
    """Raises the UserError by which `claim` would refuse the directory to a config. Writes nothing."""
    if path.exists():
        _admit(path, _describe(config, image_set, swept, None))


def _describe(
    config: ConfigDict, image_set: ImageSet, swept: Sequence[str], recipe: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What config.json says of a config."""
    return {
        'dataset': image_set.label,
        'swept': sorted(swept),
        'identity': _identity(config, image_set, resolve(config) if recipe is None else recipe),
        'config': config.to_dict(),
    }


def _is_deleted(path: pathlib.Path, is_missing: bool) -> bool:
    """Whether nothing of a claimed directory is left but what came after somebody deleted it.

    is_missing: a file was not there. Then, or where the database is gone, somebody may still be at it.
    """
    deadline = time.monotonic() + DELETION_SECONDS
    while _remains(path):
        is_missing = is_missing or not (path / 'results.sqlite').exists()
        if not is_missing or time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _remains(path: pathlib.Path) -> bool:
    """Whether something is there that a run only writes at its start."""
    kept = ('config.json', 'env.json', 'data.json', 'results.sqlite', 'checkpoints/*/batch.json')
    try:
        return any(True for name in kept for _ in path.glob(name))
    except FileNotFoundError:  # a folder went while it was listed
        return True


def _inside(path: pathlib.Path, error: OSError) -> pathlib.Path | None:
    """What in a run directory an error is about; None: it is about something else."""
    if isinstance(error.filename, str | os.PathLike):
        named = pathlib.Path(error.filename)
        return named if named.resolve().is_relative_to(path.resolve()) else None
    return path if error.errno in UNWRITABLE else None


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
        raise UserError(f'{path}: another process is training here. Wait for it. {_elsewhere(path)}') from None


def _elsewhere(path: pathlib.Path, otherwise: str = '') -> str:
    """A sentence that names a free run directory, and what else one can do."""
    base = path.parent if path.name.startswith('shard-') else path
    base = base if base.name else base.resolve()
    names = (base.parent / f'{base.name}-{number}' for number in itertools.count(2))
    free = next(name for name in names if not name.exists())
    return f'Use another one, as in --workdir={shlex.quote(str(free))}{otherwise}.'


def _admit(path: pathlib.Path, mine: dict[str, Any]) -> dict[str, Any] | None:
    """What config.json is to say for a config to join a directory, None: as it does. UserError if it may not join.

    A directory belongs to a config once its database has a trial: a call that failed before leaves it free.
    """
    _refuse_lost_database(path)
    file = path / 'config.json'
    if not file.exists():
        if any(other.suffix != PARTIAL for other in path.iterdir()):
            raise UserError(f'{path} holds files but no config.json: not a run directory. {_elsewhere(path)}')
        return mine
    theirs = run_files.config(path, f'Restore it. {_elsewhere(path)}')
    if not merge.look(path):
        return mine
    identity, swept = theirs['identity'], {*theirs['swept'], *mine['swept']}
    _refuse_differences(path, identity, mine['identity'], swept)
    joined = {**theirs, 'swept': sorted(swept), 'identity': {**mine['identity'], **identity}}
    return joined if joined != theirs else None


def _refuse_differences(
    path: pathlib.Path, there: Mapping[str, Any], here: Mapping[str, Any], swept: Collection[str]
) -> None:
    """Raises UserError if two identities differ in more than swept keys and keys that one of them does not use."""
    keys = [key for key in {**there, **here} if there.get(key) != here.get(key) and key not in swept]
    keys = [key for key in keys if not _is_unused(key, there) and not _is_unused(key, here)]
    if keys:
        keys.sort(key=_place)
        shown = '; '.join(f'{key} is {there.get(key)} there, {here.get(key)} here' for key in keys[:3])
        more = f'; and {len(keys) - 3} more' if len(keys) > 3 else ''
        both = ''
        if keys in (['seed'], ['split.fold']):
            both = f', or train both here: --sweep={keys[0]}={there[keys[0]]},{here[keys[0]]}'
        raise UserError(f'{path} holds another run ({shown}{more}). {_elsewhere(path, both)}')


def _place(key: str) -> int:
    """Where a key stands in a refusal: those first on which others depend."""
    return 0 if key in ('phases', 'model.name') else 1 if key.startswith('dataset.') else 2


def _is_unused(key: str, identity: Mapping[str, Any]) -> bool:
    """Whether an identity lacks a key since another key's value leaves it without use, such as that of a phase."""
    section = key.rpartition('.')[0]
    if key in identity or not section:
        return False
    # A key at its neutral value is left out, too; then others of its section are there.
    return key not in NEUTRAL or not any(other.startswith(f'{section}.') for other in identity)


def _refuse_lost_database(path: pathlib.Path) -> None:
    """Raises UserError if there are weights or scores of trials, but no database that explains them."""
    database = path / 'results.sqlite'
    left = [*path.glob('checkpoints/*'), *path.glob('results.csv')]
    if left and not (database.exists() and database.stat().st_size):
        raise UserError(
            f'{path} has {left[0].relative_to(path)}, but its database results.sqlite is missing or empty. '
            f'Restore it from a copy. {_elsewhere(path)}'
        )


def record_start(path: pathlib.Path, command: str, swept: str = '') -> None:
    """Adds this process to env.json, a list: a resumed run has several, maybe on several machines.

    swept: the axes of its sweep, which a call from Python has no command for.
    """
    starts = run_files.starts(path, 'Move it away; it only lists earlier starts.')
    starts.append(
        {
            'started': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
            'command': command,
            'sweep': swept,
            'code': code_version(),
            'python': platform.python_version(),
            'packages': {name: importlib.metadata.version(name) for name in PACKAGES},
            'platform': platform.platform(),
            'hardware': hardware(),
            'XLA_FLAGS': os.environ.get('XLA_FLAGS', ''),
            'variables': variables(),
        }
    )
    write_json(path / 'env.json', starts)


def record_data(
    path: pathlib.Path, image_set: ImageSet, grouping: Grouping, trial: Trial | None, resolution: int = 0
) -> None:
    """Writes data.json: fingerprint, pixel hashes and groups by image id, and a single trial's split and phases.

    resolution: `ImageSet.resolution` of equalised images, 0 for none here. It depends on the data alone, so that of an
    earlier start stays.
    """
    ids = np.array(image_set.ids)
    members = [ids[grouping.groups == group].tolist() for group in np.unique(grouping.groups)]
    classes = image_set.class_names
    tree = {
        'dataset': image_set.label,
        'fingerprint': image_set.fingerprint,
        'resolution': resolution or _recorded_resolution(path),
        'images': {name: int(np.sum(image_set.labels == label)) for label, name in enumerate(classes)},
        'pixel_sha256': dict(zip(image_set.ids, image_set.pixel_sha256, strict=True)),
        'groups': [group for group in members if len(group) > 1],
        'pairs': [_pair(ids, pair) for pair in grouping.pairs],
    }
    if trial:
        tree |= {
            'split_digest': trial.split.digest,
            'train': ids[trial.split.train].tolist(),
            'test': ids[trial.split.test].tolist(),
            'phases': {
                phase.name: {'drawn': phase.samples}
                if phase.name == DRAWN
                else {**dict(zip(classes, phase.counts, strict=True)), 'augmented': phase.samples}
                for phase in trial.phases
            },
        }
    write_json(path / 'data.json', tree)


def _recorded_resolution(path: pathlib.Path) -> int:
    try:
        return run_files.data(path).get('resolution', 0)
    except UserError:  # damaged: it is written anew
        return 0


def _pair(ids: Sequence[str], pair: Any) -> dict[str, Any]:
    return {
        'a': str(ids[pair.a]),
        'b': str(ids[pair.b]),
        'reason': pair.reason,
        'similarity': round(pair.similarity, 4),
    }
