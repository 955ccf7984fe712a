"""What encloses the brain, in HU: skull, skull base, face, scalp, neck; and the table under the head."""

from bhcnet_jax.datasets.phantom import distractors
from bhcnet_jax.datasets.phantom.anatomy import AIR, BONE, DIPLOE, FAT, MUSCLE, Head
from bhcnet_jax.datasets.phantom.shapes import Array, blend, cover, ellipsoid, length, settle, stroke, union, waves


def around(patient: dict[str, Array], other: dict[str, Array], head: Head, edge: Array) -> tuple[Array, Array]:
    """-> HU outside the brain, in air, and the brain's share of each pixel: a head is outer + share * brain."""
    xp = head.x.__array_namespace__()
    bone, cells = settle(base(patient, head))
    hu = settle(soft(patient, other, head, edge))
    hu = blend(hu, BONE, cover(union(-head.depth - head.skull, bone), 0.8 + edge))
    diploe = xp.maximum(xp.abs(head.depth + head.skull / 2) - 0.25 * head.skull, -20 - head.z)
    hu = distractors.in_skull(other, head, blend(hu, DIPLOE, cover(diploe, 0.8 + edge)), edge)
    share = cover(-head.depth, 0.8 + edge)
    skin = head.outside - distractors.swelling(other, head)
    gas = cover(union(xp.maximum(cells, skin + 5), -skin), 0.8 + edge)
    hu = blend(hu * (1 - share), AIR, gas)
    rest = xp.abs(length(head.x, head.y - 20, 0 * head.z) - 88 - patient['table_gap'] - patient['scalp']) - 1.5
    rest = xp.maximum(xp.maximum(rest, 62 - head.y), -skin)
    return blend(hu, patient['table_hu'], patient['table_seen'] * cover(rest, 0.8 + edge)), share * (1 - gas)


def base(patient: dict[str, Array], head: Head) -> tuple[Array, Array]:
    """Signed distances to the bone below the brain, and to the air in it."""
    xp = head.x.__array_namespace__()
    x, y, z = head.x, head.y, head.z
    side = xp.abs(x)
    rough = waves(patient['patch'], 2.5 * x, 2.5 * y, 2.5 * z)
    petrous = stroke(side, y, z, (14.0, 1.0, -42.0, 6.0), (40.0, 18.0, -40.0, 11.0), (60.0, 30.0, -42.0, 12.0))
    mastoid = ellipsoid(side, y, z, (59.0, 30.0, -50.0), (11.0, 14.0, 22.0))
    clivus = stroke(x, y, z, (0.0, -8.0, -34.0, 8.0), (0.0, 8.0, -62.0, 6.0))
    sphenoid = ellipsoid(x, y, z, (0.0, -22.0, -40.0), (17.0, 15.0, 13.0))
    wing = stroke(side, y, z, (17.0, -28.0, -28.0, 4.0), (48.0, -44.0, -30.0, 4.0), (60.0, -40.0, -25.0, 6.0))
    orbit = ellipsoid(side, y, z, (32.0, -62.0, -42.0), (19.0, 27.0, 18.0))
    ethmoid = ellipsoid(x, y, z, (0.0, -58.0, -42.0), (13.0, 26.0, 15.0))
    maxillary = ellipsoid(side, y, z, (30.0, -62.0, -76.0), (14.0, 16.0, 15.0))
    frontal = ellipsoid(side, y, z, (9.0, -88.0, -16.0), (15.0, 5.0, 14.0))
    nose = ellipsoid(x, y, z, (0.0, -65.0, -75.0), (13.0, 34.0, 18.0))
    spine = xp.abs(ellipsoid(x, y, z, (0.0, 30.0, -90.0), (16.0, 16.0, 26.0))) - 4
    jaw = xp.abs(stroke(side, y, z, (48.0, -12.0, -60.0, 5.0), (44.0, -20.0, -110.0, 6.0))) - 3
    bone = union(petrous, mastoid, clivus, sphenoid, wing, xp.abs(orbit) - 1.2, ethmoid - 1, maxillary - 1.5,
                 frontal - 2, spine, jaw)  # fmt: skip
    air = (1 - patient['air']) * 6
    septa = 2 + 3 * rough
    cells = union(
        sphenoid + 4 + air, ethmoid + 1 + septa, maxillary + 1.5 + air, frontal + 1 + air, nose + 3 + septa,
        mastoid + 3 + septa + air, stroke(x, y, z, (0.0, -8.0, -75.0, 7.0), (0.0, 2.0, -130.0, 8.0)),
    )  # fmt: skip
    return bone, cells


def soft(patient: dict[str, Array], other: dict[str, Array], head: Head, edge: Array) -> Array:
    """Scalp, muscle and fat of face and neck, orbits."""
    xp = head.x.__array_namespace__()
    x, y, z = head.x, head.y, head.z
    side = xp.abs(x)
    below = xp.clip((-15 - z) / 15, 0.0, 1.0)
    lump = 0.6 * (waves(patient['bend'], x, y, z) + waves(patient['patch'], z, x, y))
    muscle = cover(1.2 - lump * 2.5 - 4 * below, 2 + edge)
    temporal = ellipsoid(side, y, z, (68.0, -32.0, -20.0), (10.0, 26.0, 36.0))
    hu = blend(FAT + 0 * x, MUSCLE, xp.maximum(muscle * below, cover(temporal, 1 + edge)))
    thicker = distractors.swelling(other, head)
    bruise = xp.maximum(head.outside - thicker, -thicker * 1.4 - head.outside + 0.1)
    hu = blend(hu, other['swelling_hu'] + 5 * lump, cover(bruise, 1.5 + edge))
    hu = blend(hu, MUSCLE - 20, cover(-(head.outside - thicker) - 1.5, 0.8 + edge))
    orbit = ellipsoid(side, y, z, (32.0, -62.0, -42.0), (18.0, 26.0, 17.0))
    globe = ellipsoid(side, y, z, (32.0, -76.0, -41.0), (12.0, 12.0, 12.0))
    nerve = stroke(side, y, z, (31.0, -66.0, -41.0, 2.0), (16.0, -36.0, -36.0, 2.0))
    lens = ellipsoid(side, y, z, (32.0, -84.0, -41.0), (4.5, 2.0, 4.5))
    for shape, value in ((orbit, FAT), (nerve, 40.0), (globe, 14.0), (lens, 80.0)):
        hu = blend(hu, value, cover(shape, 0.8 + edge))
    return hu
