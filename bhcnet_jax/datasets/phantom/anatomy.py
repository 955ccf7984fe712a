"""The patient: what lies where in a head without disease, in Hounsfield units (HU).

Millimetres of an average adult: x to the image's right, y to the back, z to the vertex; the origin is the middle of
the brain at the level of the anterior commissure, 17 mm behind it. `space` leads there from the millimetres of a
patient.
"""

from typing import NamedTuple

import jax

from bhcnet_jax.datasets.phantom.shapes import (
    Array,
    blend,
    cover,
    ellipsoid,
    length,
    settle,
    smoothstep,
    stroke,
    uniforms,
    union,
    wave_vectors,
    waves,
)  # fmt: skip

# HU of tissues, rounded from textbook ranges; acute blood is 50-80.
AIR, FAT, CSF, WHITE, GREY, MUSCLE, DIPLOE, BONE = -1000.0, -90.0, 6.0, 28.0, 36.0, 55.0, 600.0, 1200.0

RANGES = {
    'age': (2.0, 90.0),  # years
    'width': (0.94, 1.06),  # of the head, relative to its age's mean
    'length': (0.94, 1.06),
    'height': (0.95, 1.05),
    'egg': (0.02, 0.14),  # how much wider the back of the head is than its front
    'square': (0.1, 0.45),  # from an ellipse to a rounded box
    'temples': (1.0, 5.0),  # mm that the temples lie deeper
    'skull': (0.8, 1.3),  # thickness, relative to the age's mean
    'scalp': (3.0, 8.0),  # mm
    'atrophy': (-0.25, 0.25),  # beyond that of the age
    'swell': (0.7, 1.25),  # of the ventricles
    'lean': (-1.0, 1.0),  # one lateral ventricle is wider than the other
    'reach': (12.0, 26.0),  # mm, of sulci below the surface
    'white': (-2.0, 2.0),  # HU
    'grey': (-2.0, 2.0),
    'leukoaraiosis': (0.0, 1.0),
    'falx': (40.0, 65.0),  # HU
    'sinus': (45.0, 68.0),
    'air': (0.0, 1.0),  # how much of sinuses and mastoid is air
    'table': (0.0, 1.0),  # below 0.5: the head rest is there
    'table_gap': (2.0, 14.0),  # mm behind the skin
    'table_hu': (-300.0, 500.0),
    'sulci': (0.0, 1.0, 12, 3),  # for `wave_vectors`
    'bend': (0.0, 1.0, 4, 3),
    'warp': (0.0, 1.0, 12, 3),
    'patch': (0.0, 1.0, 6, 3),
}


class Head(NamedTuple):
    """The geometry of a patient on a grid; every field is a float32 array of the grid's shape, in mm.

    Attributes:
      x, y, z: place in the average adult.
      depth: below the inner table of the skull; negative in bone and outside.
      outside: above the skin; negative inside.
      skull: thickness of the bone.
      clefts, ventricles: signed distances to the CSF around and within the brain.
      hindbrain: signed height above the tentorium.
    """

    x: Array
    y: Array
    z: Array
    depth: Array
    outside: Array
    skull: Array
    clefts: Array
    ventricles: Array
    hindbrain: Array


def sample(key: jax.Array) -> dict[str, jax.Array]:
    """key -> the numbers that make a patient, float32: RANGES and random functions of space."""
    patient = uniforms(key, RANGES)
    old = jax.numpy.clip((patient['age'] - 30) / 60, 0.0, 1.0)
    growth = 1 - 0.16 * jax.numpy.exp(-patient['age'] / 5)
    thick = 2.5 + 4 * (1 - jax.numpy.exp(-patient['age'] / 8)) + old
    return patient | {
        'atrophy': jax.numpy.clip(old + patient['atrophy'], 0.0, 1.0),
        'growth': growth,
        'table_seen': jax.numpy.where(patient['table'] < 0.5, 1.0, 0.0),
        'skull': thick * patient['skull'],
        'sulci': wave_vectors(patient['sulci'], 23.0),
        'bend': wave_vectors(patient['bend'], 30.0),
        'warp': wave_vectors(patient['warp'], 90.0),
        'patch': wave_vectors(patient['patch'], 35.0),
    }


