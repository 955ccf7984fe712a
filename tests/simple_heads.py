"""Heads that are quick to draw and to learn, in the place of `heads.draw` where the drawing does not matter."""

import jax
import jax.numpy as jnp

from bhcnet_jax.datasets.phantom.heads import Drawn


def draw(key: jax.Array, size: int) -> Drawn:
    """An ellipse of brain in a ring of bone, half of them with a bright blob."""
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
    grey += jnp.where(head, 0.05 * jax.random.normal(noise_key, (size, size), jnp.float32), 0.0)
    image = jnp.round(255.0 * jnp.clip(grey, 0.0, 1.0)).astype(jnp.uint8)
    contrast = jnp.where(label == 1, jnp.float32(6.0), jnp.float32(0.0))
    return Drawn(image, mask, label, label, contrast, jnp.sum(mask).astype(jnp.float32))


def draw_volume(key: jax.Array, size: int, slices: int) -> Drawn:
    """The same head in all slices, in the place of `heads.draw_volume`."""
    return jax.tree.map(lambda leaf: jnp.repeat(leaf[None], slices, axis=0), draw(key, size))
