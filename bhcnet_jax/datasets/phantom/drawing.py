"""Draws synthetic head-CT slices: anatomy in Hounsfield units (HU), then a scan of it in grey levels.

The pixel grid is H x W. Head coordinates x (image right) and y (back of the head) put the outer table of the
skull near the unit circle, so 0.1 is about 1 cm; shapes are signed distances in them, negative inside.

All that is not the bleeding comes from random streams which the label never enters: a slice drawn with and
without its bleeding has the same head, the same bright distractors, the same scan, size, window and letters.

float64 throughout: libraries differ between machines in a last bit, and what is rounded to 256 grey levels
afterwards all but never shows it.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

SEED = 2022
NUM_SLICES = 200
KINDS = ('epidural', 'subdural', 'subarachnoid', 'intraparenchymal', 'intraventricular')

# HU of tissues, rounded from textbook ranges; acute blood is 50-80. Bone is far above any window used here.
AIR, FAT, CSF, WHITE, GREY, MUSCLE, BONE = -1000.0, -90.0, 6.0, 28.0, 36.0, 58.0, 900.0

# Where a kind of bleeding can be told: base has no lateral ventricles, vertex none at all. The normal partner
# of a slice is drawn from the same levels, so that the level says nothing about the label.
LEVELS = {
    'epidural': ('base', 'ganglia', 'body', 'vertex'),
    'subdural': ('ganglia', 'body', 'vertex'),
    'subarachnoid': ('base', 'ganglia', 'body', 'vertex'),
    'intraparenchymal': ('base', 'ganglia', 'body', 'vertex'),
    'intraventricular': ('ganglia', 'body'),
}


@dataclass(frozen=True)
class Slice:
    """One drawn slice.

    Attributes:
      id: '000' to '199'.
      image: uint8 [H, W], grey.
      mask: uint8 [H, W], 255 where blood was drawn, else 0.
      kind: one of KINDS, or '' for a normal slice.
    """

    id: str
    image: np.ndarray
    mask: np.ndarray
    kind: str


@dataclass(frozen=True)
class Head:
    """The geometry of one slice; every array is float64 [H, W] in head coordinates.

    Attributes:
      level: base, ganglia, body or vertex, from below.
      x, y: head coordinates, warped so that no two heads are alike.
      angle: radians around the centre, 0 at the forehead, positive to the image's right.
      outside: distance above the outer table of the skull; negative within the head.
      depth: distance below the inner table; negative in bone and outside.
      ventricles, clefts: signed distances to the ventricles and to the CSF around the brain.
      pixel: width of a pixel, a float.
    """

    level: str
    x: np.ndarray
    y: np.ndarray
    angle: np.ndarray
    outside: np.ndarray
    depth: np.ndarray
    ventricles: np.ndarray
    clefts: np.ndarray
    pixel: float


def draw_set(seed: int = SEED) -> Iterator[Slice]:
    """Yields NUM_SLICES slices, normal and hemorrhage by turns, the kinds of bleeding in equal numbers."""
    for index in range(NUM_SLICES):
        yield draw_slice(index, seed)


def draw_slice(index: int, seed: int = SEED, bleeds: bool | None = None) -> Slice:
    """Draws slice `index` of the set of `seed`.

    Args:
      index: 0 to NUM_SLICES-1; odd slices bleed, and (index // 2) % 5 fixes the kind.
      seed: of the whole set.
      bleeds: overrides the label, for comparing a slice with its twin of the other class.
    """
    streams = (np.random.default_rng((seed, index, stream)) for stream in range(4))
    brain_rng, blood_rng, skull_rng, scan_rng = streams
    kind = KINDS[index // 2 % len(KINDS)]
    if bleeds is None:
        bleeds = index % 2 == 1
    head, hu = _draw_brain(brain_rng, kind)
    blood = np.zeros(hu.shape)
    if bleeds:
        hu, blood = _add_blood(blood_rng, head, hu, kind)
    hu, bone = _add_skull(skull_rng, head, hu)
    mask = np.where(blood * (1 - bone) >= 0.5, 255, 0).astype(np.uint8)
    return Slice(f'{index:03d}', _scan(scan_rng, head, hu), mask, kind if bleeds else '')


def _draw_brain(rng: np.random.Generator, kind: str) -> tuple[Head, np.ndarray]:
    """-> the anatomy and HU of a brain that fills the whole image; the skull is laid over it later."""
    level = str(rng.choice(LEVELS[kind]))
    atrophy = rng.uniform(0.0, 1.0)  # widens ventricles and sulci together, as age does
    px, py, pixel = _place(rng)
    x, y = (p + 0.02 * _noise(rng, p.shape, 7) + 0.008 * _noise(rng, p.shape, 18) for p in (px, py))
    angle = np.arctan2(px, -py)
    temples = 0.0 if level == 'vertex' else rng.uniform(0.03, 0.07)
    outer = _ring(rng, angle, 1.0, 0.012) - temples * np.clip(1 - ((np.abs(angle) - 1.0) / 0.6) ** 2, 0, 1)
    outside = np.sqrt(px**2 + py**2) - outer
    thickness = _ring(rng, angle, rng.uniform(0.07, 0.12) + 0.08 * (level == 'vertex'), 0.01)
    depth = -outside - thickness
    sulci, cortex = _draw_sulci(rng, angle, depth, atrophy, level)
    clefts = np.minimum(sulci, _draw_cisterns(x, y, level, atrophy))
    ventricles = _draw_ventricles(rng, x, y, level, atrophy)
    hu = _blend(WHITE, GREY, _cover(np.minimum(cortex, _draw_nuclei(x, y, level)), 0.04))
    hu = hu + 1.5 * _noise(rng, hu.shape, 5)
    for fluid in (clefts, ventricles):
        hu = _blend(hu, CSF, _cover(fluid, 0.01 + pixel))
    head = Head(level, x, y, angle, outside, depth, ventricles, clefts, pixel)
    return head, _add_distractors(rng, head, hu)


def _place(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """Size, field of view, tilt and outline of the head -> x, y [H, W] and the width of a pixel."""
    height = round(rng.triangular(150, 300, 500))
    aspect = rng.uniform(0.74, 0.9)  # of the head, width over height
    fill = rng.uniform(0.88, 1.03)  # above 1 the image cuts the head off
    width = max(130, round(height * min(1.0, (aspect + 0.04) * rng.uniform(1.0, 1.15))))
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    half = height / 2 * fill
    right = (columns - (width - 1) / 2) / half + rng.uniform(-0.02, 0.02)
    down = (rows - (height - 1) / 2) / half + rng.uniform(-0.03, 0.03)
    tilt = np.deg2rad(rng.normal(0, 5))
    x = (right * np.cos(tilt) + down * np.sin(tilt)) / aspect
    y = down * np.cos(tilt) - right * np.sin(tilt)
    return x / (1 + rng.uniform(0.02, 0.1) * y), y, 1 / half


def _draw_sulci(
    rng: np.random.Generator, angle: np.ndarray, depth: np.ndarray, atrophy: float, level: str
) -> tuple[np.ndarray, np.ndarray]:
    """Creases that run inwards from the surface -> signed distances to their CSF and to the cortex around."""
    turns = int(rng.integers(24, 40))
    grid = ndimage.zoom(rng.standard_normal((8, turns)), (4, 12), order=3, mode='grid-wrap', grid_mode=True)
    row, column = np.clip(depth, 0, 1) / 0.16 * 4, angle / (2 * np.pi) * turns * 12
    crease = 0.08 * np.abs(ndimage.map_coordinates(grid, (row, column), order=1, mode='grid-wrap'))
    reach = rng.uniform(0.08, 0.16) + 0.12 * atrophy + 0.15 * (level == 'vertex')
    fade = np.clip(1 - depth / reach, 0, 1)
    sulci = crease - (0.003 + 0.025 * atrophy) * fade + 0.05 * (fade == 0)
    cortex = np.minimum(np.maximum(crease - 0.06, depth - reach - 0.05), depth - 0.06)
    return np.minimum(sulci, depth - 0.01 - 0.02 * atrophy), cortex


def _draw_ventricles(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, level: str, atrophy: float
) -> np.ndarray:
    """Signed distance to the ventricles that the level shows."""
    side = np.abs(x + 0.01)
    swell = rng.uniform(0.4, 0.8) + 0.7 * atrophy
    if level == 'vertex':
        return np.full(x.shape, 1.0)
    if level == 'base':
        return _stroke(x, y, (-0.07, 0.42, 0.03 * swell), (0.07, 0.42, 0.03 * swell))
    if level == 'body':
        front = (0.17, -0.42, 0.03 * swell), (0.1, -0.2, 0.06 * swell)
        return _stroke(side, y, *front, (0.15, 0.1, 0.06 * swell), (0.27, 0.4, 0.05 * swell))
    horns = _stroke(side, y, (0.2, -0.46, 0.03 * swell), (0.1, -0.28, 0.06 * swell), (0.05, -0.18, 0.01))
    third = _stroke(x, y, (0.0, -0.12, 0.012 + 0.02 * atrophy), (0.0, 0.1, 0.012 + 0.02 * atrophy))
    atria = _stroke(side, y, (0.24, 0.25, 0.03 * swell), (0.34, 0.38, 0.06 * swell), (0.3, 0.58, 0.015))
    return np.minimum(np.minimum(horns, third), atria)


def _draw_cisterns(x: np.ndarray, y: np.ndarray, level: str, atrophy: float) -> np.ndarray:
    """Signed distance to the CSF between the lobes and around the midbrain."""
    side = np.abs(x)
    wide = 0.01 + 0.02 * atrophy
    fissure = _stroke(x, y, (0.0, -0.95, wide), (0.0, -0.55, 0.004))
    if level in ('body', 'vertex'):
        return np.minimum(fissure, _stroke(x, y, (0.0, 0.6, 0.004), (0.0, 0.95, wide)))
    if level == 'ganglia':
        mouth = (0.86, -0.2, 2 * wide), (0.66, -0.18, wide)
        sylvian = _stroke(side, y, *mouth, (0.56, -0.02, wide), (0.6, 0.1, 0.004))
        smile = _stroke(side, y, (0.0, 0.22, 1.5 * wide), (0.12, 0.16, wide))
        return np.minimum(np.minimum(fissure, sylvian), smile)
    middle = (0.0, -0.3, wide), (0.0, -0.06, 3 * wide)
    star = _stroke(side, y, *middle, (0.22, -0.2, 1.5 * wide), (0.5, -0.25, wide))
    midbrain = np.abs(np.sqrt(x**2 + (y - 0.1) ** 2) - 0.15) - wide
    return np.minimum(np.minimum(fissure, star), midbrain)


def _draw_nuclei(x: np.ndarray, y: np.ndarray, level: str) -> np.ndarray:
    """Signed distance to the deep grey matter, which only the level `ganglia` shows."""
    side = np.abs(x)
    if level != 'ganglia':
        return np.full(x.shape, 1.0)
    caudate = _stroke(side, y, (0.22, -0.38, 0.05), (0.17, -0.18, 0.03))
    lentiform = _stroke(side, y, (0.36, -0.22, 0.05), (0.36, 0.0, 0.06))
    thalamus = _stroke(side, y, (0.12, 0.0, 0.07), (0.17, 0.1, 0.08))
    return np.minimum(np.minimum(caudate, lentiform), thalamus)


def _add_distractors(rng: np.random.Generator, head: Head, hu: np.ndarray) -> np.ndarray:
    """What is as bright as blood in healthy heads: falx, sinus, calcifications, partial volume of bone."""
    x, y, side = head.x, head.y, np.abs(head.x)
    back = -0.5 if head.level == 'vertex' else 0.5
    front_falx = _stroke(x, y, (0.0, -0.98, 0.012), (0.0, -0.5, 0.003))
    falx = np.minimum(front_falx, _stroke(x, y, (0.0, back, 0.003), (0.0, 0.9, 0.012)))
    hu = _blend(hu, rng.uniform(40, 75), _cover(falx, 0.02))
    sinus = _stroke(x, y, (0.0, 0.8, 0.01), (0.0, 0.93, rng.uniform(0.02, 0.07)))
    hu = _blend(hu, rng.uniform(45, 75), _cover(sinus, 0.03))
    stones = ((side, 0.34, 0.4, 0.4), (x, 0.0, 0.17, 0.4), (side, 0.34, -0.1, 0.15), (x, 0.0, -0.7, 0.15))
    for across, cx, cy, chance in stones:  # choroid plexus, pineal gland, basal ganglia, falx
        if head.level in ('ganglia', 'body') and rng.random() < chance:
            radius = rng.uniform(0.008, 0.04)
            stone = _stroke(across, y, (cx, cy, radius), (cx + 0.01, cy + rng.uniform(0.01, 0.06), radius))
            stone = stone + 0.012 * _noise(rng, hu.shape, 40)
            hu = _blend(hu, rng.uniform(60, 250), _cover(stone, 0.02))
    if rng.random() < 0.7:
        lit = np.clip(_ring(rng, head.angle, 0.6, 0.5), 0, 1)
        glow = np.clip(1 - head.depth / rng.uniform(0.05, 0.25), 0, 1) ** 2
        hu = hu + rng.uniform(15, 70) * lit * glow
    return hu


def _add_blood(
    rng: np.random.Generator, head: Head, hu: np.ndarray, kind: str
) -> tuple[np.ndarray, np.ndarray]:
    """-> HU with the bleeding, and the share of blood in each pixel, float64 [H, W]."""
    shape = np.maximum(_BLEEDINGS[kind](rng, head), -head.depth)
    if kind == 'intraparenchymal':  # the dark rim of edema and extruded serum
        hu = hu - rng.uniform(4, 14) * np.clip(1 - shape / rng.uniform(0.04, 0.12), 0, 1)
    share = _cover(shape, 0.01 + head.pixel)
    return _blend(hu, rng.uniform(58, 76) + 4 * _noise(rng, hu.shape, 14), share), share


def _add_skull(rng: np.random.Generator, head: Head, hu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """-> HU with all that is outside the brain, and the share of bone and air cells, float64 [H, W]."""
    side, y, noise = np.abs(head.x), head.y, _noise(rng, hu.shape, 40)
    bone = np.clip(0.5 - head.depth / (rng.uniform(0.01, 0.03) + 0.03 * (head.level == 'vertex')), 0, 1)
    cells = np.full(hu.shape, 1.0)
    if head.level == 'base':
        petrous = _stroke(side, y, (0.95, 0.4, 0.14), (0.28, 0.03, 0.02))
        wing = _stroke(side, y, (0.9, -0.3, 0.1), (0.3, -0.34, 0.01))
        bone = np.maximum(bone, _cover(np.minimum(petrous, wing) + 0.04 * _noise(rng, hu.shape, 14), 0.06))
        cells = _stroke(side, y, (0.85, 0.38, 0.1), (0.7, 0.28, 0.05)) + 0.08 + 0.1 * noise
    if head.level in ('base', 'ganglia') and rng.random() < 0.4:
        size = rng.uniform(0.015, 0.04)
        sinus = _stroke(side, y, (0.03, -0.95, size), (rng.uniform(0.05, 0.2), -0.93, size))
        cells = np.minimum(cells, sinus + 0.01 * noise)
    cells = np.maximum(cells, head.outside + 0.03)  # the outer table stays whole
    hu = _blend(_blend(hu, BONE, bone), AIR, _cover(cells, 0.02))
    return _add_scalp(rng, head, hu), bone


def _add_scalp(rng: np.random.Generator, head: Head, hu: np.ndarray) -> np.ndarray:
    """Fat under a line of skin, muscle and swellings as bright as blood, air, sometimes a head rest."""
    thickness = np.clip(_ring(rng, head.angle, rng.uniform(0.03, 0.09), 0.01), 0.02, None)
    hu = _blend(hu, FAT, _cover(-head.outside, 0.01))
    hu = _blend(hu, MUSCLE - 20, _cover(thickness - 0.012 - head.outside, 0.01))
    temples = (np.abs(head.angle) - 1.0) / rng.uniform(0.5, 0.9)
    swelling = _turn(head.angle, rng.uniform(-np.pi, np.pi)) / rng.uniform(0.4, 1.2)
    lean = rng.uniform(0.0, 0.13) * (head.level != 'vertex') * np.clip(1 - temples**2, 0, 1)
    lean = np.maximum(lean, rng.uniform(0.0, 0.12) * (rng.random() < 0.5) * np.clip(1 - swelling**2, 0, 1))
    soft = np.maximum(head.outside - lean, 0.004 - head.outside)
    hu = _blend(hu, rng.normal(MUSCLE, 5) + 4 * _noise(rng, hu.shape, 30), _cover(soft, 0.02))
    thickness = np.maximum(thickness, lean + 0.02)
    hu = _blend(hu, AIR, _cover(thickness - head.outside, 0.01))
    if rng.random() < 0.3:
        rest = np.abs(np.sqrt(head.x**2 + (head.y - 0.1) ** 2) - 1.15) - 0.012
        hu = _blend(hu, 250.0, _cover(np.maximum(rest, 0.75 - head.y), 0.01))
    return hu


def _epidural(rng: np.random.Generator, head: Head) -> np.ndarray:
    """A lens on the inner table: its inner face bulges into the brain, sutures stop it."""
    place = rng.choice((-1, 1)) * rng.uniform(0.5, 2.4)
    half, thick = rng.uniform(0.4, 0.6), rng.uniform(0.2, 0.34)
    along = _turn(head.angle, place) / half
    return head.depth - thick * (1 - along**2)


def _subdural(rng: np.random.Generator, head: Head) -> np.ndarray:
    """A crescent that follows the inner table over most of one side."""
    place = rng.choice((-1, 1)) * rng.uniform(1.1, 1.9)
    half, thick = rng.uniform(0.8, 1.2), rng.uniform(0.08, 0.17)
    along = np.clip(np.abs(_turn(head.angle, place)) / half, 0, 1)
    wavy = 0.01 * _noise(rng, head.x.shape, 10)
    return head.depth - thick * np.sqrt(1 - along**2) + wavy + 0.2 * (along == 1)


def _subarachnoid(rng: np.random.Generator, head: Head) -> np.ndarray:
    """Blood in place of CSF in the sulci and cisterns of one region."""
    place = rng.uniform(-2.2, 2.2)
    region = np.abs(_turn(head.angle, place)) - rng.uniform(0.7, 1.3)
    return np.maximum(head.clefts - rng.uniform(0.012, 0.022), 0.2 * region)


def _intraparenchymal(rng: np.random.Generator, head: Head) -> np.ndarray:
    """A ragged clot in one hemisphere, deep or lobar."""
    angle = rng.choice((-1, 1)) * rng.uniform(0.4, 2.6)
    distance, size = rng.uniform(0.3, 0.58), rng.uniform(0.11, 0.24)
    cx, cy = distance * np.sin(angle), -distance * np.cos(angle)
    lean = rng.normal(0, 0.6) * size
    clot = _stroke(head.x, head.y, (cx - lean, cy - size / 2, size * 0.7), (cx + lean, cy + size / 2, size))
    return clot + size * (0.2 * _noise(rng, head.x.shape, 10) + 0.12 * _noise(rng, head.x.shape, 30))


def _intraventricular(rng: np.random.Generator, head: Head) -> np.ndarray:
    """Blood in the ventricles: the dependent back part, or one side."""
    back = rng.uniform(-0.1, 0.2) - head.y
    one_side = rng.choice((-1, 1)) * head.x - 0.01
    return np.maximum(head.ventricles, back if rng.random() < 0.5 else one_side)


_BLEEDINGS = {
    'epidural': _epidural,
    'subdural': _subdural,
    'subarachnoid': _subarachnoid,
    'intraparenchymal': _intraparenchymal,
    'intraventricular': _intraventricular,
}


def _scan(rng: np.random.Generator, head: Head, hu: np.ndarray) -> np.ndarray:
    """HU -> uint8 grey: streaks, noise, window, blur of the export, letters."""
    hu = np.clip(hu, -150, 350) + _streaks(rng, head)
    grain = ndimage.gaussian_filter(rng.standard_normal(hu.shape), rng.uniform(0.4, 1.0))
    hu = hu + rng.uniform(2.0, 6.0) / grain.std() * grain
    hu = hu + rng.uniform(0, 8) * (head.x**2 + head.y**2) + rng.normal(0, 2)  # cupping, calibration
    centre, width = rng.uniform(32, 48), rng.uniform(80, 170)
    share = np.clip((hu - centre) / width + 0.5, 0, 1)
    share = ndimage.gaussian_filter(share, rng.uniform(0.002, 0.008) / head.pixel)
    black, white = rng.uniform(0, 25), rng.uniform(225, 255)
    image = np.round(black + (white - black) * share ** rng.uniform(0.85, 1.2)).astype(np.uint8)
    return _letter(rng, image) if rng.random() < 0.4 else image


def _streaks(rng: np.random.Generator, head: Head) -> np.ndarray:
    """Beam hardening: bands that fan out from a dense point; in a quarter of the slices."""
    if rng.random() > 0.25:
        return np.zeros(head.x.shape)
    dx, dy = head.x - rng.uniform(-0.9, 0.9), head.y - rng.choice((-1, 1)) * rng.uniform(0.5, 0.9)
    bands = rng.standard_normal(rng.integers(30, 120))
    fan = np.interp(np.arctan2(dx, dy), np.linspace(-np.pi, np.pi, len(bands)), bands)
    return rng.uniform(4, 15) * fan / (1 + 3 * np.sqrt(dx**2 + dy**2))


def _letter(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Burns a side marker, a panel letter or a slice number into a corner."""
    texts = (*'RLABCab', f'IM: {rng.integers(1, 40)}', f'SE {rng.integers(1, 9)}')
    text = texts[rng.integers(len(texts))]
    font = ImageFont.load_default_imagefont()  # a bitmap, so that the version of FreeType does not matter
    stamp = Image.new('L', font.getbbox(text)[2:])
    ImageDraw.Draw(stamp).text((0, 0), text, fill=int(rng.integers(140, 256)), font=font)
    zoom = max(1.0, image.shape[0] / 300 * rng.uniform(0.8, 1.6))
    stamp = stamp.resize((round(stamp.width * zoom), round(stamp.height * zoom)), Image.Resampling.BILINEAR)
    bottom, right = image.shape[0] - stamp.height - 2, image.shape[1] - stamp.width - 2
    top, left = int(rng.choice((2, bottom))), int(rng.choice((2, right)))
    lettered = image.copy()
    corner = lettered[top : top + stamp.height, left : left + stamp.width]
    np.maximum(corner, np.asarray(stamp), out=corner)
    return lettered


def _stroke(x: np.ndarray, y: np.ndarray, *points: tuple[float, float, float]) -> np.ndarray:
    """Signed distance to a round-ended line through (x, y, radius) points."""
    distance = np.full(x.shape, np.inf)
    for (ax, ay, ar), (bx, by, br) in itertools.pairwise(points):
        dx, dy, right, down = bx - ax, by - ay, x - ax, y - ay
        along = np.clip((right * dx + down * dy) / (dx * dx + dy * dy), 0, 1)
        right -= dx * along
        down -= dy * along
        np.minimum(distance, np.sqrt(right * right + down * down) - ar - (br - ar) * along, out=distance)
    return distance


def _cover(signed_distance: np.ndarray, edge: float) -> np.ndarray:
    """Share of a pixel that lies inside, 0 to 1, with a linear ramp of width `edge`."""
    return np.clip(0.5 - signed_distance / edge, 0, 1)


def _blend(below: np.ndarray, above: np.ndarray | float, cover: np.ndarray) -> np.ndarray:
    return below + (above - below) * cover


def _turn(angle: np.ndarray, start: float) -> np.ndarray:
    """angle - start, wrapped to -pi..pi."""
    return (angle - start + np.pi) % (2 * np.pi) - np.pi


def _ring(rng: np.random.Generator, angle: np.ndarray, mean: float, spread: float) -> np.ndarray:
    """A smooth function around the head: mean plus four harmonics."""
    table = np.linspace(-np.pi, np.pi, 721)
    order = np.arange(1, 5)[:, None]
    height = rng.normal(0, spread, (4, 1)) / np.sqrt(order)
    waves = height * np.cos(order * table + rng.uniform(0, 2 * np.pi, (4, 1)))
    return mean + np.interp(angle, table, waves.sum(axis=0))


def _noise(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> np.ndarray:
    """Smooth noise of about unit variance, `cells` bumps along each side."""
    grid = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
    return np.asarray(grid.resize(shape[::-1], Image.Resampling.BICUBIC), np.float64)
