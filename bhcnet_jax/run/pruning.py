"""Successive halving: trials that do worse than others on their validation parts stop early.

    --prune='rungs=4,8,16 keep=1/3'

At each rung, a number of epochs since a trial began, over all its phases, the trials that reached it are ranked by the
loss on their validation part, and the best `keep` of them go on; the others are PRUNED. The test part is never looked
at. Rungs and ranking are those of successive halving (Jamieson and Talwalkar, 2016), on which ASHA (Li et al., 2020)
builds. ASHA promotes trials before a rung is full, so that no worker waits; here the lanes of one program go in step
and nobody waits, so a rung is ranked when it is full, and which trials survive depends on nothing but their losses.
What it shares with ASHA is that a rung can be ranked again: trials added later compete with those that were there
before, and a pruned one that is among the best of the larger field goes on.
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
    """What --prune says; without any rung for ''. UserError for anything else that is not of that form."""
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
    """UserError if a rule cannot be followed. val_folds: of trials that do not set split.val_folds themselves."""
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
    """The best floor(keep * n) of n trials, one at the least: those of the lowest loss; of equal ones the lowest id."""
    ranked = sorted(losses, key=lambda trial_id: (losses[trial_id], trial_id))
    return set(ranked[: max(1, math.floor(keep * len(ranked)))])


def where(this: Identity, rung: int) -> tuple[str, int] | None:
    """Phase and epoch (1-based inside it) at which a trial is at a rung; None if it ends before, or with it."""
    if rung >= this.epochs:
        return None
    for name, epochs in zip(this.phase_names, this.phase_epochs, strict=True):
        if rung <= epochs:
            return name, rung
        rung -= epochs
    raise AssertionError('a rung below the sum of all epochs is in one of the phases')
