"""This project as a contender (see contender.py)."""

import dataclasses
import functools
import json
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from contender import PEAK_SIZE, Task, serve
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from bhcnet_jax.machine import make_every_core_a_device
from bhcnet_jax.plan import splits, trial
from bhcnet_jax.training import optim, steps
from bhcnet_jax.training.engine import Engine, choose_spread
from bhcnet_jax.training.lanes import stack


class Project:
    """Epochs of the engine.

    variant: dtype, of the computation; lanes, how many trials train together on one device, or without it one trial as
    a run by itself trains it.
    """

    def __init__(self, task: Task):
        self._task = task
        self._config = config = ConfigDict(json.loads(json.dumps(task.config)))
        config.model.dtype = task.variant['dtype']
        split = splits.split(task.labels, np.arange(len(task.labels)), 'holdout', 10, 0, 0)
        split = dataclasses.replace(split, test=task.test)
        lanes = task.variant.get('lanes', 1)
        spread = choose_spread(config, alone='lanes' not in task.variant)
        trials = []
        for config.seed in range(lanes):
            trials.append(trial.make(config.copy_and_resolve_references(), task.labels, split, ''))
        self._lanes = stack(trials, 0)
        self._engine = Engine(config, task.images, task.labels, lanes, lanes=lanes, spread=spread)
        self._rates = optim.learning_rates(config.optimizer, config.balanced.epochs, steps.steps_per_epoch(config))
        self._states, self._epoch = None, 0

    def train(self) -> None:
        if self._states is None:
            self._states = self._engine.to_devices(self._engine.init(self._lanes))
        count = len(self._lanes.seed)
        lanes = self._lanes.replace(
            epoch=np.full(count, self._epoch, np.int32),
            learning_rates=np.repeat(self._rates[None, self._epoch], count, axis=0),
        )
        self._states, _ = self._engine.epoch(self._states, lanes)
        self._epoch += 1

    def first_losses(self) -> list[float]:
        task, config = self._task, self._config.copy_and_resolve_references()
        config.augment.policy, count, size = 'none', *task.batches.shape
        lane = jax.tree.map(lambda leaf: leaf[0], self._lanes)
        lane = lane.replace(sources=task.batches.reshape(-1), values={**lane.values, 'model.dropout': np.float32(0.0)})
        state = jax.jit(functools.partial(steps.init, config))(lane)  # with the first moments, where it has any
        state = state.replace(params=unflatten_dict(task.weights, sep='/'))
        draw, train_step = (jax.jit(functools.partial(each, config)) for each in (steps.draw, steps.train_step))
        losses = []
        for step, rate in enumerate(optim.learning_rates(config.optimizer, 1, count)[0]):
            positions = np.arange(step * size, (step + 1) * size, dtype=np.int32)
            mask = np.ones(size, np.float32)
            batch = steps.Batch(draw(lane, task.images, positions), positions, mask)
            state, sums = train_step(state, lane, task.labels, batch, rate)
            losses.append(float(sums.loss / sums.images))
        return losses

    def multiply(self) -> Callable[[], Any]:
        a, b = jax.random.normal(jax.random.key(0), (2, PEAK_SIZE, PEAK_SIZE))
        product = jax.jit(jnp.dot)
        product(a, b).block_until_ready()
        return lambda: product(a, b).block_until_ready()


if __name__ == '__main__':
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    make_every_core_a_device()
    serve(Project)
