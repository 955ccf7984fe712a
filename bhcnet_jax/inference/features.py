"""What trained networks make of images before their last layers, for other classifiers to see.

N images, D features.
"""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bhcnet_jax import models
from bhcnet_jax.datasets.input_pipeline import ImageSet
from bhcnet_jax.errors import UserError
from bhcnet_jax.inference import trained
from bhcnet_jax.training import steps

BLOCK = 32  # images computed together


class Networks:
    """The finished networks of one recipe in a run directory.

    Attributes:
      name: the recipe's label. recipe_id: its id.
    """

    def __init__(self, path: pathlib.Path, trials: str = ''):
        """trials, UserError: as of `trained.select`."""
        self._path, self._chosen = path, trained.select(path, trials)
        first = self._chosen.trials.iloc[0]
        self.name, self.recipe_id = str(first.recipe), str(first.recipe_id)

    def trial_id(self, columns: Mapping[str, Any]) -> str:
        """Of the network with this seed, trained on this split of these images. UserError: there is none.

        columns: seed, split_digest and data_fingerprint of the results database.
        """
        rows = self._chosen.trials
        found = rows
        for name in ('seed', 'split_digest', 'data_fingerprint'):
            found = found[found[name] == columns[name]]
        if found.empty:
            raise UserError(
                f'{self._path} has no finished network of {self.name} with seed {columns["seed"]} on the same split of '
                'the same images. Train it, or ask for the seeds and folds that are there, with config.split as in its '
                'training.'
            )
        return str(found.trial_id.iloc[0])

    def features(self, trial_id: str) -> np.ndarray:
        """What the head of a network sees of all images of its data set: float32 [N, D].

        UserError: its weights or the images are not there, or the images are others.
        """
        rows = self._chosen.trials
        model = trained.read(self._path, self._chosen._replace(trials=rows[rows.trial_id == trial_id]))
        variables = jax.tree.map(lambda leaf: leaf[0], model.variables)

        @jax.jit
        def apply(images: jax.Array) -> jax.Array:
            return models.features(model.config.model, variables, steps.to_unit(images)[..., None])

        images = self._images.images
        filled = np.pad(images, ((0, -len(images) % BLOCK), (0, 0), (0, 0)))
        found = [np.asarray(apply(block), np.float32) for block in filled.reshape(-1, BLOCK, *images.shape[1:])]
        return np.concatenate(found)[: len(images)]

    @functools.cached_property
    def _images(self) -> ImageSet:
        return trained.images(self._chosen)
