"""Decoded images in one file, so that a set is opened again without the libraries that prepared it.

The file is for this program alone: who wants the images has the prepared copy. It lies in the folder of its set, beside
that copy, and is another file for every way in which the set is decoded.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from bhcnet_jax import files

VERSION = 1  # of what `preprocessing.decode` makes of a prepared image; part of the file's name


def file_name(image_size: int, equalise: bool, resolution: int) -> str:
    """Of the images of a set; see `input_pipeline.load`."""
    how = f'-equalised-{resolution or "smallest"}' if equalise or resolution else ''
    return f'decoded-{VERSION}-{image_size}px{how}.npz'


def read(path: Path) -> dict[str, Any] | None:
    """What `write` was given: uint8 arrays, tuples and scalars. None: it is not there, or, with a warning, damaged.

    What was written for another set, or for other images of it, counts as damaged.
    """
    try:
        with path.open('rb') as file, np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        if arrays.pop('digest').tobytes() != _digest(path, arrays):
            raise ValueError('its digest is another')
        rest = json.loads(arrays.pop('rest').tobytes())
        return arrays | {name: tuple(value) if isinstance(value, list) else value for name, value in rest.items()}
    except OSError:  # among them that it is another user's
        return None
    except Exception as error:  # numpy and zipfile raise each their own
        logging.warning('%s is damaged (%s); the images are read from the prepared copy.', path, error)
        return None


def write(path: Path, columns: Mapping[str, Any]) -> None:
    """Keeps columns, if the folder has room and may be written to. Images: tuples of uint8 [H, W] of one size each."""
    arrays = {name: np.stack(column) for name, column in columns.items() if name in ('image', 'thumbnail')}
    rest = json.dumps({name: column for name, column in columns.items() if name not in arrays})
    arrays['rest'] = np.frombuffer(rest.encode(), np.uint8)
    digest = np.frombuffer(_digest(path, arrays), np.uint8)
    with contextlib.suppress(OSError), files.replacing(path) as file:
        np.savez(file, digest=digest, **arrays)


def _digest(path: Path, arrays: Mapping[str, np.ndarray]) -> bytes:
    """SHA-256 over the set's folder, the file's name and all arrays."""
    digest = hashlib.sha256(f'{path.parent.name}/{path.name}'.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f'{name} {array.dtype} {array.shape}'.encode())
        digest.update(np.ascontiguousarray(array))
    return digest.digest()
