"""Heads drawn on the device from a key: an ellipse of brain in a ring of bone, half of them with a bright blob."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Drawn(NamedTuple):
    """A drawn slice; S pixels a side.

    Attributes:
      image: uint8 [S, S].
      mask: bool [S, S], where blood is.
      label: int32, 1 if there is any.
      kind: int32, 0 for none.
      contrast: float32, of the blood to the brain, in units of the image's noise.
      volume: float32, of the blood, in pixels.
    """

    image: jax.Array
    mask: jax.Array
    label: jax.Array
    kind: jax.Array
    contrast: jax.Array
    volume: jax.Array


def draw(key: jax.Array, size: int) -> Drawn:
    """A slice of `size` pixels a side; it can be vmapped."""
    label_key, head_key, place_key, radius_key, noise_key = jax.random.split(key, 5)
    label = jax.random.bernoulli(label_key).astype(jnp.int32)
    axes = jax.random.uniform(head_key, (2,), jnp.float32, 0.6, 0.9)
    middle = jax.random.uniform(place_key, (2,), jnp.float32, -0.3, 0.3)
    radius = jax.random.uniform(radius_key, (), jnp.float32, 0.1, 0.25)
    steps = (jnp.arange(size, dtype=jnp.float32) + 0.5) * (2.0 / size) - 1.0
    rows, cols = steps[:, None], steps[None, :]
    from_middle = (rows / axes[0]) ** 2 + (cols / axes[1]) ** 2
    brain, head = from_middle < 0.8, from_middle < 1.0
    blob = (rows - middle[0]) ** 2 + (cols - middle[1]) ** 2 < radius**2
    mask = blob & brain & (label == 1)
    grey = jnp.where(mask, 0.75, jnp.where(brain, 0.45, jnp.where(head, 1.0, 0.0)))
    grey += 0.05 * jax.random.normal(noise_key, (size, size), jnp.float32) * head.astype(jnp.float32)
    image = jnp.round(255.0 * jnp.clip(grey, 0.0, 1.0)).astype(jnp.uint8)
    contrast = jnp.where(label == 1, jnp.float32(6.0), jnp.float32(0.0))
    return Drawn(image, mask, label, label, contrast, jnp.sum(mask).astype(jnp.float32))
