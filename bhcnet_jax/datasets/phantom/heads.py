"""Draws synthetic head CT inside a compiled program: a key fixes a patient, a bleeding, a scan and its picture.

    drawn = jax.vmap(lambda key: heads.draw(key, 128))(jax.random.split(key, 64))

`numbers` draws all random numbers, in streams of their own; `picture` turns them into pixels and takes its
namespace from them, so that numpy draws the same picture.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bhcnet_jax.datasets.phantom import anatomy, bleedings, distractors, scan, skull
from bhcnet_jax.datasets.phantom.shapes import Array, blend, settle

LOWEST, HIGHEST = -52.0, 66.0  # mm, slices whose brain is large enough for a bleeding
MIDDLE = (-15.0, 50.0)  # mm, where half of the slices come from, as in published pictures
SCANNED = (-90.0, 82.0)  # mm, of a volume: from the neck to the vertex
MIN_AREA = 25.0  # mm2 of blood that make a slice one with a hemorrhage
INTENDED = 0.565  # share of bleedings that are drawn; a few are too small to count, so that half of the slices bleed
STREAMS = ('patient', 'height', 'bleeds', 'bleeding', 'other', 'scan')


class Drawn(NamedTuple):
    """One slice.

    Attributes:
      image: uint8 [S, S], grey.
      mask: bool [S, S], blood inside the skull.
      label: int32 [], 1 if at least MIN_AREA of blood are seen.
      kind: int32 [], index into bleedings.KINDS of the main bleeding; 0 without one.
      contrast: float32 [], mean difference in HU of the blood to what it replaces, in standard deviations of the
        noise of a pixel; 0 without blood.
      volume: float32 [], mL of blood in the slice, i.e. its area times the slice's thickness.
    """

    image: Array
    mask: Array
    label: Array
    kind: Array
    contrast: Array
    volume: Array


class Volume(NamedTuple):
    """One patient from the neck to the vertex, Z slices from below; the fields of Drawn with Z in front, and

    Attributes:
      hu: float32 [Z, S, S], Hounsfield units as the scanner gives them, before window and export.
      height: float32 [Z], mm above the middle of the brain.
      spacing: float32 [3], mm between slices, rows and columns.
    """

    image: Array
    mask: Array
    label: Array
    kind: Array
    contrast: Array
    volume: Array
    hu: Array
    height: Array
    spacing: Array


def draw(key: jax.Array, size: int) -> Drawn:
    """A slice of a random patient at a random height, [S, S] with S = size, a Python int; half of them bleed."""
    return picture(numbers(key, size), size)


def draw_volume(key: jax.Array, size: int, slices: int) -> Volume:
    """A random patient, half of whom bleed, somewhere in the brain. size, slices: Python ints."""
    drawn = numbers(key, size)
    growth = drawn['patient']['height'] * drawn['patient']['growth']
    heights = jnp.linspace(*SCANNED, slices)
    gap = (SCANNED[1] - SCANNED[0]) / (slices - 1) * growth
    fixed = {'thickness': gap, 'close': 0.0 * gap, 'tilt': 0.3 * drawn['scan']['tilt']}
    grain_key = jax.random.fold_in(key, len(STREAMS))

    def one(place: jax.Array, height: jax.Array) -> tuple[Drawn, Array, Array]:
        grain = jax.random.normal(jax.random.fold_in(grain_key, place), (size, size))
        level = drawn | {'height': height, 'scan': drawn['scan'] | fixed | {'grain': grain}}
        hu, seen, pixel = section(level, size)
        return seen._replace(image=grey(level, hu, pixel)), hu, jnp.stack(pixel[::-1])

    seen, hu, pixels = jax.vmap(one)(jnp.arange(slices), heights)
    return Volume(*seen, hu=hu, height=heights * growth, spacing=jnp.concatenate([gap[None], pixels[0]]))


def numbers(key: jax.Array, size: int) -> dict[str, Any]:
    """All that is random about a slice. The label's stream and the bleeding's enter nothing else."""
    keys = {name: jax.random.fold_in(key, place) for place, name in enumerate(STREAMS)}
    patient = anatomy.sample(keys['patient'])
    place = jax.random.uniform(keys['height'])
    height = jnp.interp(place, jnp.array([0.0, 0.5, 0.5, 1.0]), jnp.array([LOWEST, HIGHEST, *MIDDLE]))
    return {
        'patient': patient,
        'height': height,
        'bleeds': jnp.where(jax.random.bernoulli(keys['bleeds'], INTENDED), 1.0, 0.0),
        'blood': bleedings.sample(keys['bleeding'], height),
        'other': distractors.sample(keys['other'], height, patient['age']),
        'scan': scan.sample(keys['scan'], size),
    }


def picture(drawn: dict[str, Any], size: int) -> Drawn:
    """The slice that `numbers` describe."""
    hu, seen, pixel = section(drawn, size)
    return seen._replace(image=grey(drawn, hu, pixel))


def grey(drawn: dict[str, Any], hu: Array, pixel: tuple[Array, Array]) -> Array:
    """HU of a scanner -> uint8, the picture that is published of it."""
    xp = hu.__array_namespace__()
    return xp.asarray(xp.round(scan.export(drawn['scan'], hu, pixel)), dtype=xp.uint8)


def section(drawn: dict[str, Any], size: int) -> tuple[Array, Drawn, tuple[Array, Array]]:
    """-> HU as the scanner gives them, float32 [S, S]; all of Drawn but the image; width and height of a pixel, mm."""
    patient, scanner = drawn['patient'], drawn['scan']
    xp = drawn['height'].__array_namespace__()
    height = drawn['height'] * patient['height'] * patient['growth']
    half = half_section(patient, scanner, drawn['height'])
    *places, across, along = scan.grid(scanner, size, height, half)
    x, y, z = settle(tuple(places))
    parts = settle(hounsfield(drawn, x, y, z, 0.5 * (across + along)))
    bare, hu, blood = (xp.mean(each, axis=0) for each in parts)  # over the depth of the slice
    area = xp.sum(xp.where(blood >= 0.5, across * along, 0.0))
    seen = area >= MIN_AREA
    mask = (blood >= 0.5) & seen
    hu = xp.where(seen, hu, bare)
    rise = xp.sum(xp.where(mask, hu - bare, 0.0)) * across * along / xp.clip(area, 1.0, None)
    shown = Drawn(
        image=None,
        mask=mask,
        label=xp.asarray(seen, dtype=xp.int32),
        kind=xp.asarray(xp.where(seen, drawn['blood']['kind'], 0), dtype=xp.int32),
        contrast=rise / scan.noise(scanner, (across, along)),
        volume=xp.where(seen, area * scanner['thickness'] / 1000, 0.0),
    )
    return scan.measure(scanner, hu, (across, along)), shown, (across, along)


def half_section(patient: dict[str, Array], scanner: dict[str, Array], height: Array) -> tuple[Array, Array]:
    """Half the width and length in mm of the head's section that the picture is cut to."""
    xp = height.__array_namespace__()
    narrow = xp.sqrt(xp.clip(1 - (xp.clip(height, 0.0, None) / 88) ** 2, 0.15, 1.0))
    rest = patient['skull'] + patient['scalp'] * 0.6
    section = 1 + (narrow - 1) * scanner['close']
    growth = patient['growth'] * section
    return (67 + rest) * growth * patient['width'], (87 + rest) * growth * patient['length']


