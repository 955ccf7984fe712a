"""What is not a bleeding but changes the picture: other diseases, injuries, surgery, calcifications, metal.

None of these knows whether the head bleeds: their numbers come from a stream of their own.
"""

import jax
import jax.numpy as jnp

from bhcnet_jax.datasets.phantom.anatomy import AIR, CSF, Head
from bhcnet_jax.datasets.phantom.shapes import (
    Array,
    blend,
    cover,
    ellipsoid,
    length,
    smoothstep,
    stroke,
    uniforms,
    union,
    wave_vectors,
    waves,
)  # fmt: skip

# How often, in adults; a number drawn below it switches the distractor on.
CHANCES = {
    'lesion': 0.45,
    'pineal': 0.6,
    'plexus': 0.5,
    'ganglia': 0.12,
    'stone': 0.15,
    'swelling': 0.65,
    'fracture': 0.15,
    'craniotomy': 0.08,
    'drain': 0.08,
    'gas': 0.06,
    'vessels': 0.35,
    'ridge': 0.65,
    'enhanced': 0.2,
}

RANGES = dict.fromkeys(CHANCES, (0.0, 1.0)) | {
    'lesion_turn': (-3.14, 3.14),  # radians around the head
    'lesion_out': (0.3, 0.95),  # from the middle to the surface
    'lesion_rise': (-20.0, 20.0),  # mm above the slice
    'lesion_radius': (6.0, 32.0),
    'lesion_stretch': (-0.3, 0.3),
    'lesion_kind': (0.0, 1.0),
    'lesion_hu': (0.0, 1.0),
    'lesion_rim': (2.0, 16.0),  # mm of oedema
    'mass': (0.0, 0.7),
    'stone_radius': (1.0, 4.5),
    'stone_hu': (55.0, 260.0),
    'stone_turn': (-3.14, 3.14),
    'stone_out': (0.0, 0.9),
    'swelling_turn': (-3.14, 3.14),
    'swelling_radius': (15.0, 75.0),
    'swelling_height': (2.0, 20.0),
    'swelling_hu': (35.0, 80.0),
    'fracture_turn': (-3.14, 3.14),
    'fracture_lean': (-1.0, 1.0),
    'fracture_gap': (0.3, 1.5),
    'flap_turn': (-3.14, 3.14),
    'flap_radius': (20.0, 50.0),
    'flap_kind': (0.0, 1.0),
    'drain_side': (-1.0, 1.0),
    'drain_hu': (120.0, 900.0),
    'vessel_hu': (42.0, 70.0),
    'ridge_height': (4.0, 36.0),  # mm, how far the partial volume of bone reaches
    'ridge_hu': (8.0, 65.0),
    'contrast_agent': (5.0, 22.0),  # HU in grey matter; more in vessels
    'ridge_turn': (-3.14, 3.14),
    'ridge_wide': (0.4, 1.6),
    'texture': (0.0, 1.0, 6, 3),  # for `wave_vectors`
}


def sample(key: jax.Array, z: jax.Array, age: jax.Array) -> dict[str, jax.Array]:
    """key, height of the slice, age in years -> the numbers of what else this head shows."""
    other = uniforms(key, RANGES)
    grown = jnp.clip(age / 30, 0.1, 1.0)
    on = {name: jnp.where(other[name] < chance, 1.0, 0.0) for name, chance in CHANCES.items()}
    for name in ('pineal', 'plexus', 'ganglia', 'stone'):
        on[name] = jnp.where(other[name] < CHANCES[name] * grown, 1.0, 0.0)
    return other | on | {
        'z': z,
        'lesion_centre': jnp.stack([*_place(other['lesion_turn'], other['lesion_out'], z), z + other['lesion_rise']]),
        'texture': wave_vectors(other['texture'], 0.7 * other['lesion_radius']),
    }


