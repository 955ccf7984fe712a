"""Blood inside the skull: five kinds, as shapes in the space of `anatomy`, and the room that they take."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from bhcnet_jax.datasets.phantom.anatomy import Head
from bhcnet_jax.datasets.phantom.shapes import (
    Array,
    cover,
    ellipsoid,
    length,
    settle,
    smoothstep,
    uniforms,
    union,
    wave_vectors,
    waves,
)  # fmt: skip

KINDS = ('', 'epidural', 'subdural', 'subarachnoid', 'intraparenchymal', 'intraventricular')

# Between these heights, mm, a kind of bleeding can be seen in a slice.
HEIGHTS = ((-50.0, 66.0), (-45.0, 66.0), (-52.0, 66.0), (-52.0, 62.0), (-38.0, 30.0))

RANGES = {
    'rise': (-0.5, 0.5),  # centre above the slice, in units of the bleeding's radius
    'turn': (0.0, 1.0),  # where around the head
    'mirror': (-1.0, 1.0),  # left or right
    'inwards': (0.25, 0.8),  # where between the middle and the surface a clot lies
    'epidural_bulge': (0.35, 0.75),  # thickness relative to the radius
    'subarachnoid_width': (0.6, 2.5),
    'clot_stretch': (-0.35, 0.35),
    'ventricle_level': (-40.0, 20.0),  # mm; blood lies below, towards the back
    'ventricle_part': (0.0, 1.0),
    'mass': (0.15, 0.9),  # how much of its room the bleeding takes from the brain
    'age': (0.0, 1.0),  # days to weeks: from bright to the grey of brain and below
    'hu': (54.0, 80.0),
    'oedema': (3.0, 14.0),  # HU
    'rim': (3.0, 11.0),  # mm
    'layer': (-1.0, 1.0),  # relative height of a fluid level
    'layered': (0.0, 1.0),
    'falcine': (0.0, 1.0),  # a subdural bleeding along the falx
    'central': (0.0, 1.0),  # a subarachnoid bleeding of the basal cisterns
    'contusions': (0.0, 1.0),  # small clots beside the main one
    'scatter': (-1.0, 1.0, 3, 3),
    'kind': (0.0, 1.0),
    'more': (0.0, 1.0, 5),
    'ragged': (0.0, 1.0, 6, 3),  # for `wave_vectors`
}

# mm; uniform in the logarithm, so that small ones are not rare.
SIZES = {
    'epidural_radius': (9.0, 40.0),
    'subdural_radius': (22.0, 90.0),
    'subdural_thickness': (1.8, 16.0),
    'subarachnoid_radius': (8.0, 60.0),
    'clot_radius': (3.0, 25.0),
}


def sample(key: jax.Array, z: jax.Array) -> dict[str, Any]:
    """key, height of the slice -> the numbers of a bleeding that this slice shows, among them its kind, 1 to 5."""
    logarithms = {name: (math.log(low), math.log(high)) for name, (low, high) in SIZES.items()}
    blood = uniforms(key, RANGES | logarithms)
    blood |= {name: jnp.exp(blood[name]) for name in SIZES}
    low, high = jnp.array(HEIGHTS).T
    seen = (z >= low) & (z <= high)
    chance = jnp.cumsum(jnp.where(seen, 1.0, 0.0))
    kind = jnp.argmax(chance > blood['kind'] * chance[-1])
    more = (blood['more'] < 0.12) & seen
    nearest = jnp.interp(z, jnp.array([-45.0, -25.0, -10.0]), jnp.array([2.0, 1.2, 0.15]))
    angle = nearest + (jnp.pi - nearest) * blood['turn']
    across, back = jnp.sin(angle) * jnp.sign(blood['mirror']), -jnp.cos(angle)
    surface = jnp.sqrt(jnp.clip(1 - (z / 78) ** 2, 0.05)) / jnp.sqrt((across / 67) ** 2 + (back / 87) ** 2)
    radii = jnp.stack([blood[name] for name in ('epidural_radius', 'subdural_radius', 'subarachnoid_radius')])
    clot = blood['clot_radius']
    room = jnp.stack([0.6 * radii[0] * blood['epidural_bulge'], 2 * blood['subdural_thickness'],
                      0.0 * clot, clot, 0.0 * clot])[kind]  # fmt: skip
    return blood | {
        'kind': (kind + 1).astype(jnp.int32),
        'present': (jnp.arange(len(HEIGHTS)) == kind) | more,
        'across': across * surface,
        'back': back * surface,
        'height': z,
        'room': room,
        'clot': jnp.stack([across, back]) * surface * blood['inwards'],
        'ragged': wave_vectors(blood['ragged'], jnp.maximum(0.9 * clot, 8.0)),
    }


def bump(blood: dict[str, Array], bleeds: Array) -> dict[str, Array]:
    """The mass effect of the main bleeding, for `anatomy.push`."""
    xp = bleeds.__array_namespace__()
    deep = blood['kind'] == 4
    x, y = (xp.where(deep, blood['clot'][axis], blood[name]) for axis, name in enumerate(('across', 'back')))
    return {'centre': xp.stack([x, y, blood['height']]), 'room': blood['room'], 'mass': blood['mass'] * bleeds}


def shares(blood: dict[str, Array], head: Head, edge: Array) -> tuple[list[Array], Array]:
    """-> the share of a pixel that each kind of bleeding fills, 0 to 1; HU that oedema around clots takes."""
    xp = head.x.__array_namespace__()
    clot = settle(_clot(blood, head))
    shapes = (_epidural(blood, head), _subdural(blood, head), _subarachnoid(blood, head), clot,
              _intraventricular(blood, head))  # fmt: skip
    filled = [cover(xp.maximum(shape, -head.depth), 0.7 + edge) for shape in shapes]
    oedema = xp.where(blood['present'][3], blood['oedema'], 0.0) * xp.clip(1 - clot / blood['rim'], 0.0, 1.0)
    return filled, oedema


def _from_surface(blood: dict[str, Array], head: Head, rise: Array, out: float = 1.0) -> Array:
    """Distance from a place of the inner table, or nearer to the middle of the head (out below 1)."""
    height = blood['height'] + blood['rise'] * rise
    return length(head.x - out * blood['across'], head.y - out * blood['back'], head.z - height)


def _epidural(blood: dict[str, Array], head: Head) -> Array:
    """A lens on the inner table: its inner face bulges into the brain."""
    radius = blood['epidural_radius']
    along = _from_surface(blood, head, 0.6 * radius) / radius
    return head.depth - radius * blood['epidural_bulge'] * (1 - along * along)


def _subdural(blood: dict[str, Array], head: Head) -> Array:
    """A crescent that follows the inner table, stops at the falx, or lies along it."""
    xp = head.x.__array_namespace__()
    radius = blood['subdural_radius']
    along = xp.clip(_from_surface(blood, head, 0.3 * radius) / radius, 0.0, 1.0)
    thickness = blood['subdural_thickness'] * xp.sqrt(1 - along * along + 1e-6)
    uneven = 0.4 * waves(blood['ragged'], head.x, head.y, head.z) + 5 * smoothstep((along - 0.97) * 40)
    side = head.x * xp.sign(blood['mirror'])
    crescent = xp.maximum(head.depth - thickness, 1 - side)
    plate = xp.maximum(xp.abs(side - 1) - 0.45 * thickness - 1, head.depth - 32)
    plate = xp.maximum(xp.maximum(plate, -side), -head.hindbrain)
    return xp.where(blood['falcine'] < 0.2, plate, crescent) + uneven


def _subarachnoid(blood: dict[str, Array], head: Head) -> Array:
    """Blood in place of CSF in the sulci and cisterns of one region."""
    xp = head.x.__array_namespace__()
    radius = blood['subarachnoid_radius']
    central = (blood['central'] < 0.6) & (xp.abs(blood['height'] + 8) < 22)
    middle, surface = (_from_surface(blood, head, 0.4 * radius, out) for out in (0.15, 1.0))
    region = xp.where(central, middle, surface) - radius
    return xp.maximum(head.clefts - blood['subarachnoid_width'], 0.5 * region)


def _clot(blood: dict[str, Array], head: Head) -> Array:
    """A ragged clot in the brain, deep or near the surface; some with contusions beside it."""
    xp = head.x.__array_namespace__()
    size, stretch = blood['clot_radius'], blood['clot_stretch']
    ragged = 0.16 * size * waves(blood['ragged'], head.x, head.y, head.z)
    x, y, z = blood['clot'][0], blood['clot'][1], blood['height'] + blood['rise'] * size
    radii = (size * (1 - stretch), size * (1 + stretch), size)
    clots = [ellipsoid(head.x, head.y, head.z, (x, y, z), radii)]
    for right, down, up in blood['scatter'][:2]:
        away = 1.5 * size + 4
        gap = length(head.x - x - right * away, head.y - y - down * away, head.z - z - up * away)
        clots.append(xp.where(blood['contusions'] < 0.3, gap - 0.4 * size, gap + 1000))
    return union(*clots) + ragged


def _intraventricular(blood: dict[str, Array], head: Head) -> Array:
    """Blood in the ventricles: the dependent back part with a level, one side, or all."""
    xp = head.x.__array_namespace__()
    part = blood['ventricle_part']
    back = xp.where(part < 0.5, blood['ventricle_level'] - head.y, -100.0)
    side = xp.where((part > 0.5) & (part < 0.8), -xp.sign(blood['mirror']) * head.x, -100.0)
    return xp.maximum(xp.maximum(head.ventricles, back), side)


def grey(blood: dict[str, Array], head: Head) -> Array:
    """HU of the blood: of one age, a little uneven, in some bleedings with a level of serum above clotted cells."""
    xp = head.x.__array_namespace__()
    old = xp.clip((blood['age'] - 0.75) * 4, 0.0, 1.0)
    fresh = blood['hu'] - 34 * old
    level = blood['back'] * 0.7 + blood['layer'] * 10
    serum = xp.where(blood['layered'] < 0.15, smoothstep((level - head.y) / 3), 0.0)
    return fresh - 26 * serum * (1 - old) + 2.5 * waves(blood['ragged'], head.x, head.y, head.z)
