"""Drawn patients that no network is trained on, for scoring networks that see volumes."""

import hashlib
import inspect
import sys

import jax
import numpy as np

from bhcnet_jax.datasets.phantom import heads
from bhcnet_jax.datasets.phantom.version import drawing_version

COUNT = 200  # patients
KEY = 2**32 - 22  # above all seeds, from which training draws


def draw(size: int, slices: int) -> tuple[np.ndarray, np.ndarray]:
    """The patients' volumes, uint8 [COUNT, slices, size, size], and labels, int32 [COUNT]: 1 if any slice bleeds."""

    @jax.jit
    def one(place: jax.Array) -> tuple[jax.Array, jax.Array]:
        patient = heads.draw_volume(jax.random.fold_in(jax.random.key(KEY), place), size, slices)
        return patient.image, patient.label.max()

    drawn = [jax.device_get(one(place)) for place in range(COUNT)]
    images, labels = map(np.stack, zip(*drawn, strict=True))
    return images, labels


def fingerprint() -> str:
    """SHA-256, hex, over the source of this file and of the drawing; see `drawing_version`."""
    source = inspect.getsource(sys.modules[__name__])
    return hashlib.sha256((source + drawing_version()).encode()).hexdigest()
