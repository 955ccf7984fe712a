"""The optimizer and its learning rates: Adam, linear warm-up, cosine decay (paper VI)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict


def optimizer(learning_rate: jax.Array, weight_decay: jax.Array) -> optax.GradientTransformation:
    """Adam with decoupled weight decay. Both arguments are scalars and may be traced; the state depends on neither."""
    return optax.adamw(learning_rate, weight_decay=weight_decay)


def learning_rates(config: ConfigDict, epochs: int, steps_per_epoch: int) -> np.ndarray:
    """The learning rate of every step of a phase, float32 [epochs, steps_per_epoch].

    Linear from 0 to `config.peak_lr` over the share `config.warmup` of the steps, then a cosine to 0. It is a table, so
    that the compiled program does not depend on the number of epochs.
    """
    steps = epochs * steps_per_epoch
    warmup_steps = min(round(config.warmup * steps), steps - 1)  # at least one step of decay
    if warmup_steps:
        schedule = optax.warmup_cosine_decay_schedule(0.0, config.peak_lr, warmup_steps, steps)
    else:
        schedule = optax.cosine_decay_schedule(config.peak_lr, steps)
    rates = jax.vmap(schedule)(np.arange(steps, dtype=np.float32))
    return np.asarray(rates, np.float32).reshape(epochs, steps_per_epoch)


def kept_share(decay: jax.Array, opt_state: Any) -> jax.Array:
    """What a running mean of the weights keeps of itself in a step, float32 in [0, 1]; the new weights have the rest.

    It is the mean that decays by `decay` per step, corrected for its start as Adam's moments are (Kingma and Ba, 2015):
    after t steps step s weighs decay^(t-s), divided by the sum of these, and what was before the first step nothing.
    opt_state: of `optimizer`, after the step.
    """
    steps = opt_state[0].count.astype(jnp.float32)  # of Adam, so that mean and moments start together
    return decay * (1 - decay ** (steps - 1)) / (1 - decay**steps)
