"""Everything that touches orbax: checkpoints of all lanes of a phase, and falling back where one is unreadable."""

import errno
import os
import pathlib
import re
import shutil
import time
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

KEPT = 2  # checkpoints of a phase that stay on disk: the last one, and one to fall back to
SPARE_BYTES = 2**20  # on the disk beside the arrays: orbax writes some thirty small files as well


class Checkpoints:
    """The checkpoints of one phase of a batch of lanes, numbered by the epochs that are done.

    A checkpoint holds numpy arrays with a leading axis [lanes], without any trace of the devices that made them, so
    that other devices can go on. It appears under its name only when it is complete.
    """

    def __init__(self, directory: pathlib.Path, metadata: dict[str, Any] | None = None):
        """directory: made if missing. metadata: JSON-able, written beside the checkpoints."""
        directory.mkdir(parents=True, exist_ok=True)
        alone = ocp.options.MultiprocessingOptions(active_processes={0})  # of several processes only the first writes
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT,
            create=False,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,
            multiprocessing_options=alone,
        )
        # orbax rejects relative paths.
        self._manager = ocp.CheckpointManager(
            directory.resolve(),
            options=options,
            metadata=metadata,
            # Left to itself the manager guesses this from the newest directory, which may be a stray one.
            item_handlers=ocp.StandardCheckpointHandler(multiprocessing_options=alone),
        )

    def save(self, epochs_done: int, tree: Any) -> None:
        """Writes a tree of numpy arrays and returns when it is complete on disk. OSError if it cannot be written."""
        self._refuse_full_disk(tree)
        try:
            self._manager.save(epochs_done, args=ocp.args.StandardSave(tree))
        except ValueError as error:  # what the system says comes through tensorstore as text
            code = re.search(r"os_error_code='(\d+)'", str(error))
            if not code:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(self._manager.directory)) from error

    def _refuse_full_disk(self, tree: Any) -> None:
        """Asked beforehand, since orbax prints hundreds of lines from its threads when the disk is full."""
        disk = shutil.disk_usage(self._manager.directory)
        needed = SPARE_BYTES + sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
        if disk.total and disk.free < needed:  # some network file systems call themselves 0 bytes large
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._manager.directory))

    def restore(self, like: Any, at: int | None = None) -> tuple[int, Any] | None:
        """The newest readable checkpoint as (epochs done, tree of numpy arrays), or None where there is none.

        like: a tree of arrays of the same structure, shapes and dtypes. at: look at this number of epochs only.
        A directory that is named like a checkpoint and cannot be read is moved aside, and the log says so.
        """
        for epochs_done in sorted(self._manager.all_steps(), reverse=True):
            if at is not None and epochs_done != at:
                continue
            try:
                tree = self._manager.restore(epochs_done, args=ocp.args.StandardRestore(like))
                _check_shapes(tree, like)  # orbax returns the shape on disk, whatever it is asked for
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
