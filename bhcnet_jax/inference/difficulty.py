"""Detection against difficulty: what a model makes of drawn heads that no network has seen, where all is known of them.

N heads, S pixels a side.
"""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bhcnet_jax import files
from bhcnet_jax.datasets.phantom import bleedings, distractors, heads
from bhcnet_jax.inference.localization import as_seen, mean_of
from bhcnet_jax.inference.model import Model
from bhcnet_jax.plan import phases
from bhcnet_jax.statistics import metrics

FILE = 'difficulty.json'
KEY = 0x7FFFFFFF  # a trial draws with its seed and with further folds of the key, so these are other heads
AT_ONCE = 32  # heads that are drawn together
BINS = 8  # of as many bleedings each
FEWEST = 100  # heads that can be asked for
BLOOD_AT = 0.5  # probability of a pixel, from which it is one of the mask
DISTRACTORS = {  # for readers; in the order of distractors.CHANCES
    'lesion': 'tumour, infarct or oedema',
    'pineal': 'calcified pineal gland',
    'plexus': 'calcified choroid plexus',
    'ganglia': 'calcified basal ganglia',
    'stone': 'other calcification',
    'swelling': 'swelling of the scalp',
    'fracture': 'fracture',
    'craniotomy': 'craniotomy',
    'drain': 'drain',
    'gas': 'air in the skull',
    'vessels': 'dense vessels',
    'ridge': 'partial volume of bone',
    'enhanced': 'contrast agent',
}


class Heads(NamedTuple):
    """N drawn heads as a model sees them.

    Attributes:
      images: uint8 [N, S, S]. masks: bool [N, S, S], blood.
      kinds: int [N], index into bleedings.KINDS; 0 without blood.
      contrast: float [N], of the blood to what it replaces, in standard deviations of the noise; 0 without blood.
      area: float [N], mm2 of blood in the slice; 0 without.
      distractors: bool [N] by kind, whether the head has it, be it at this height or at another.
    """

    images: np.ndarray
    masks: np.ndarray
    kinds: np.ndarray
    contrast: np.ndarray
    area: np.ndarray
    distractors: dict[str, np.ndarray]


class Rate(NamedTuple):
    """How often a model called heads positive that bleed, or negative that do not."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        """nan if n is 0."""
        return self.hits / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, 95 %; nan if n is 0."""
        if not self.n:
            return math.nan, math.nan
        low, high = metrics.wilson(self.hits, self.n)
        return float(low), float(high)


class Bin(NamedTuple):
    """Sensitivity among bleedings of some difficulty, from low to high with the median middle."""

    low: float
    middle: float
    high: float
    hits: int
    n: int

    @property
    def rate(self) -> Rate:
        """Its sensitivity."""
        return Rate(self.hits, self.n)


class Overlap(NamedTuple):
    """The mean Dice coefficient over n heads, with its 95 % interval by the bootstrap; None: undefined."""

    mean: float
    low: float | None
    high: float | None
    n: int


class Found(NamedTuple):
    """What a model makes of held-out drawn heads.

    Attributes:
      recipe, trials, trained_on: what the model is. decided: at which probability it calls a head positive, in words.
      heads: N. drawing: `heads.py` and what it imports, SHA-256.
      contrast, area: sensitivity by the contrast to noise, of either sign (old blood is darker than brain), and by the
        visible area, in mm2, of the blood.
      kinds: sensitivity by kind of bleeding.
      specificity: of 'all' heads without blood, then of those with each kind of distractor.
      dice: of all bleedings, then by kind; {} without a mask head.
      contoured: heads without blood in which the mask head sees none; None without one.
    """

    recipe: str
    trials: list[str]
    trained_on: str
    decided: str
    heads: int
    drawing: str
    contrast: list[Bin]
    area: list[Bin]
    kinds: dict[str, Rate]
    specificity: dict[str, Rate]
    dice: dict[str, Overlap]
    contoured: Rate | None

    @property
    def sensitivity(self) -> Rate:
        """Of all heads that bleed."""
        return Rate(sum(each.hits for each in self.kinds.values()), sum(each.n for each in self.kinds.values()))


