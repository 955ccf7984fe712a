"""Writes that are complete or absent: a reader, or a kill, never meets half of a file."""

import contextlib
import errno
import json
import os
import pathlib
from collections.abc import Iterator
from typing import IO, Any

from bhcnet_jax.errors import UserError

PARTIAL = '.partial'  # ends the names of files that are being written


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """Yields a binary file that takes the place of `path` when the block ends, and goes away if the block raises.

    The file beside `path` is made anew, so that nothing is written through a link that lies there. OSError: it cannot
    be written, or `path` is a device, a pipe or a folder.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, 'not a regular file', str(path))
    partial = path.with_name(path.name + PARTIAL)
    partial.unlink(missing_ok=True)
    try:
        with partial.open('xb') as file:
            yield file
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def output(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """`replacing` for a file that the user named. UserError: it cannot be written."""
    try:
        with replacing(path) as file:
            yield file
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror or error}. Name another file.') from error


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file, UTF-8; see `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: pathlib.Path, tree: Any) -> None:
    """Writes a JSON file; see `replacing`."""
    write_text(path, json.dumps(tree, indent=2) + '\n')