def space(patient: dict[str, Array], x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
    """Millimetres of the patient -> of the average adult."""
    xp = x.__array_namespace__()
    x, y, z = (place / (patient[side] * patient['growth']) for place, side in
               zip((x, y, z), ('width', 'length', 'height'), strict=True))  # fmt: skip
    shift = [1.2 * waves(patient['warp'][part : part + 4], x, y, z) for part in (0, 4, 8)]
    x = x / (1 + patient['egg'] * xp.clip(y / 90, -1.0, 1.0))
    return x + shift[0], y + shift[1], z + shift[2]


def push(bump: dict[str, Array], depth: Array, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
    """Where brain that lies at x, y, z would lie without a mass: centre [3] and room in mm, mass 0 to 1."""
    xp = x.__array_namespace__()
    gap = [place - bump['centre'][axis] for axis, place in enumerate((x, y, z))]
    cube = bump['room'] ** 3
    share = bump['mass'] * cube / (length(*gap) ** 3 + cube + 1.0) * xp.clip(depth / 8, 0.0, 1.0)
    return tuple(place - part * share for place, part in zip((x, y, z), gap, strict=True))


def dome(patient: dict[str, Array], x: Array, y: Array, z: Array) -> Array:
    """Depth below the inner table of a skull without a base, mm."""
    xp = x.__array_namespace__()
    u, v, w = (x / 67) ** 2, (y / 87) ** 2, xp.where(z > 0, z / 76, z / 80) ** 2
    round_, box = xp.sqrt(u + v + w + 1e-6), xp.sqrt(xp.sqrt(u * u + v * v + w * w + 1e-6))
    scaled = blend(round_, 1.08 * box, patient['square'])
    depth = length(x, y, z) * (1 / scaled - 1)
    temples = xp.exp(-(((y + 38) / 18) ** 2) - ((z + 10) / 30) ** 2)
    return depth - patient['temples'] * temples


def floor(x: Array, y: Array) -> Array:
    """Height of the skull base, mm: three fossae, the sella between them, petrous ridges and sphenoid wings."""
    xp = x.__array_namespace__()
    side = xp.abs(x)
    anterior = -24 + 5 * xp.exp(-(((side - 28) / 14) ** 2)) - 4 * xp.exp(-((side / 6) ** 2))
    petrous = y + 10 - 0.7 * side
    behind = smoothstep(petrous / 9)
    bowl = -47 + 0.009 * ((side - 42) ** 2 + (y + 12) ** 2)
    height = blend(anterior, bowl, smoothstep((y + 34 - 0.1 * side) / 7))
    height = blend(height, -28.0, smoothstep((13 - side) / 5) * smoothstep((y + 36) / 8))
    height = blend(height, -66 + 0.16 * xp.clip(y - 40, 0.0, 60.0), behind)
    ridge = xp.exp(-((petrous / 7) ** 2)) * smoothstep((side - 10) / 6)
    return height + 17 * ridge


def head(patient: dict[str, Array], x: Array, y: Array, z: Array, moved: tuple[Array, Array, Array]) -> Head:
    """The geometry of a patient.

    x, y, z: mm of the average adult (see `space`). moved: where the brain that lies there would lie without mass
    effect (see `push`).
    """
    xp = x.__array_namespace__()
    patch = settle(waves(patient['patch'], x, y, z))
    above = 0.85 * (z - floor(x, y) - 2.5 * patch)
    above = xp.where(above < 0, 1.7 * above, above)  # the base is thinner than the vault
    depth = settle(xp.minimum(dome(patient, x, y, z), above))
    skull = patient['skull'] * (1 + 0.1 * patch)
    brain_depth = settle(xp.minimum(dome(patient, *moved), 0.85 * (moved[2] - floor(moved[0], moved[1]))))
    return Head(
        x=x,
        y=y,
        z=z,
        depth=depth,
        outside=outline(patient, x, y, z, depth, skull),
        skull=skull,
        clefts=settle(clefts(patient, *moved, brain_depth)),
        ventricles=settle(ventricles(patient, *moved)),
        hindbrain=tentorium(*moved),
    )


def outline(patient: dict[str, Array], x: Array, y: Array, z: Array, depth: Array, skull: Array) -> Array:
    """Signed distance to the skin: scalp over the dome, face, neck."""
    scalp = -depth - skull - patient['scalp']
    face = ellipsoid(x, y, z, (0.0, -38.0, -60.0), (66.0, 60.0, 75.0))
    neck = stroke(x, y, z, (0.0, 30.0, -50.0, 68.0), (0.0, 30.0, -170.0, 58.0))
    base = -dome(patient, x, y, z) - skull - patient['scalp'] + z.__array_namespace__().clip(-40 - z, 0.0, 100.0)
    return union(scalp, face, neck, base)




def tentorium(x: Array, y: Array, z: Array) -> Array:
    """Height above the tentorium, mm; negative at the hindbrain, positive before the petrous ridges."""
    xp = x.__array_namespace__()
    roof = 2 - 0.62 * xp.clip(length(x, 0.55 * (y - 26)) - 10, 0.0, 100.0)
    return xp.maximum(0.85 * (z - roof), -(y + 10 - 0.7 * xp.abs(x)) * 0.8)


def clefts(patient: dict[str, Array], x: Array, y: Array, z: Array, depth: Array) -> Array:
    """Signed distance to the CSF around the brain: sulci, fissures, cisterns."""
    xp = x.__array_namespace__()
    surface = 75 / length(x, y, z)
    bend = waves(patient['bend'], x, y, z)
    crease = xp.abs(waves(patient['sulci'], *(place * (surface + 0.05 * bend) for place in (x, y, z)))) * 3.6
    x, y = x + 1.3 * bend, y + 1.6 * waves(patient['bend'][::-1], y, z, x)
    atrophy, side = patient['atrophy'], xp.abs(x)
    fade = xp.clip(1 - depth / (patient['reach'] * (0.8 + 0.5 * atrophy)), 0.0, 1.0)
    sulci = crease - (0.1 + 2.2 * atrophy) * fade + 6 * (1 - xp.clip(6 * fade, 0.0, 1.0))
    rim = depth - 0.6 - 1.6 * atrophy
    wide = 0.7 + 1.6 * atrophy
    inner = ellipsoid(x, y, z, (0.0, 0.0, -8.0), (200.0, 66.0, 58.0))
    fissure = xp.maximum(side - 0.4 * wide - 0.05 * (1 - fade), -inner)
    sylvian = union(
        ellipsoid(side, y, z, (41.0, -14.0, 0.0), (0.1 + wide, 15.0, 12.0)),
        ellipsoid(side, y, z - 0.25 * y, (54.0, -8.0, 5.0), (15.0, 26.0, 0.4 + wide)),
        stroke(side, y, z, (8.0, -20.0, -16.0, 1.5 * wide), (40.0, -24.0, -12.0, wide)),
    )
    star = stroke(x, y, z, (0.0, -26.0, -15.0, 1.5 + wide), (0.0, -6.0, -16.0, 4 + 2 * wide))
    upper = ellipsoid(x, y, z, (0.0, 6.0, -8.0), (16.0, 13.0, 15.0))
    pons = ellipsoid(x, y, z, (0.0, 9.0, -30.0), (17.0, 14.0, 14.0))
    stem = union(upper, pons, stroke(x, y, z, (0.0, 18.0, -40.0, 9.0), (0.0, 24.0, -90.0, 7.0)))
    around = xp.maximum(stem - 0.8 - wide * (1 + 0.5 * bend), -stem)
    around = xp.maximum(around, xp.clip(y - 16 + 20 * smoothstep((-20 - z) / 6) * 0.2, -50.0, 50.0) * 0.3)
    hind = xp.abs(tentorium(x, y, z)) - 0.3 - 0.5 * atrophy
    return union(sulci, rim, fissure, sylvian, star, around, hind)


def ventricles(patient: dict[str, Array], x: Array, y: Array, z: Array) -> Array:
    """Signed distance to the ventricles."""
    xp = x.__array_namespace__()
    side = xp.abs(x)
    swell = patient['swell'] * (0.65 + 0.8 * patient['atrophy']) * (1 + 0.15 * patient['lean'] * xp.sign(x))
    lateral = stroke(
        side, y, z,
        (13.0, -50.0, 3.0, 2.5 * swell), (9.0, -36.0, 11.0, 5.0 * swell), (9.0, -14.0, 21.0, 5.5 * swell),
        (13.0, 6.0, 25.0, 6.0 * swell), (24.0, 24.0, 15.0, 7.0 * swell),
        (33.0, 12.0, -6.0, 2.6 * swell), (33.0, -6.0, -19.0, 2.2 * swell),
    )  # fmt: skip
    horn = stroke(side, y, z, (24.0, 24.0, 14.0, 6.0 * swell), (23.0, 52.0, 7.0, 1.5 * swell))
    third = ellipsoid(x, y, z, (0.0, -4.0, -3.0), (0.6 + 2.6 * swell * patient['atrophy'] + swell, 15.0, 10.0))
    fourth = ellipsoid(x, y, z, (0.0, 28.0, -31.0), (6.5 * swell + 2, 5.0 * swell + 1, 11.0))
    return union(lateral, horn, third, fourth)


def nuclei(x: Array, y: Array, z: Array) -> Array:
    """Signed distance to the deep grey matter."""
    side = abs(x)
    return union(
        ellipsoid(side, y, z, (14.0, -30.0, 6.0), (5.5, 10.0, 11.0)),
        ellipsoid(side, y, z, (25.0, -15.0, 1.0), (7.0, 16.0, 10.0)),
        ellipsoid(side, y, z, (12.0, 3.0, 5.0), (9.0, 13.0, 9.0)),
    )


def brain(patient: dict[str, Array], parts: Head, moved: tuple[Array, Array, Array], edge: Array) -> Array:
    """HU of all that the inner table encloses."""
    xp = parts.x.__array_namespace__()
    cortex = union(parts.clefts - 3.2, nuclei(*moved))
    hu = blend(WHITE + patient['white'], GREY + patient['grey'], cover(cortex, 1.5 + edge))
    hu = blend(hu, GREY - 2 + 0 * hu, cover(parts.hindbrain, 2 + edge) * 0.7)
    old = xp.clip(patient['atrophy'] * 1.5 - 0.4, 0.0, 1.0) * patient['leukoaraiosis']
    hu = hu - 9 * old * cover(parts.ventricles - 7 - 2 * waves(patient['patch'], *moved), 6.0 + edge)
    hu = hu + 0.8 * waves(patient['patch'], *moved)
    for fluid in (parts.clefts, parts.ventricles):
        hu = blend(hu, CSF, cover(fluid, 0.8 + edge))
    midline = xp.abs(parts.x) - 0.6
    inner = ellipsoid(parts.x, parts.y, parts.z, (0.0, 0.0, -2.0), (200.0, 60.0, 48.0))
    falx = xp.maximum(xp.maximum(midline, -inner), -parts.hindbrain)
    tent = xp.maximum(xp.abs(parts.hindbrain) - 0.4, -parts.y - 10)
    hu = blend(hu, patient['falx'], cover(union(falx, tent), 1 + edge))
    sagittal = xp.maximum(stroke(parts.x, parts.depth, 0 * parts.z, (0.0, 0.0, 0.0, 4.5), (0.0, 5.0, 0.0, 1.0)),
                          -parts.y + 10 - parts.z)  # fmt: skip
    return blend(hu, patient['sinus'], cover(sagittal, 1 + edge))