def _place(turn: Array, out: Array, z: Array) -> tuple[Array, Array]:
    """x, y at an angle from the forehead; out: 0 in the middle, 1 at the inner table."""
    xp = z.__array_namespace__()
    section = xp.sqrt(xp.clip(1 - (z / 78) ** 2, 0.05, 1.0))
    return 67 * section * out * xp.sin(turn), -87 * section * out * xp.cos(turn)


def bump(other: dict[str, Array]) -> dict[str, Array]:
    """The mass effect of the lesion, for `anatomy.push`; old infarcts and small ones have none."""
    xp = other['mass'].__array_namespace__()
    growing = xp.where(other['lesion_kind'] < 0.65, other['lesion'], 0.0)
    return {
        'centre': other['lesion_centre'],
        'room': 0.75 * other['lesion_radius'],
        'mass': other['mass'] * growing,
    }


def in_brain(other: dict[str, Array], head: Head, hu: Array, edge: Array) -> Array:
    """HU of the brain -> with lesion, calcifications, vessels and partial volume of bone."""
    xp = head.x.__array_namespace__()
    agent = other['enhanced'] * other['contrast_agent']
    hu = hu + agent * cover(head.clefts - 3.2, 4 + edge) * xp.clip((hu - CSF) / 25, 0.0, 1.0)
    hu = _lesion(other, head, hu, edge)
    x, y, z = head.x, head.y, head.z
    side = xp.abs(x)
    vessel = union(
        stroke(side, y, z, (3.0, -14.0, -15.0, 1.6), (16.0, -17.0, -14.0, 1.4), (38.0, -20.0, -9.0, 1.0)),
        stroke(x, y, z, (0.0, -5.0, -14.0, 1.6), (0.0, -4.0, -42.0, 1.6)),
    )
    seen = xp.maximum(other['vessels'], other['enhanced'])
    hu = blend(hu, other['vessel_hu'] + 4 * agent, seen * cover(vessel, 0.8 + edge))
    size = other['stone_radius']
    hu = _calcify(other, hu, ellipsoid(x, y, z, (0.0, 13.0, 1.0), (0.8 * size, size, 4.0)), other['pineal'], edge)
    plexus = ellipsoid(side, y, z, (24.0, 26.0, 13.0), (0.9 * size, 1.7 * size, 6.0))
    hu = _calcify(other, hu, plexus, other['plexus'], edge)
    ganglia = ellipsoid(side, y, z, (21.0, -15.0, 1.0), (size, 2.0 * size, 6.0))
    hu = _calcify(other, hu, ganglia + 1.2 * waves(other['texture'], x, y, z), other['ganglia'], edge)
    cx, cy = _place(other['stone_turn'], other['stone_out'], other['z'])
    stone = ellipsoid(x, y, z, (cx, cy, other['z']), (size, size, size + 3))
    hu = _calcify(other, hu, stone, other['stone'], edge)
    return hu + other['ridge'] * _partial_bone(other, head)


def _calcify(other: dict[str, Array], hu: Array, shape: Array, on: Array, edge: Array) -> Array:
    return blend(hu, other['stone_hu'], on * cover(shape, 0.8 + edge))


def _partial_bone(other: dict[str, Array], head: Head) -> Array:
    """HU that the convex skull adds to the brain beside it in a thick slice, along a part of the circumference."""
    xp = head.x.__array_namespace__()
    facing = (head.x * xp.sin(other['ridge_turn']) - head.y * xp.cos(other['ridge_turn'])) / length(head.x, head.y)
    lit = smoothstep((facing - xp.cos(other['ridge_wide'])) * 2)
    glow = xp.clip(1 - head.depth / other['ridge_height'], 0.0, 1.0)
    return other['ridge_hu'] * lit * glow * glow


