"""Checkpoints of a batch of lanes. Everything that touches orbax is here.

Beside the checkpoints of a phase lies digests.json: epochs done -> a SHA-256 for each lane, over its trial's id, the
phase, the epochs done, and the path, dtype, shape and bytes of its part of every array. A checkpoint that does not
agree is damaged, was renamed, or belongs to other trials. null: a checkpoint from before there were digests.
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import pathlib
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from bhcnet_jax import files
from bhcnet_jax.errors import UserError

KEPT = 2  # checkpoints of a phase that stay on disk: the newest, and one to fall back to
DIGESTS = 'digests.json'
SPARE_BYTES, SPARE_FILES = 2**20, 64  # for the small files, some thirty, that orbax writes beside the arrays


class _PlainPath(type(epath.Path())):
    """A path in which [, ] and * are characters. etils, through which orbax reads, takes them for a pattern."""

    def glob(self, pattern: str) -> Iterator['_PlainPath']:
        """The paths in this folder that match."""
        return map(type(self), pathlib.Path(self).glob(pattern))


class Checkpoints:
    """The checkpoints of one phase of a batch of lanes, numbered by the epochs done.

    A checkpoint holds numpy arrays with a leading axis [lanes]. It says nothing of the devices that made it, so that
    others can go on. It has its name only once it is complete.
    """

    def __init__(
        self, directory: pathlib.Path, trial_ids: Sequence[str | None], metadata: dict[str, Any] | None = None
    ):
        """directory: of the phase, with its name; made if missing. trial_ids: lane by lane, None for a forgotten one.

        metadata: JSON-able, written beside the checkpoints.
        """
        directory.mkdir(parents=True, exist_ok=True)
        _hush_threads()
        self._phase, self._trial_ids, self._digests = directory.name, trial_ids, directory / DIGESTS
        alone = ocp.options.MultiprocessingOptions(active_processes={0})  # only process 0 writes
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT,
            create=False,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,
            multiprocessing_options=alone,
        )
        # orbax rejects relative paths.
        self._manager = ocp.CheckpointManager(
            _PlainPath(directory.resolve()),
            options=options,
            metadata=metadata,
            # Without it the manager guesses from the newest directory, which may be a stray one.
            item_handlers=ocp.StandardCheckpointHandler(multiprocessing_options=alone),
        )
        self._thread = ThreadPoolExecutor(1)
        self._saving: Future[None] | None = None

    def start_saving(self, epochs_done: int, tree: Any) -> None:
        """`save` in a thread, once an earlier one is over; `wait` raises its errors. The arrays must not change."""
        self.wait()
        self._saving = self._thread.submit(self.save, epochs_done, tree)

    def wait(self) -> None:
        """Returns when all is complete on disk. Errors of `save`."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def save(self, epochs_done: int, tree: Any) -> None:
        """Writes a tree of numpy arrays; it is complete on disk on return. OSError if it cannot be written."""
        self._refuse_full_disk(tree)
        self._write_digests(epochs_done, tree)
        try:
            self._manager.save(epochs_done, args=ocp.args.StandardSave(tree))
        except ValueError as error:  # tensorstore passes the system's error on as text
            code = re.search(r"os_error_code='(\d+)'", str(error))
            if not code:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(self._manager.directory)) from error

    def _refuse_full_disk(self, tree: Any) -> None:
        """Raises OSError if the tree does not fit; on a full disk orbax's threads print hundreds of lines."""
        disk = shutil.disk_usage(self._manager.directory)
        needed = SPARE_BYTES + sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
        if disk.total and disk.free < needed:  # some network file systems report a size of 0 bytes
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._manager.directory))
        nodes = os.statvfs(self._manager.directory)
        if nodes.f_files and nodes.f_favail < SPARE_FILES:  # file systems without inodes report 0
            raise OSError(errno.ENOSPC, 'too many files on the disk (df -i)', str(self._manager.directory))

    def restore(self, like: Any, at: int | None = None) -> tuple[int, Any] | None:
        """The newest readable checkpoint as (epochs done, tree of numpy arrays); None if there is none.

        like: a tree of arrays of the same structure, shapes and dtypes. at: only the checkpoint of so many epochs.
        What has the name of a checkpoint but is damaged is moved aside, and the log says so.
        """
        for epochs_done in sorted(self._manager.all_steps(), reverse=True):
            if at is not None and epochs_done != at:
                continue
            try:
                tree = self._manager.restore(epochs_done, args=ocp.args.StandardRestore(like))
                _check_shapes(tree, like)  # orbax returns the shapes on disk and does not compare them
                self._check_digests(epochs_done, tree)
            except Exception as error:  # what orbax raises depends on the byte that is damaged
                self._move_aside(epochs_done, error)
            else:
                return epochs_done, tree
        return None

    def _move_aside(self, epochs_done: int, error: Exception) -> None:
        path = pathlib.Path(self._manager.directory) / str(epochs_done)
        aside = path.with_name(f'unreadable-{epochs_done}-{time.time_ns()}')
        path.rename(aside)
        self._manager.reload()
        reason = ' '.join(str(error).split())[:200]
        logging.warning('Checkpoint %s cannot be read (%s); moved to %s.', path, reason, aside.name)

    def _write_digests(self, epochs_done: int, tree: Any) -> None:
        """Adds the digests of a checkpoint, before it appears; those of checkpoints that are gone go."""
        there = [str(epoch) for epoch in self._manager.all_steps()]
        try:
            known = self._read_digests()
        except UserError:  # a restore has moved all checkpoints aside
            known = {}
        known = dict.fromkeys(there) if known is None else {epoch: known[epoch] for epoch in there if epoch in known}
        mine = _digests_of(self._phase, epochs_done, self._trial_ids, tree)
        files.write_json(self._digests, {**known, str(epochs_done): mine})

    def _read_digests(self) -> dict[str, list[str] | None] | None:
        return _read_digests(self._digests)

    def _check_digests(self, epochs_done: int, tree: Any) -> None:
        """ValueError if a checkpoint is not the one that was saved."""
        _compare(self._read_digests(), self._phase, epochs_done, self._trial_ids, tree)

    def close(self) -> None:
        """Waits, then frees the threads. Errors of `save`."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._manager.close()


def read(directory: pathlib.Path, epochs_done: int, trial_ids: Sequence[str | None]) -> Any:
    """One checkpoint of a phase as nested dicts of numpy arrays. Writes nothing, so another process may train there.

    trial_ids: lane by lane. UserError: it cannot be read, or is not what was saved.
    """
    path = directory.resolve() / str(epochs_done) / 'default'  # orbax's name for the one tree of a checkpoint
    _hush_threads()
    try:
        with contextlib.closing(ocp.Checkpointer(ocp.StandardCheckpointHandler())) as checkpointer:
            tree = checkpointer.restore(_PlainPath(path))
        _compare(_read_digests(directory / DIGESTS), directory.name, epochs_done, trial_ids, tree)
        return tree
    except UserError:
        raise
    except Exception as error:  # what orbax raises depends on the byte that is damaged
        reason = ' '.join(str(error).split())[:200]
        raise UserError(f'{path.parent}: the weights cannot be read ({reason}). Train the trial again.') from error


@functools.cache
def _hush_threads() -> None:
    """Silences the threads of orbax: they print tracebacks of what is raised here anyway."""
    for logger, said in (('asyncio', 'exception was never'), ('absl', 'Thread.run() raised an exception')):
        logging.logging.getLogger(logger).addFilter(lambda record, said=said: said not in record.getMessage())
    show = sys.unraisablehook

    def show_others(what: Any) -> None:
        if not (what.exc_type is RuntimeError and str(what.exc_value) == 'Event loop is closed'):
            show(what)

    sys.unraisablehook = show_others


def _read_digests(file: pathlib.Path) -> dict[str, list[str] | None] | None:
    """Epochs done -> the digests of their lanes. None: an earlier version wrote these checkpoints."""
    try:
        return files.read_json(file, {str: (list, type(None))}, 'Delete its directory.')
    except FileNotFoundError:
        return None


def _compare(
    known: dict[str, list[str] | None] | None,
    phase: str,
    epochs_done: int,
    trial_ids: Sequence[str | None],
    tree: Any,
) -> None:
    """ValueError if a checkpoint is not the one that was saved. known: see `_read_digests`."""
    if known is None:
        return
    if str(epochs_done) not in known:
        raise ValueError(f'{DIGESTS} knows no such checkpoint')
    expected, found = known[str(epochs_done)], _digests_of(phase, epochs_done, trial_ids, tree)
    if expected is None:
        return
    lanes = zip(trial_ids, expected, found, strict=True)
    if any(mine != theirs for trial_id, mine, theirs in lanes if trial_id is not None):
        raise ValueError(f'its content does not agree with {DIGESTS}')


def _digests_of(phase: str, epochs_done: int, trial_ids: Sequence[str | None], tree: Any) -> list[str]:
    """Of each lane; the same for arrays in nested dicts and in the classes that they were saved from."""
    lanes = [hashlib.sha256(json.dumps([trial_id, phase, epochs_done]).encode()) for trial_id in trial_ids]
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}
    for name in sorted(named):
        leaf = named[name]
        for lane, part in zip(lanes, leaf, strict=True):
            lane.update(f'{name} {leaf.dtype.str} {leaf.shape[1:]}'.encode() + np.ascontiguousarray(part).tobytes())
    return [lane.hexdigest() for lane in lanes]


def _check_shapes(tree: Any, like: Any) -> None:
    found, expected = (jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), part) for part in (tree, like))
    if found != expected:
        raise ValueError(f'arrays of shapes {found}, expected {expected}')
