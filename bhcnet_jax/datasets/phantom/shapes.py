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
Ranges = dict[str, tuple]  # (low, high, *shape)


def uniforms(key: jax.Array, ranges: Ranges) -> dict[str, jax.Array]:
    """key -> for each name (low, high, *shape) a float32 of that shape, uniform between low and high.

    One call of the generator for all: each call costs seconds of compilation.
    """
    shapes = [each[2:] for each in ranges.values()]
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    values = jax.random.uniform(key, (int(ends[-1]),))
    parts = np.split(np.arange(ends[-1]), ends[:-1])
    return {
        name: low + (high - low) * values[part[0] : part[-1] + 1].reshape(shape)
        for (name, (low, high, *_)), part, shape in zip(ranges.items(), parts, shapes, strict=True)
    }


def wave_vectors(unit: Array, wavelength: float | Array) -> Array:
    """Uniform [count, 3] in 0..1 -> wave vectors of random directions, cycles per mm, and a phase [count, 4]."""
    xp = unit.__array_namespace__()
    height, around = 2 * unit[:, 0] - 1, 2 * math.pi * unit[:, 1]
    flat = xp.sqrt(1 - height * height)
    direction = xp.stack([flat * xp.cos(around), flat * xp.sin(around), height], axis=1)
    return xp.concatenate([direction / wavelength, unit[:, 2:]], axis=1)


def waves(vectors: Array, x: Array, y: Array, z: Array) -> Array:
    """A smooth random function of space with mean 0 and variance 1: a sum of plane waves [count, 4].

    A wave is made of parabolas: on a CPU the cosine takes twenty times as long.
    """
    xp = x.__array_namespace__()
    total = 0.0
    for vector in vectors:
        turn = vector[0] * x + vector[1] * y + vector[2] * z + vector[3]
        turn = turn - xp.floor(turn) - 0.5
        total = total + turn * (1 - 2 * xp.abs(turn))
    return total * math.sqrt(120 / len(vectors))


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


def settle(arrays: Any) -> Any:
    """The same arrays, but kept in memory between what makes them and what uses them.

    On a CPU, XLA fuses the two into loops that are too long to be vectorised, or that make an array again for each of
    its uses; an empty loop parts them. A barrier alone does not.
    """
    if isinstance(jax.tree.leaves(arrays)[0], np.ndarray):
        return arrays
    return jax.lax.platform_dependent(arrays, cpu=_keep, default=lambda kept: kept)


def _keep(arrays: Any) -> Any:
    return jax.lax.fori_loop(0, 2, lambda _, kept: jax.lax.optimization_barrier(kept), arrays)


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
