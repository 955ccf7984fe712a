"""Successive halving: trials with a high loss on their validation part stop early.

    --prune='rungs=4,8,16 keep=1/3'

A rung is a number of epochs, counted from the start of a trial over all its phases. At each rung, the trials that
reached it are ranked by the loss on their validation part. The best share `keep` goes on; the others are PRUNED. The
test part is never looked at.

Rungs and ranking are those of successive halving (Jamieson and Talwalkar, 2016). ASHA (Li et al., 2020) builds on it
and promotes trials before a rung is full, so that no worker waits. Here nobody waits, since the lanes of one program go
in step. So a rung is ranked when it is full, and the survivors depend on the losses alone. As in ASHA, a rung can be
ranked again: trials added later compete with the earlier ones, and a pruned trial that is among the best of the larger
field goes on.
"""

import fractions
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bhcnet_jax.errors import UserError
from bhcnet_jax.plan.trial import Identity

USAGE = "expected like 'rungs=4,8,16 keep=1/3': epochs in rising order, and a share between 0 and 1"


class Pruning(NamedTuple):
    """rungs: epochs since a trial began, rising. keep: share of the trials at a rung that go on."""

    rungs: tuple[int, ...] = ()
    keep: fractions.Fraction = fractions.Fraction(1)


def parse(text: str) -> Pruning:
    """The rule that --prune describes; no rungs for ''. UserError for any other form."""
    if not text:
        return Pruning()
    found = re.fullmatch(r'rungs=([0-9]{1,7}(?:,[0-9]{1,7})*) keep=([0-9]{1,7})([./][0-9]{1,7})?', text)
    rungs = tuple(int(rung) for rung in found[1].split(',')) if found else ()
    try:
        keep = fractions.Fraction(text.rpartition('=')[2])
    except (ValueError, ZeroDivisionError):
        keep = fractions.Fraction(0)
    if not found or rungs[0] < 1 or list(rungs) != sorted(set(rungs)) or not 0 < keep < 1:
        raise UserError(f'--prune={text!r}: {USAGE}.')
    return Pruning(rungs, keep)


def check(rule: Pruning, trials: Sequence[Identity], val_folds: int) -> None:
    """UserError if the trials cannot follow a rule. val_folds: of trials whose point does not set split.val_folds."""
    if not rule.rungs or not trials:
        return
    if not all(each.point.get('split.val_folds', val_folds) for each in trials):
        raise UserError(
            '--prune ranks trials by their validation parts, but some have none; '
            'set --config.split.val_folds=10 to hold out a tenth of the training part.'
        )
    longest = max(each.epochs for each in trials)
    if rule.rungs[0] >= longest:
        raise UserError(f'--prune: the first rung is {rule.rungs[0]}, but no trial has more than {longest} epochs.')


def survivors(losses: Mapping[str, float], keep: fractions.Fraction) -> set[str]:
    """The floor(keep * n) of n trials with the lowest loss, but at least one. Of equal losses the lower id wins."""
    ranked = sorted(losses, key=lambda trial_id: (losses[trial_id], trial_id))
    return set(ranked[: max(1, math.floor(keep * len(ranked)))])


def where(this: Identity, rung: int) -> tuple[str, int] | None:
    """Phase and epoch (1-based, inside the phase) at which a trial reaches a rung; None if it is over by then."""
    if rung >= this.epochs:
        return None
    for name, epochs in zip(this.phase_names, this.phase_epochs, strict=True):
        if rung <= epochs:
            return name, rung
        rung -= epochs
    raise AssertionError('a rung below the sum of all epochs is in one of the phases')
