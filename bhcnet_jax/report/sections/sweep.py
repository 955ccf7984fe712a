"""The sweep at a glance."""

import numbers

import numpy as np
import pandas as pd

from bhcnet_jax.report import plots, settings
from bhcnet_jax.report.evidence import Evidence, Recipe
from bhcnet_jax.report.page import Section

COMMAND = (
    "python -m bhcnet_jax.main --config=balanced --sweep='model.dropout=0,0.25,0.5 optimizer.peak_lr=log(1e-4,1e-2,3)'"
)


def sweep(evidence: Evidence) -> Section:
    """Shows each recipe as a line over the settings that were swept, and its accuracy."""
    networks = [each for each in evidence.recipes if each.kind == 'network' and each.settings]
    keys = [key for key in settings.varying([each.settings for each in networks]) if _numeric(networks, key)]
    title = 'The sweep at a glance'
    if len(keys) < 2:
        found = f'{len(keys)} numeric setting{"s" * (len(keys) != 1)} var{"y" if len(keys) != 1 else "ies"}'
        return Section(title, [
            f'Missing: recipes that differ in two or more numeric settings ({found}). `{evidence.command(COMMAND)}`'
        ])  # fmt: skip
    values = pd.DataFrame([{key: each.settings[key] for key in keys} for each in networks])
    accuracy = np.array([each.scores['accuracy'].mean for each in networks])
    caption = (
        f'Each line is one of {len(networks)} recipes, the thick one the most accurate of them; differences between '
        'recipes have intervals under "Comparisons and ablations"'
    )
    return Section(title, [plots.parallel('parallel', caption, evidence.mark, values, accuracy)])


def _numeric(recipes: list[Recipe], key: str) -> bool:
    values = [each.settings.get(key) for each in recipes]
    return all(isinstance(value, numbers.Real) and not isinstance(value, bool) for value in values)
