"""The sweep at a glance."""

import numbers
from collections import defaultdict

import numpy as np
import pandas as pd

from bhcnet_jax.report import plots, settings
from bhcnet_jax.report.evidence import Evidence, Recipe
from bhcnet_jax.report.page import Section

COMMAND = (
    "python -m bhcnet_jax.main --config=balanced --sweep='model.dropout=0,0.25,0.5 optimizer.peak_lr=log(1e-4,1e-2,3)'"
)


def sweep(evidence: Evidence) -> Section:
    """Shows recipes that differ in numeric settings alone, each as a line over these settings and its accuracy."""
    networks, keys = _swept([each for each in evidence.recipes if each.kind == 'network' and each.settings])
    title = 'The sweep at a glance'
    if len(keys) < 2:
        wanted = 'recipes that differ in two or more numeric settings, and in no other'
        return Section(title, [f'Missing: {wanted}. `{evidence.command(COMMAND)}`'])
    values = pd.DataFrame([{key: each.settings[key] for key in keys} for each in networks])
    accuracy = np.array([each.scores['accuracy'].mean for each in networks])
    caption = (
        f'Each line is one of {len(networks)} recipes that differ in numeric settings alone, the thick one the most '
        'accurate of them; differences between recipes have intervals under "Comparisons and ablations"'
    )
    return Section(title, [plots.parallel('parallel', caption, evidence.mark, values, accuracy)])


def _swept(networks: list[Recipe]) -> tuple[list[Recipe], list[str]]:
    """The most recipes of which all other settings are the same, and the numeric settings in which they differ."""
    alike = defaultdict(list)
    for each in networks:
        alike[repr([(key, None if _numeric(value) else value) for key, value in each.settings.items()])].append(each)
    found = [(each, settings.varying([recipe.settings for recipe in each])) for each in alike.values()]
    return max(found, key=lambda each: (len(each[1]) > 1, len(each[0])), default=([], []))


def _numeric(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
