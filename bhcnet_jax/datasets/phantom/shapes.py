"""Signed distances in millimetres, soft edges, smooth random functions: written once for numpy and jax.numpy.

x, y, z are float32 arrays of one shape: towards the image's right, the back of the head, and the vertex. Distances
are negative inside. Each function takes its namespace from its arrays, so numpy gives the picture of jax.numpy.
"""

import itertools
import math
from typing import Any

import jax
import numpy as np

Array = Any  # a numpy.ndarray or a jax.Array, float32 unless said otherwise
Ranges = dict[str, tuple[float, float]]


def uniforms(key: jax.Array, ranges: Ranges) -> dict[str, jax.Array]:
    """key -> for each name a float32 [], uniform between its low and high."""
    low, high = np.array(list(ranges.values()), np.float32).T
    values = low + (high - low) * jax.random.uniform(key, low.shape)
    return {name: values[place] for place, name in enumerate(ranges)}


def wave_vectors(key: jax.Array, count: int, wavelength: float | jax.Array) -> jax.Array:
    """key -> float32 [count, 4]: wave vectors of random directions, radians per mm, then a phase; for `waves`."""
    direction_key, phase_key = jax.random.split(key)
    direction = jax.random.normal(direction_key, (count, 3))
    direction = direction / jax.numpy.linalg.norm(direction, axis=1, keepdims=True)
    phase = jax.random.uniform(phase_key, (count, 1), maxval=2 * math.pi)
    return jax.numpy.concatenate([direction * 2 * math.pi / wavelength, phase], axis=1)


def waves(vectors: Array, x: Array, y: Array, z: Array) -> Array:
    """A smooth random function of space with mean 0 and variance 1: the sum of plane waves [count, 4]."""
    xp = x.__array_namespace__()
    count = len(vectors)
    terms = (xp.cos(vectors[i, 0] * x + vectors[i, 1] * y + vectors[i, 2] * z + vectors[i, 3]) for i in range(count))
    return sum(terms) * math.sqrt(2 / count)


def smooth(grid: Array, size: int) -> Array:
    """Random numbers float32 [cells, cells] -> [size, size]: cubic B-splines between them, variance about 1."""
    weights = _spline_weights(size, len(grid))
    return weights @ grid @ weights.T


def _spline_weights(size: int, cells: int) -> np.ndarray:
    """float32 [size, cells]: what each random number adds to each pixel along one axis."""
    place = (np.arange(size) + 0.5) / size * (cells - 3) + 1
    far = np.abs(place[:, None] - np.arange(cells))
    near = 2 / 3 - far**2 + far**3 / 2
    weights = np.where(far < 1, near, np.where(far < 2, (2 - far) ** 3 / 6, 0))
    return (weights / np.sqrt((weights**2).sum(axis=1).mean())).astype(np.float32)


def cover(distance: Array, edge: float | Array) -> Array:
    """Share of a pixel that lies inside, 0 to 1, with a linear ramp of width `edge` mm."""
    return distance.__array_namespace__().clip(0.5 - distance / edge, 0.0, 1.0)


def blend(below: Array, above: float | Array, share: Array) -> Array:
    return below + (above - below) * share


def smoothstep(value: Array) -> Array:
    """0 below -1, 1 above 1, smooth between."""
    share = value.__array_namespace__().clip(0.5 + 0.5 * value, 0.0, 1.0)
    return share * share * (3 - 2 * share)


def length(*parts: Array) -> Array:
    squares = sum(part * part for part in parts)
    return squares.__array_namespace__().sqrt(squares + 1e-6)


def ellipsoid(x: Array, y: Array, z: Array, centre: tuple[Any, Any, Any], radii: tuple[Any, Any, Any]) -> Array:
    """Signed distance, exact on the surface and of the right slope near it."""
    right, down, up = x - centre[0], y - centre[1], z - centre[2]
    scaled = length(right / radii[0], down / radii[1], up / radii[2])
    slope = length(right / radii[0] ** 2, down / radii[1] ** 2, up / radii[2] ** 2)
    return scaled * (scaled - 1) / slope


def stroke(x: Array, y: Array, z: Array, *points: tuple[Any, Any, Any, Any]) -> Array:
    """Signed distance to a round-ended tube through (x, y, z, radius) points."""
    distances = []
    for start, end in itertools.pairwise(points):
        ahead = [b - a for a, b in zip(start, end, strict=True)]
        gap = [each - a for each, a in zip((x, y, z), start, strict=False)]
        square = sum(part * part for part in ahead[:3])
        along = sum(g * a for g, a in zip(gap, ahead, strict=False)) / square
        along = along.__array_namespace__().clip(along, 0.0, 1.0)
        off = length(*(g - a * along for g, a in zip(gap, ahead, strict=False)))
        distances.append(off - start[3] - ahead[3] * along)
    return union(*distances)


def union(*distances: Array) -> Array:
    xp = distances[0].__array_namespace__()
    joined = distances[0]
    for distance in distances[1:]:
        joined = xp.minimum(joined, distance)
    return joined
