"""What the report takes from the paper: which of its rows a recipe is, and the best accuracy that it prints."""

import pandas as pd

from bhcnet_jax.paper import bhcnet
from bhcnet_jax.report.page import Number
from bhcnet_jax.report.settings import Settings
from bhcnet_jax.statistics import comparison, metrics


def row_of(trials: pd.DataFrame, settings: Settings) -> bhcnet.PaperRow | None:
    """The row that the paper prints for a recipe; None if there is none, or it reads the paper otherwise."""
    first = trials.iloc[0]
    if pd.isna(first.phases) or pd.isna(first.epochs) or not bhcnet.is_papers(settings):
        return None
    return bhcnet.row_for(first.model, tuple(first.phases.split('+')), int(first.epochs))


def claim() -> Number:
    """The best accuracy in the paper's tables with counts, with Wilson's interval."""
    best = max((*bhcnet.TABLE_1, *bhcnet.TABLE_2), key=lambda row: row.tp + row.tn)
    hits, n = best.tp + best.tn, sum(best.counts)
    return Number(hits / n, *map(float, metrics.wilson(hits, n)), n)


def single_trainings(trials: pd.DataFrame) -> comparison.Protocol | None:
    """What single trainings reach, and how many of them the paper's claim.

    Only trials with the most frequent size of the test part count; None where no counts are in the database.
    """
    counted = trials.dropna(subset=['tp', 'tn', 'n_test'])
    if counted.empty:
        return None
    return comparison.protocol(counted[counted.n_test == counted.n_test.mode()[0]], claim().value)
