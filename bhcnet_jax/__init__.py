"""Honest, fast studies of small networks on small medical image sets, in JAX."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bhcnet_jax.version import __version__

if TYPE_CHECKING:
    from bhcnet_jax.inference.model import Model

__all__ = ['__version__', 'load']


def load(path: str | os.PathLike[str], trials: str = '') -> Model:
    """The model of a run directory, or of some of its trials.

    trials: as in 'seed=0 fold=3', see `inference.trained.select`; several trials become an ensemble.
    UserError, one line: there is no model, or the trials have several recipes.
    """
    import pathlib

    from bhcnet_jax.inference import trained  # imports JAX

    path = pathlib.Path(path)
    return trained.read(path, trained.select(path, trials))
