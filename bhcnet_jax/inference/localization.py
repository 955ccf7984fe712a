"""How well heat maps point at a finding whose place is known: bleedings of drawn slices that no network is trained on.

N slices, S pixels a side.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from bhcnet_jax import files, models
from bhcnet_jax.datasets.folder import images as images_of_files
from bhcnet_jax.datasets.phantom import drawing
from bhcnet_jax.inference.model import Model
from bhcnet_jax.statistics import bootstrap
from bhcnet_jax.statistics.bootstrap import Estimate
from bhcnet_jax.training import steps

SEEDS = (1, 2, 3)  # of sets of 100 slices with a bleeding each; training has drawing.SEED
MAP, RANDOM, CENTRE = 'trained', 'random weights', 'centre prior'  # whose maps are scored


class Judged(NamedTuple):
    """How well the maps of a model point at bleedings, beside two that know nothing of them.

    Attributes:
      how: of `Model.explain`. recipe, trials, trained_on: what the model is, and the name of its training set.
      slices: N. left_out: slices whose bleeding is smaller than a pixel of the network's.
      called: share of the N slices that the model calls positive, at the probability 0.5.
      scores: by MAP, RANDOM and CENTRE, then by measure of MEASURES: its mean over slices.
      gains: by RANDOM and CENTRE: the scores of MAP minus these, on the same slices.
    """

    how: str
    recipe: str
    trials: list[str]
    trained_on: str
    slices: int
    left_out: int
    called: float
    scores: dict[str, dict[str, Estimate]]
    gains: dict[str, dict[str, Estimate]]


def pointing_game(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Whether the largest value of each map lies in its mask; of equal ones the share that does. -> float64 [N].

    maps: float [N, S, S]. masks: bool [N, S, S]. Without the tolerance of Zhang et al., Top-down neural attention by
    excitation backprop, 2016, section 4.1: a hit is inside.
    """
    largest = maps == maps.max(axis=(1, 2), keepdims=True)
    return (largest & masks).sum(axis=(1, 2)) / largest.sum(axis=(1, 2))


