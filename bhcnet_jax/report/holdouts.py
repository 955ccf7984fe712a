"""Recipes whose holdout, the paper's 20 test images, was drawn again and again."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping

import pandas as pd

from bhcnet_jax.report import settings


@dataclasses.dataclass(frozen=True)
class Holdouts:
    """A recipe on several holdout splits. trials: all of its rows; settings: without split.seed."""

    label: str
    trials: pd.DataFrame
    settings: settings.Settings


def find(done: pd.DataFrame, known: Mapping[str, settings.Settings]) -> list[Holdouts]:
    """Recipes that differ from another one in split.seed alone, joined; sorted by phases and epochs.

    done: rows of trials. known: settings by recipe id.
    """
    ids = defaultdict(list)
    for recipe_id, found in known.items():
        if found.get('split.scheme') == 'holdout':
            ids[repr(sorted((key, value) for key, value in found.items() if key != 'split.seed'))].append(recipe_id)
    together = [each for each in ids.values() if len(each) > 1]
    of = [{key: value for key, value in known[each[0]].items() if key != 'split.seed'} for each in together]
    keys = settings.varying(of)
    joined = []
    for recipe_ids, mine in zip(together, of, strict=True):
        trials = done[done.recipe_id.isin(recipe_ids)]
        joined.append(Holdouts(settings.label(trials.recipe.iloc[0], mine, keys, {}), trials, mine))
    return sorted(joined, key=lambda each: (each.trials.phases.iloc[0], each.trials.epochs.iloc[0]))
