"""Honest, fast studies of small networks on small medical image sets, in JAX."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from bhcnet_jax import startup
from bhcnet_jax.version import __version__

if TYPE_CHECKING:
    from bhcnet_jax.inference.model import Model

__all__ = ['__version__', 'load']

if startup.is_command(sys.argv):
    startup.prepare()


def load(path: str | os.PathLike[str], trials: str = '') -> Model:
    """The model of a run directory, of some of its trials, or of a bundle.

    path: 'phantom' as a str is the bundle that comes with the package, whose networks have seen drawn heads alone;
    './phantom' is a path. trials: of a run directory, as in 'seed=0 fold=3', see `inference.trained.select`; several
    become an ensemble.
    UserError, one line: there is no model, or the trials have several recipes.
    """
    import pathlib

    from bhcnet_jax.errors import UserError
    from bhcnet_jax.inference import bundles, trained  # they import JAX

    if path == 'phantom' and trials:
        raise UserError(f'trials={trials!r} chooses from a run directory; the model phantom is used as a whole.')
    if path == 'phantom':
        return bundles.read_shipped()
    path = pathlib.Path(path)
    if path.is_file() and trials:
        raise UserError(f'{path}: trials={trials!r} chooses from a run directory; a bundle is used as a whole.')
    if path.is_file():
        return bundles.read(path)
    return trained.read(path, trained.select(path, trials))
