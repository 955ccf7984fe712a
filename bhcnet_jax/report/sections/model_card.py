"""Model card and checklists."""

from bhcnet_jax.report.evidence import Evidence
from bhcnet_jax.report.page import Section
from bhcnet_jax.report.sections import checklists


def model_card(evidence: Evidence) -> Section:
    """Section 11."""
    todo = (
        'TODO(author) marks what no file of a run can tell. Items are in short; before submission compare them with '
        'the checklists as published.'
    )
    return Section('Model card and checklists', [todo, *checklists.tables(evidence)])
