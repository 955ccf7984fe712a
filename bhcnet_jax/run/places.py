"""How a trial's weights are found.

Trials that train together share a directory of the run directory, `checkpoints/<digest of their ids>`:

    batch.json              'trials': their ids, lane by lane (null: forgotten); 'phases': the names of their phases
    <phase>/digests.json    what its checkpoints must agree with (see `checkpoints.py`)
    <phase>/<epochs done>/  a checkpoint: 'state', a `steps.TrainState`, and 'class_weights',
                            each with a leading axis [lanes]

A trial's id may be in several batch.json. In each of these directories its newest checkpoint is that of the last phase
begun with the most epochs done. The furthest of them all is the trial's place; its lane is the index of its id. `find`
returns the places of all trials.

A checkpoint counts only if the database has recorded its epoch: rows are durable before the checkpoint is written, so
the database lacks them only if it was restored from an older copy. `set_aside` renames what no trial can go on from.

A batch of lanes goes on in its directory. If its lanes change, because neighbours were pruned, memory was short or
there are other devices, `enter` first copies them from their places into a new directory. `tidy` deletes the
directories that the database says are needless.

Lanes of different phases could train together, since the program is the same. They do not: regrouping would stay, for
the reasons above, and each lane would need its own epochs, its own end and its own number in a checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import pathlib
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from bhcnet_jax import files

if TYPE_CHECKING:  # orbax takes long to import
    from bhcnet_jax.run.checkpoints import Checkpoints

BATCH = 'batch.json'


class Place(NamedTuple):
    """A lane of a stacked checkpoint: after `epoch` epochs of phase number `phase`."""

    phase: int
    epoch: int
    phase_name: str
    directory: pathlib.Path
    lane: int


class UnreadableError(Exception):
    """A checkpoint could not be read and was moved aside. Its trials have another place now."""


def find(path: pathlib.Path, recorded: Mapping[tuple[str, str], int]) -> dict[str, Place]:
    """The place of every trial that has a checkpoint in a run directory, by trial id.

    recorded: see `Results.epochs_done`.
    """
    places = {}
    for file in _batch_files(path):
        batch = _read(file)
        saved = _saved(file.parent, batch['phases'])
        for lane, trial_id in enumerate(batch['trials']):
            known = (each for each in saved if _is_recorded(trial_id, each, recorded))
            place = next((Place(*each, file.parent, lane) for each in known), None)
            if place and (trial_id not in places or place[:2] > places[trial_id][:2]):
                places[trial_id] = place
    return places


def set_aside(path: pathlib.Path, recorded: Mapping[tuple[str, str], int]) -> set[str]:
    """Renames checkpoints of epochs that the database has recorded for none of their trials. Returns these trials."""
    late = set()
    for file in _batch_files(path):
        batch = _read(file)
        for checkpoint in _saved(file.parent, batch['phases']):
            if not any(_is_recorded(trial_id, checkpoint, recorded) for trial_id in batch['trials']):
                late |= {trial_id for trial_id in batch['trials'] if trial_id}
                _, epoch, phase_name = checkpoint
                old = file.parent / phase_name / str(epoch)
                old.rename(old.with_name(f'unrecorded-{epoch}-{time.time_ns()}'))
    return late


def _is_recorded(
    trial_id: str | None, checkpoint: tuple[int, int, str], recorded: Mapping[tuple[str, str], int]
) -> bool:
    _, epoch, phase_name = checkpoint
    return trial_id is not None and epoch <= recorded.get((trial_id, phase_name), 0)


def _batch_files(path: pathlib.Path) -> list[pathlib.Path]:
    return sorted((path / 'checkpoints').glob(f'*/{BATCH}'))


def _saved(directory: pathlib.Path, phase_names: Sequence[str]) -> list[tuple[int, int, str]]:
    """The checkpoints of a directory, the furthest first: number of the phase, epochs done in it, name of the phase."""
    found = []
    for phase, name in enumerate(phase_names):
        with contextlib.suppress(FileNotFoundError):
            inside = (directory / name).iterdir()
            found += [(phase, int(entry.name), name) for entry in inside if entry.name.isdecimal() and entry.is_dir()]
    return sorted(found, reverse=True)


def enter(
    path: pathlib.Path,
    trial_ids: Sequence[str],
    phase_names: Sequence[str],
    places: Mapping[str, Place],
    like: Any,
) -> pathlib.Path:
    """The directory in which a batch of lanes goes on; made if these trials, in this order, have none yet.

    places: see `find`; all trials must be equally far. like: a tree of arrays [lanes, ...] as the batch trains.
    UnreadableError if a checkpoint is damaged: call `find` again.
    """
    mine = {'trials': list(trial_ids), 'phases': list(phase_names)}
    where = [places.get(trial_id) for trial_id in trial_ids]
    if where[0] is not None:
        shared = {place.directory for place in where}
        if len(shared) == 1 and _read(where[0].directory / BATCH) == mine:
            return where[0].directory
    tree = None if where[0] is None else _collect(where, like)
    directory = _new_directory(path, trial_ids)
    files.write_json(directory / BATCH, mine)
    if tree is not None:
        with _checkpoints(directory / where[0].phase_name, trial_ids) as saved:
            saved.save(where[0].epoch, tree)
    return directory


def _checkpoints(directory: pathlib.Path, trial_ids: Sequence[str | None]) -> contextlib.closing[Checkpoints]:
    from bhcnet_jax.run.checkpoints import Checkpoints

    return contextlib.closing(Checkpoints(directory, trial_ids))


def _new_directory(path: pathlib.Path, trial_ids: Sequence[str]) -> pathlib.Path:
    name = hashlib.sha256(' '.join(trial_ids).encode()).hexdigest()[:12]
    for again in itertools.count():
        directory = path / 'checkpoints' / (f'{name}-{again}' if again else name)
        with contextlib.suppress(FileExistsError):  # the same trials trained together before
            directory.mkdir(parents=True)
            return directory


def trials_of(directory: pathlib.Path) -> list[str | None]:
    """The trials of a batch, lane by lane; None for a forgotten one."""
    return _read(directory / BATCH)['trials']


def _read(file: pathlib.Path) -> dict[str, Any]:
    shape = {'trials': [(str, type(None))], 'phases': [str]}
    return files.read_json(file, shape, 'Delete its directory; its unfinished trials then start anew.')


def _collect(places: Sequence[Place], like: Any) -> Any:
    """The lanes at these places, stacked."""
    lanes = {}
    for directory in {place.directory for place in places}:
        here = [place for place in places if place.directory == directory]
        ids = trials_of(directory)
        stack = jax.tree.map(lambda leaf, ids=ids: np.zeros((len(ids), *leaf.shape[1:]), leaf.dtype), like)
        with _checkpoints(directory / here[0].phase_name, ids) as saved:
            found = saved.restore(stack, at=here[0].epoch)
        if found is None:
            raise UnreadableError
        for place in here:
            lanes[place] = jax.tree.map(lambda leaf, lane=place.lane: leaf[lane], found[1])
    return jax.tree.map(lambda *leaves: np.stack(leaves), *(lanes[place] for place in places))


def forget(path: pathlib.Path, trial_ids: Collection[str]) -> None:
    """Takes these trials out of every batch.json, so that no trial goes on from their weights."""
    gone = set(trial_ids)
    for file in _batch_files(path):
        batch = _read(file)
        if gone & set(batch['trials']):
            kept = [None if trial_id in gone else trial_id for trial_id in batch['trials']]
            files.write_json(file, {**batch, 'trials': kept})


def tidy(path: pathlib.Path, needed: Mapping[str, bool], places: Mapping[str, Place]) -> None:
    """Deletes the directories whose trials all are not needed or have their place elsewhere.

    needed: trial id -> whether its weights are, for all trials of the database. What it does not know stays. places:
    see `find`.
    """
    for file in _batch_files(path):
        here = [trial_id for trial_id in _read(file)['trials'] if trial_id]
        if all(needed.get(each) is False or _is_elsewhere(places.get(each), file.parent) for each in here):
            drop(file.parent)


def _is_elsewhere(place: Place | None, directory: pathlib.Path) -> bool:
    return place is not None and place.directory != directory


def drop(directory: pathlib.Path) -> None:
    """Deletes the directory of a batch. Its rows must be final before."""
    (directory / BATCH).unlink()  # first, so that a deletion cut short leaves nothing to go on from
    shutil.rmtree(directory)
