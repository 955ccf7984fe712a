"""Writes that are complete or absent, so that a reader or a kill never meets half of a file; and checked reads."""

import contextlib
import errno
import json
import os
import pathlib
from collections.abc import Iterator
from typing import IO, Any

from bhcnet_jax.errors import UserError

PARTIAL = '.partial'  # ends the names of files that are being written
MAX_DEPTH = 50  # of lists and objects in each other in a JSON file


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


def read_json(path: pathlib.Path, shape: Any, advice: str) -> Any:
    """A JSON file whose content has a shape.

    shape: a type, a tuple of types, [shape] for a list, {type of the keys: shape} for an object of any keys, or {'key':
    shape} for an object that has these keys, perhaps among others; 'key?' may be missing. advice: what to do about a
    file that is damaged, with a full stop. FileNotFoundError: there is none. UserError: it cannot be read, or has
    another shape.
    """
    try:
        tree = json.loads(path.read_text())
        if _depth(tree) > MAX_DEPTH:
            raise ValueError(f'it is nested more than {MAX_DEPTH} deep')
        _check_shape(tree, shape, 'it')
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f'{path} cannot be read ({reason}). {advice}') from error
    return tree


def _depth(tree: Any) -> int:
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


def _check_shape(tree: Any, shape: Any, name: str) -> None:
    """ValueError if something in a tree is of another type than a shape says, see `read_json`."""
    kind = type(shape) if isinstance(shape, list | dict) else shape
    if not isinstance(tree, kind):
        words = ' or '.join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f'{name} is {json.dumps(tree)[:40]}, expected {words}')
    if isinstance(shape, list):
        for each in tree:
            _check_shape(each, shape[0], f'a part of {name}')
    elif isinstance(shape, dict):
        _check_keys(tree, shape, name)


def _check_keys(tree: dict[str, Any], shape: dict[Any, Any], name: str) -> None:
    if str in shape:
        shape = dict.fromkeys(tree, shape[str])
    for key, inner in shape.items():
        name_of_key = key.removesuffix('?')
        if name_of_key in tree:
            _check_shape(tree[name_of_key], inner, repr(name_of_key))
        elif name_of_key == key:
            raise ValueError(f'{name} has no {key!r}')
