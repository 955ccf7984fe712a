"""What training would cost: a short measurement on this machine that leaves nothing behind."""

from collections import Counter
from collections.abc import Sequence

from bhcnet_jax.display.progress import clock
from bhcnet_jax.plan.study import Study
from bhcnet_jax.plan.trial import Identity
from bhcnet_jax.training.engine import spread_of
from bhcnet_jax.training.lanes import Cost, measure, shorten, stack

MEASURED = 3  # signatures; each has to be compiled
STEPS = 8  # at most, of the epoch that is timed


def text(study: Study, missing: Sequence[Identity], spread: str) -> str:
    """A line that says how long the missing trials would take here, and how much memory. spread: of `Engine`.

    missing: with the pre-trainings that are missing.
    """
    epochs, alike = Counter(), {}
    for each in missing:
        if own := each.epochs - each.shared_epochs:
            epochs[each.signature] += own
            alike.setdefault(each.signature, []).append(each)
    if not epochs:
        return 'Estimate: nothing is left to train'
    measured = [signature for signature, _ in epochs.most_common(MEASURED)]
    costs = {signature: _measure(study, alike[signature], spread) for signature in measured}
    seconds = 0.0
    for signature, total in epochs.items():
        cost = costs.get(signature, costs[measured[-1]])
        samples = study.first_possible(alike[signature]).config.augment.samples
        seconds += cost.compile_seconds + total * samples / cost.images_per_second
    rest = f', of {MEASURED} of {len(epochs)} groups' if len(epochs) > MEASURED else ''
    megabytes = max(cost.device_bytes for cost in costs.values()) / 1e6
    return (
        f'Estimate from a short measurement{rest}: about {clock(seconds)} of training with compilation, '
        f'{megabytes:.1f} MB on each device'
    )


def _measure(study: Study, alike: Sequence[Identity], spread: str) -> Cost:
    """Compiles and times an epoch of a few steps for as many lanes as would train together."""
    planned = study.first_possible(alike)
    lane = stack([planned], planned.phases[-1].index)
    config, lane = shorten(planned.config, lane, STEPS * planned.config.batch_size)
    images = study.images(config.dataset)
    lanes = 1 if config.engine.lanes == 'auto' else int(config.engine.lanes)
    return measure(config, images.images, images.labels, lane, len(alike), lanes, spread_of(config, spread))