def _lesion(other: dict[str, Array], head: Head, hu: Array, edge: Array) -> Array:
    """An infarct (fresh, old) or a tumour (dark, bright, with a ring), by lesion_kind."""
    xp = head.x.__array_namespace__()
    size, stretch, kind, centre = (other[name] for name in (
        'lesion_radius', 'lesion_stretch', 'lesion_kind', 'lesion_centre'))  # fmt: skip
    radii = (size * (1 + stretch), size * (1 - stretch), 0.9 * size)
    shape = ellipsoid(head.x, head.y, head.z, (centre[0], centre[1], centre[2]), radii)
    shape = shape + 0.12 * size * waves(other['texture'], head.x, head.y, head.z)
    share = cover(shape, 2 + edge)
    infarct = hu - (4 + 14 * other['lesion_hu'])
    old = CSF + 8 * other['lesion_hu']
    bright = 40 + 22 * other['lesion_hu']  # a meningioma, a lymphoma
    dark = 14 + 16 * other['lesion_hu']
    ring = cover(xp.abs(shape + 2.0) - 1.5, 1 + edge) * 18
    inner = xp.where(kind < 0.3, infarct, xp.where(kind < 0.45, dark + ring, xp.where(kind < 0.65, bright, old)))
    rim = xp.where((kind > 0.3) & (kind < 0.65), other['lesion_rim'], 0.0)
    oedema = 10 * xp.clip(1 - shape / (rim + 0.1), 0.0, 1.0)
    return blend(hu, blend(hu - oedema, inner, share), other['lesion'])


def in_skull(other: dict[str, Array], head: Head, hu: Array, edge: Array) -> Array:
    """HU of bone and scalp -> with fracture, craniotomy and swelling; `hu` is of what lies outside the brain."""
    x, y, z = head.x, head.y, head.z
    xp = x.__array_namespace__()
    across, back = _place(other['fracture_turn'], 1.0, other['z'])
    turn, lean = other['fracture_turn'], other['fracture_lean']
    plane = xp.abs((x - across) * xp.cos(turn) + (y - back) * xp.sin(turn) + lean * (z - other['z']))
    near = length(x - across, y - back, z - other['z']) - 40
    crack = xp.maximum(xp.maximum(plane - other['fracture_gap'], near), head.depth)
    hu = blend(hu, 10.0, other['fracture'] * cover(crack, 0.5 + edge) * cover(-head.depth - head.skull, 1 + edge))
    across, back = _place(other['flap_turn'], 1.0, other['z'])
    flap = length(x - across, y - back, z - other['z']) - other['flap_radius']
    gap = xp.where(other['flap_kind'] < 0.35, flap, xp.abs(flap) - 1.5)  # no flap, or a refitted one
    hole = cover(xp.maximum(gap, -head.depth - head.skull - 0.5), 0.8 + edge)
    return blend(hu, 35.0, other['craniotomy'] * hole)


def swelling(other: dict[str, Array], head: Head) -> Array:
    """mm that the scalp is thicker."""
    xp = head.x.__array_namespace__()
    across, back = _place(other['swelling_turn'], 1.1, other['z'])
    along = length(head.x - across, head.y - back, head.z - other['z']) / other['swelling_radius']
    height = other['swelling_height'] * xp.clip(other['swelling_radius'] / 50, 0.0, 1.0)
    return other['swelling'] * height * xp.clip(1 - along * along, 0.0, 1.0)


def foreign(other: dict[str, Array], head: Head, hu: Array, edge: Array) -> Array:
    """The whole head -> with a catheter to a ventricle and with air under the skull."""
    xp = head.x.__array_namespace__()
    side = xp.sign(other['drain_side'])
    tube = stroke(side * head.x, head.y, head.z, (6.0, -30.0, 12.0, 1.3), (36.0, -48.0, 80.0, 1.3))
    hu = blend(hu, other['drain_hu'], other['drain'] * cover(tube, 0.6 + edge))
    across, back = _place(0.4 * other['flap_turn'], 1.0, other['z'])
    bubble = length(head.x - across, head.y - back, head.z - other['z']) - 0.4 * other['swelling_radius']
    bubble = xp.maximum(xp.maximum(bubble, head.depth - 5), -head.depth)
    return blend(hu, AIR, other['gas'] * cover(bubble, 0.8 + edge))


