"""Checkpoints of a batch of lanes. Everything that touches orbax is here."""

import errno
import os
import pathlib
import re
import shutil
import time
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

KEPT = 2  # checkpoints of a phase that stay on disk: the newest, and one to fall back to
SPARE_BYTES = 2**20  # for some thirty small files that orbax writes beside the arrays


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

    def __init__(self, directory: pathlib.Path, metadata: dict[str, Any] | None = None):
        """directory: made if missing. metadata: JSON-able, written beside the checkpoints."""
        directory.mkdir(parents=True, exist_ok=True)
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

    def save(self, epochs_done: int, tree: Any) -> None:
        """Writes a tree of numpy arrays; it is complete on disk on return. OSError if it cannot be written."""
        self._refuse_full_disk(tree)
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

    def restore(self, like: Any, at: int | None = None) -> tuple[int, Any] | None:
        """The newest readable checkpoint as (epochs done, tree of numpy arrays); None if there is none.

        like: a tree of arrays of the same structure, shapes and dtypes. at: only the checkpoint of so many epochs.
        An unreadable directory with the name of a checkpoint is moved aside, and the log says so.
        """
        for epochs_done in sorted(self._manager.all_steps(), reverse=True):
            if at is not None and epochs_done != at:
                continue
            try:
                tree = self._manager.restore(epochs_done, args=ocp.args.StandardRestore(like))
                _check_shapes(tree, like)  # orbax returns the shapes on disk and does not compare them
            except (ValueError, TypeError, KeyError, OSError) as error:
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

    def close(self) -> None:
        """Frees the manager's threads."""
        self._manager.close()


def _check_shapes(tree: Any, like: Any) -> None:
    found, expected = (jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), part) for part in (tree, like))
    if found != expected:
        raise ValueError(f'arrays of shapes {found}, expected {expected}')