def draw(model: Model, count: int) -> Heads:
    """Heads that no network was trained on, the same ones for every model of one image size."""
    size = model.image_size

    @jax.jit
    def some(places: jax.Array) -> tuple[heads.Drawn, jax.Array, dict[str, jax.Array]]:
        return jax.vmap(lambda place: _one(jax.random.fold_in(jax.random.key(KEY), place), size))(places)

    places = jnp.arange(-(-count // AT_ONCE) * AT_ONCE)
    parts = [jax.tree.map(np.asarray, some(part)) for part in places.reshape(-1, AT_ONCE)]
    drawn, area, others = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)
    images, masks = drawn.image, drawn.mask
    if model.resolution:
        masks = np.stack([as_seen(model, *each) for each in zip(drawn.image, drawn.mask, strict=True)])
        images = np.stack([model.preprocess(each) for each in drawn.image])
    return Heads(images, masks, drawn.kind, drawn.contrast, area, others)


def _one(key: jax.Array, size: int) -> tuple[heads.Drawn, jax.Array, dict[str, jax.Array]]:
    """A head, its area of blood in mm2, and which distractors it has."""
    drawn, numbers = heads.draw(key, size), heads.numbers(key, size)
    area = 1000 * drawn.volume / numbers['scan']['thickness']
    return drawn, area, {name: numbers['other'][name] > 0 for name in distractors.CHANCES}


def judge(model: Model, count: int) -> Found:
    """Draws `count` heads and has the model read them."""
    drawn = draw(model, count)
    called, bleeds = model.answer(drawn.images).positive, drawn.kinds > 0
    made, quiet = model.calibration, ~called[~bleeds]
    with_it = {name: drawn.distractors[name][~bleeds] for name in DISTRACTORS}
    dice, contoured = _outlined(model, drawn) if model.has_mask_head else ({}, None)
    return Found(
        recipe=model.name,
        trials=[each.trial_id for each in model.members],
        trained_on=model.trained_on,
        decided='a probability of 0.5' if made is None else f'the operating point {made.operating_point}',
        heads=count,
        drawing=phases.drawing_version(),
        contrast=_binned(np.abs(drawn.contrast[bleeds]), called[bleeds]),
        area=_binned(drawn.area[bleeds], called[bleeds]),
        kinds=_by_kind(drawn.kinds, lambda chosen: _rate(called[chosen])),
        specificity={'all': _rate(quiet), **{name: _rate(quiet[each]) for name, each in with_it.items()}},
        dice=dice,
        contoured=contoured,
    )


def _rate(hits: np.ndarray) -> Rate:
    return Rate(int(hits.sum()), len(hits))


def _by_kind(kinds: np.ndarray, measure: Any) -> dict[str, Any]:
    """A measure of the heads with each kind of bleeding that occurs."""
    present = [place for place in range(1, len(bleedings.KINDS)) if (kinds == place).any()]
    return {bleedings.KINDS[place]: measure(kinds == place) for place in present}


def _binned(values: np.ndarray, called: np.ndarray) -> list[Bin]:
    """Sensitivity in BINS parts of as many bleedings each, the most difficult first."""
    parts = np.array_split(np.argsort(values, kind='stable'), min(BINS, len(values)))
    return [
        Bin(*map(float, np.quantile(values[part], [0, 0.5, 1])), *_rate(called[part]))
        for part in parts
    ]  # fmt: skip


def dice(found: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Twice the common pixels over those of both; found, masks: bool [N, S, S], masks not empty -> float64 [N]."""
    common, both = (found & masks).sum(axis=(1, 2)), found.sum(axis=(1, 2)) + masks.sum(axis=(1, 2))
    return 2 * common / both


def _outlined(model: Model, drawn: Heads) -> tuple[dict[str, Overlap], Rate]:
    """Dice where there is blood, and the heads without where none is seen."""
    found, seen = model.segment(drawn.images) >= BLOOD_AT, drawn.masks.any(axis=(1, 2))
    kinds = np.where(seen, drawn.kinds, 0)
    values = np.zeros(len(seen))
    values[seen] = dice(found[seen], drawn.masks[seen])
    overlaps = {'all': _overlap(values[kinds > 0]), **_by_kind(kinds, lambda chosen: _overlap(values[chosen]))}
    return overlaps, _rate(~found[drawn.kinds == 0].any(axis=(1, 2)))


def _overlap(values: np.ndarray) -> Overlap:
    mean, low, high = mean_of(values)[:3]
    return Overlap(mean, *(None if math.isnan(end) else end for end in (low, high)), len(values))


def write(found: Found, folder: pathlib.Path) -> pathlib.Path:
    """Writes what was found, for the report. -> the file. UserError: it cannot be written."""
    path = folder / FILE
    with files.output(path) as file:
        file.write((json.dumps(found._asdict(), indent=2, allow_nan=False) + '\n').encode())
    return path


def read(folder: pathlib.Path) -> Found | None:
    """What `write` left in a folder, None if there is nothing. UserError: the file is damaged."""
    number = (int, float)
    shape = {
        'recipe': str, 'trials': [str], 'trained_on': str, 'decided': str, 'heads': int, 'drawing': str,
        'contrast': [[number]], 'area': [[number]], 'kinds': {str: [int]}, 'specificity': {str: [int]},
        'dice': {str: [(*number, type(None))]}, 'contoured': (list, type(None)),
    }  # fmt: skip
    try:
        tree = files.read_json(folder / FILE, shape, 'Run python -m bhcnet_jax.difficulty again, or delete it.')
    except FileNotFoundError:
        return None
    return Found(
        **{name: tree[name] for name in ('recipe', 'trials', 'trained_on', 'decided', 'heads', 'drawing')},
        **{name: [Bin(*each) for each in tree[name]] for name in ('contrast', 'area')},
        **{name: _all(Rate, tree[name]) for name in ('kinds', 'specificity')},
        dice=_all(Overlap, tree['dice']),
        contoured=None if tree['contoured'] is None else Rate(*tree['contoured']),
    )


def _all(kind: Any, tree: Mapping[str, Any]) -> dict[str, Any]:
    return {name: kind(*each) for name, each in tree.items()}
