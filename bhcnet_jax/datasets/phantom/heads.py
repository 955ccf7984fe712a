"""Draws synthetic head CT inside a compiled program: a key fixes a patient, a bleeding, a scan and its picture.

    drawn = jax.vmap(lambda key: heads.draw(key, 128))(jax.random.split(key, 64))

`numbers` draws all random numbers, in streams of their own; `picture` turns them into pixels and takes its
namespace from them, so that numpy draws the same picture.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bhcnet_jax.datasets.phantom import anatomy, bleedings, scan, skull
from bhcnet_jax.datasets.phantom.shapes import Array, blend, settle

LOWEST, HIGHEST = -52.0, 66.0  # mm, slices whose brain is large enough for a bleeding
MIN_AREA = 25.0  # mm2 of blood that make a slice one with a hemorrhage
STREAMS = ('patient', 'height', 'bleeds', 'bleeding', 'scan')


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


def draw(key: jax.Array, size: int) -> Drawn:
    """A slice of a random patient at a random height, [S, S] with S = size, a Python int; half of them bleed."""
    return picture(numbers(key, size), size)


def numbers(key: jax.Array, size: int) -> dict[str, Any]:
    """All that is random about a slice. The label's stream and the bleeding's enter nothing else."""
    keys = {name: jax.random.fold_in(key, place) for place, name in enumerate(STREAMS)}
    height = jax.random.uniform(keys['height'], minval=LOWEST, maxval=HIGHEST)
    return {
        'patient': anatomy.sample(keys['patient']),
        'height': height,
        'bleeds': jax.random.bernoulli(keys['bleeds']),
        'blood': bleedings.sample(keys['bleeding'], height),
        'scan': scan.sample(keys['scan'], size),
    }


def picture(drawn: dict[str, Any], size: int) -> Drawn:
    """The slice that `numbers` describe."""
    patient, scanner = drawn['patient'], drawn['scan']
    xp = drawn['height'].__array_namespace__()
    half = half_section(patient, scanner, drawn['height'])
    height = drawn['height'] * patient['height'] * patient['growth']
    *places, across, along = scan.grid(scanner, size, height, half)
    x, y, z = settle(tuple(places))
    bleeds = xp.where(drawn['bleeds'], 1.0, 0.0)
    bare, hu, blood = settle(hounsfield(patient, drawn['blood'], bleeds, x, y, z, 0.5 * (across + along)))
    bare, hu, blood = (xp.mean(each, axis=0) for each in (bare, hu, blood))  # over the depth of the slice
    area = xp.sum(blood) * across * along
    seen = area >= MIN_AREA
    mask = (blood >= 0.5) & seen
    hu = xp.where(seen, hu, bare)
    grey = scan.picture(scanner, hu, (across, along))
    count = xp.sum(xp.where(mask, 1.0, 0.0))
    rise = xp.sum(xp.where(mask, hu - bare, 0.0)) / xp.clip(count, 1.0, None)
    return Drawn(
        image=xp.asarray(xp.clip(xp.round(grey), 0.0, 255.0), dtype=xp.uint8),
        mask=mask,
        label=xp.asarray(seen, dtype=xp.int32),
        kind=xp.asarray(xp.where(seen, drawn['blood']['kind'], 0), dtype=xp.int32),
        contrast=rise / scanner['noise'],
        volume=xp.where(seen, area * scanner['thickness'] / 1000, 0.0),
    )


def half_section(patient: dict[str, Array], scanner: dict[str, Array], height: Array) -> tuple[Array, Array]:
    """Half the width and length in mm of the head's section that the picture is cropped to."""
    xp = height.__array_namespace__()
    narrow = xp.sqrt(xp.clip(1 - (xp.clip(height, 0.0, None) / 90) ** 2, 0.1, 1.0))
    rest = patient['skull'] + patient['scalp']
    section = 1 + (narrow - 1) * scanner['close']
    growth = patient['growth'] * section
    return (68 + rest) * growth * patient['width'], (88 + rest) * growth * patient['length']


def hounsfield(
    patient: dict[str, Array], blood: dict[str, Array], bleeds: Array, x: Array, y: Array, z: Array, edge: Array
) -> tuple[Array, Array, Array]:
    """HU without and with the blood, and the share of blood, at points x, y, z in mm of the patient.

    bleeds: 1.0, or 0.0 to leave the bleeding and its mass effect out. edge: mm, width of a soft edge.
    """
    xp = x.__array_namespace__()
    x, y, z = settle(anatomy.space(patient, x, y, z))
    depth = anatomy.dome(patient, x, y, z)
    moved = settle(bleedings.push(blood | {'mass': blood['mass'] * bleeds}, depth, x, y, z))
    head = settle(anatomy.head(patient, x, y, z, moved))
    inside = settle(anatomy.brain(patient, head, moved, edge))
    share = 0.0
    for present, each in zip(blood['present'], bleedings.shares(blood, head, edge), strict=True):
        share = xp.maximum(share, xp.where(present, bleeds * each, 0.0))
    bloody = settle(blend(inside, bleedings.grey(blood, head), share))
    outer, within = settle(skull.around(patient, head, edge))
    return outer + within * inside, outer + within * bloody, share * within
