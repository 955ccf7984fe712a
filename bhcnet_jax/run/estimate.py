"""What training would cost: a short measurement on this machine that leaves nothing behind."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bhcnet_jax.display.progress import clock
from bhcnet_jax.plan.study import Study
from bhcnet_jax.plan.trial import Identity
from bhcnet_jax.training import optim, steps
from bhcnet_jax.training.engine import Engine
from bhcnet_jax.training.lanes import stack

MEASURED = 3  # signatures; each has to be compiled
STEPS = 8  # of the epoch that is timed


class Cost(NamedTuple):
    """Of one signature: seconds to compile, augmented images per second of all lanes, bytes on each device."""

    compile_seconds: float
    images_per_second: float
    device_bytes: int


def text(study: Study, missing: Sequence[Identity]) -> str:
    """A line that says how long the missing trials would take here, and how much memory."""
    epochs, example = Counter(), {}
    for each in missing:
        epochs[each.signature] += each.epochs
        example[each.signature] = each
    counts = Counter(each.signature for each in missing)
    measured = [signature for signature, _ in epochs.most_common(MEASURED)]
    costs = {signature: _measure(study, example[signature], counts[signature]) for signature in measured}
    seconds = 0.0
    for signature, total in epochs.items():
        cost = costs.get(signature, costs[measured[-1]])
        samples = study.plan(example[signature]).config.augment.samples
        seconds += cost.compile_seconds + total * samples / cost.images_per_second
    rest = f', of {MEASURED} of {len(epochs)} groups' if len(epochs) > MEASURED else ''
    megabytes = max(cost.device_bytes for cost in costs.values()) / 1e6
    return (
        f'Estimate from a short measurement{rest}: about {clock(seconds)} of training with compilation, '
        f'{megabytes:.1f} MB on each device'
    )


def _measure(study: Study, this: Identity, count: int) -> Cost:
    """Compiles and times an epoch of a few steps for as many lanes as would train together."""
    short = this._replace(point={**this.point, 'augment.samples': STEPS * study.config_of(this).batch_size})
    planned = study.plan(short)
    images = study.images(planned.config.dataset)
    asked = planned.config.engine.lanes
    engine = Engine(planned.config, images.images, images.labels, count, lanes=1 if asked == 'auto' else int(asked))
    lanes = stack([planned] * min(count, engine.capacity), 0)
    rates = optim.learning_rates(planned.config.optimizer, 1, steps.steps_per_epoch(planned.config))
    lanes = lanes.replace(learning_rates=np.repeat(rates, len(lanes.seed), axis=0))
    compile_seconds = engine.compile(lanes)
    states = engine.to_devices(engine.init(lanes))
    for _ in range(2):  # the first one warms up
        start = time.perf_counter()
        states, _ = engine.epoch(states, lanes)
        seconds = time.perf_counter() - start
    trained = len(lanes.seed) * planned.phases[0].samples
    return Cost(compile_seconds, trained / seconds, engine.device_bytes)
