"""What a recipe reaches that validation images choose among several, fold by fold."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from bhcnet_jax.report.evidence import Recipe


class Choice(NamedTuple):
    """Several recipes as one.

    Attributes:
      recipe: the first of them, with the predictions of whichever was chosen in each fold, as of one seed.
      times: recipe id -> in how many folds it was chosen.
      n_val: validation images of a fold, the fewest.
    """

    recipe: Recipe
    times: Counter[str]
    n_val: int


def by_validation(recipes: Sequence[Recipe]) -> Choice | None:
    """In each fold the recipe with the lowest loss on its validation images answers for the fold's test images.

    recipes: on the same folds. Losses and probabilities are means over seeds. None: no fold has a loss of all recipes.
    """
    losses = pd.DataFrame({each.recipe_id: each.trials.groupby('fold').val_loss.mean() for each in recipes}).dropna()
    if losses.empty:
        return None
    chosen, first = losses.idxmin(axis=1), recipes[0]
    by_id = {each.recipe_id: each for each in recipes}
    probabilities = np.full(len(first.folds), np.nan)
    for fold, recipe_id in chosen.items():
        mine = first.folds == fold
        probabilities[mine] = by_id[recipe_id].mean_probability[mine]
    scored = ~np.isnan(probabilities)
    pooled = first.pooled._replace(
        seeds=first.pooled.seeds[:1],
        image_ids=first.pooled.image_ids[scored],
        labels=first.pooled.labels[scored],
        probabilities=probabilities[None, scored],
    )
    recipe = dataclasses.replace(first, pooled=pooled, groups=first.groups[scored], folds=first.folds[scored])
    return Choice(recipe, Counter(chosen), int(min(each.trials.n_val.min() for each in recipes)))