def overlap(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Intersection over union of each mask and as many pixels with the largest values of its map. -> float64 [N].

    Of pixels with equal values, where not all of them are needed, each counts as a share of one. Arguments as of
    `pointing_game`; a mask has a pixel at least.
    """
    return np.array([_overlap(each.ravel(), mask.ravel()) for each, mask in zip(maps, masks, strict=True)])


def _overlap(values: np.ndarray, mask: np.ndarray) -> float:
    size = int(mask.sum())
    last = np.partition(values, -size)[-size]
    above, equal = values > last, values == last
    common = (above & mask).sum() + (size - above.sum()) * (equal & mask).sum() / equal.sum()
    return common / (2 * size - common)


MEASURES = {'pointing game': pointing_game, 'IoU': overlap}


def judge(model: Model, how: str) -> Judged:
    """Scores a model's maps on drawn slices. UserError: as of `Model.explain`."""
    images, masks = draw(model)
    seen = masks.any(axis=(1, 2))
    images, masks = images[seen], masks[seen]
    maps = {
        MAP: model.explain(images, how),
        RANDOM: untrained(model).explain(images, how),
        CENTRE: np.broadcast_to(centre_prior(model.image_size), masks.shape),
    }
    values = {
        whose: {name: measure(each, masks) for name, measure in MEASURES.items()} for whose, each in maps.items()
    }
    return Judged(
        how=how,
        recipe=model.name,
        trials=[each.trial_id for each in model.members],
        trained_on=model.trained_on,
        slices=len(images),
        left_out=int((~seen).sum()),
        called=float((model.predict(images) >= 0.5).mean()),
        scores={whose: {name: mean_of(each) for name, each in found.items()} for whose, found in values.items()},
        gains={
            whose: {name: mean_of(values[MAP][name], values[whose][name]) for name in MEASURES}
            for whose in (RANDOM, CENTRE)
        },
    )


def draw(model: Model) -> tuple[np.ndarray, np.ndarray]:
    """Slices with a bleeding as a model sees them, uint8 [N, S, S], and the pixels that are half blood, bool."""
    drawn = [drawing.draw_slice(index, seed) for seed in SEEDS for index in range(1, drawing.NUM_SLICES, 2)]
    images = np.stack([model.preprocess(each.image) for each in drawn])
    return images, np.stack([as_seen(model, each.image, each.mask) for each in drawn])


def as_seen(model: Model, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mask of an image, bool or 0 and 255, after the changes of shape in `preprocess`: bool [S, S]."""
    size = (model.image_size, model.image_size)
    mask = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    if model.resolution:  # as `images.equalise` crops
        side = (model.resolution, model.resolution)
        mask = mask.resize(side, Image.Resampling.BILINEAR, box=images_of_files.head_box(image))
    return np.asarray(mask.resize(size, Image.Resampling.BILINEAR)) >= 128


def untrained(model: Model) -> Model:
    """The same with other random weights for each member, the control of Adebayo et al., Sanity checks for saliency
    maps, 2018, section 3."""
    blank = jnp.zeros((1, model.image_size, model.image_size, 1))
    network = models.create(model.config.model)
    made = [steps.start(network.init(jax.random.key(place), blank)).average for place in range(len(model.members))]
    return dataclasses.replace(model, variables=jax.tree.map(lambda *leaves: np.stack(leaves), *made))


def centre_prior(size: int) -> np.ndarray:
    """A map that knows that findings lie near the middle: it falls with the distance from there. float64 [S, S]."""
    place = np.arange(size) - (size - 1) / 2
    return -np.hypot(place, place[:, None])


def _mean(labels: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A `bootstrap.Metric`: the mean over slices."""
    return weights @ values.mean(axis=0) / weights.sum(axis=1)


def mean_of(values: np.ndarray, minus: np.ndarray | None = None) -> Estimate:
    """The mean over slices, of `values` or of what they are above `minus`, float [N], with its 95 % interval."""
    labels = np.ones(len(values), int)  # all of them bleed
    if minus is None:
        return bootstrap.bootstrap(labels, values, {'mean': _mean})['mean']
    return bootstrap.difference(labels, minus, values, {'mean': _mean})['mean']


def verdict(judged: Judged) -> list[str]:
    """A sentence for each measure and control: whether the maps are better, with the difference and its interval."""
    return [
        f'{name.capitalize() if name.islower() else name}: {_better(gain)} {_with_article(whose)}, '
        f'{gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}).'
        for whose in (CENTRE, RANDOM)
        for name, gain in judged.gains[whose].items()
    ]


def _better(gain: Estimate) -> str:
    return 'better than' if gain.low > 0 else 'no better than'


def _with_article(whose: str) -> str:
    return f'the {whose}' if whose == CENTRE else f'the same networks with {whose}'


def write(judged: Judged, folder: pathlib.Path) -> pathlib.Path:
    """Writes what was found, for the report. -> the file. UserError: it cannot be written."""
    path = folder / f'localization_{judged.how}.json'
    found = judged._asdict() | {part: _plain(getattr(judged, part)) for part in ('scores', 'gains')}
    with files.output(path) as file:
        file.write((json.dumps({'drawn_with_seeds': SEEDS, **found}, indent=2, allow_nan=False) + '\n').encode())
    return path


def _plain(found: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Any]:
    return {
        whose: {name: [None if math.isnan(end) else end for end in each[:3]] for name, each in of_measure.items()}
        for whose, of_measure in found.items()
    }


def read(folder: pathlib.Path) -> list[Judged]:
    """What `write` left in a folder, by file name; an interval's spread is not kept. UserError: a file is damaged."""
    return [_read(path) for path in sorted(folder.glob('localization_*.json'))]


def _read(path: pathlib.Path) -> Judged:
    estimates = {str: {str: [(float, int, type(None))]}}
    shape = {
        'how': str, 'recipe': str, 'trials': [str], 'trained_on': str, 'slices': int, 'left_out': int,
        'called': (float, int), 'scores': estimates, 'gains': estimates,
    }  # fmt: skip
    tree = files.read_json(path, shape, 'Run python -m bhcnet_jax.explain again, or delete it.')
    parts = {part: _estimates(tree[part]) for part in ('scores', 'gains')}
    return Judged(**{name: tree[name] for name in Judged._fields} | parts)


def _estimates(plain: Mapping[str, Any]) -> dict[str, dict[str, Estimate]]:
    return {
        whose: {
            name: Estimate(*(math.nan if end is None else end for end in ends), spread=math.nan, undefined=0)
            for name, ends in of_measure.items()
        }
        for whose, of_measure in plain.items()
    }