def hounsfield(
    drawn: dict[str, Any], x: Array, y: Array, z: Array, edge: Array
) -> tuple[Array, Array, Array]:
    """HU without and with the blood, and the share of blood, at points x, y, z in mm of the patient.

    drawn: see `numbers`; its `bleeds` is 1.0, or 0.0 to leave the bleeding and its mass effect out. edge: mm, of soft
    edges.
    """
    xp = x.__array_namespace__()
    patient, blood, other, bleeds = (drawn[name] for name in ('patient', 'blood', 'other', 'bleeds'))
    x, y, z = settle(anatomy.space(patient, x, y, z))
    depth = anatomy.dome(patient, x, y, z)
    moved = anatomy.push(bleedings.bump(blood, bleeds), depth, x, y, z)
    moved = settle(anatomy.push(distractors.bump(other), depth, *moved))
    head = settle(anatomy.head(patient, x, y, z, moved))
    inside = settle(anatomy.brain(patient, head, moved, edge))
    inside = settle(distractors.in_brain(other, head, inside, edge)) + scan.hardening(drawn['scan'], x, y, z)
    filled, oedema = settle(bleedings.shares(blood, head, edge))
    share = 0.0 * x
    for present, each in zip(blood['present'], filled, strict=True):
        share = xp.maximum(share, xp.where(present, bleeds * each, 0.0))
    bloody = settle(blend(inside - bleeds * oedema, bleedings.grey(blood, head), share))
    outer, within = settle(skull.around(patient, other, head, edge))
    bare, hu = (distractors.foreign(other, head, outer + within * brain, edge) for brain in (inside, bloody))
    return bare, hu, share * within
