"""Whether an image looks like those of a training set, and the right way up: by its edges, without a network.

What lies before a network's head was tried first and tells little (docs/study.md): networks that pool over the image
answer to a turned head as to an upright one. N images, S pixels a side, D = CELLS x CELLS x DIRECTIONS.
"""

import dataclasses
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage
from sklearn.covariance import LedoitWolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from bhcnet_jax.inference.calibration import parts_of

SIDE, CELLS, DIRECTIONS = 64, 6, 8
KEPT = 0.99  # of held-out training images, by each of the two limits, so that 2 % at most are flagged
MIN_IMAGES = 100  # with fewer there is no such limit


@dataclasses.dataclass(frozen=True, eq=False)
class Outliers:
    """What the edges of a training set's images have in common.

    Attributes:
      mean, precision: float32 [D] and [D, D], of their distance (Mahalanobis, 1936).
      normal, offset: float32 [D] and a number: the plane between them and the same images turned, upside down and
        inverted; above 0 is the side of these.
      distance, side: the limits; an image with more of either is flagged.
    """

    mean: np.ndarray
    precision: np.ndarray
    normal: np.ndarray
    offset: float
    distance: float = np.inf
    side: float = np.inf

    def scores(self, images: np.ndarray) -> np.ndarray:
        """Distance and side of images uint8 [N, S, S]: float64 [N, 2]."""
        return self.score_edges(edges(images))

    def score_edges(self, found: np.ndarray) -> np.ndarray:
        """The same from `edges` of images, float64 [N, D]."""
        centred = found - self.mean
        distance = np.sqrt(np.einsum('nd,de,ne->n', centred, self.precision.astype(np.float64), centred))
        return np.stack([distance, found @ self.normal.astype(np.float64) + self.offset], axis=1)

    def flags(self, images: np.ndarray) -> np.ndarray:
        """Whether images are unlike those of the training set, bool [N]."""
        return (self.scores(images) > (self.distance, self.side)).any(axis=1)


def edges(images: np.ndarray) -> np.ndarray:
    """Histograms of the directions of edges (Dalal and Triggs, CVPR 2005), of length 1: float64 [N, D].

    images: uint8 [N, S, S]. An image without edges has zeros.
    """
    small = [Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX) for image in images]
    greys = np.stack([np.asarray(each, np.float64) for each in small]) if small else np.zeros((0, SIDE, SIDE))
    down, right = ndimage.sobel(greys, 1), ndimage.sobel(greys, 2)
    strength, direction = np.hypot(down, right), np.arctan2(down, right) * DIRECTIONS / (2 * np.pi)
    centres = ((np.arange(CELLS) + 0.5) * SIDE / CELLS).astype(int)
    cells = np.zeros((len(images), CELLS, CELLS, DIRECTIONS))
    for number in range(DIRECTIONS):
        apart = np.abs((direction - number + DIRECTIONS / 2) % DIRECTIONS - DIRECTIONS / 2)
        along = strength * np.clip(1 - apart, 0, 1)
        blurred = ndimage.gaussian_filter(along, (0, SIDE / CELLS / 2.5, SIDE / CELLS / 2.5))
        cells[..., number] = blurred[:, centres][:, :, centres]
    rows = cells.reshape(len(images), CELLS * CELLS * DIRECTIONS)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 1e-3)


def wrong_ways(images: np.ndarray) -> dict[str, np.ndarray]:
    """Images [N, S, S] as they may come by mistake."""
    return {
        'turned by 90 degrees': np.rot90(images, 1, (1, 2)),
        'turned by 180 degrees': np.rot90(images, 2, (1, 2)),
        'turned by 270 degrees': np.rot90(images, 3, (1, 2)),
        'upside down': images[:, ::-1],
        'inverted': 255 - images,
    }


def fit(images: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> tuple[Outliers, dict[str, Any]]:
    """From a training set to its outliers, and how they do on images held out, ready for JSON.

    images: uint8 [N, S, S], N >= MIN_IMAGES. labels, groups: int [N]; groups are held out whole. Each image is scored
    by a fit without it, and its limits are of the scores of the others. 'flagged' counts images of 'images', 'ways' the
    same images in their `wrong_ways`.
    """
    right, mirrored = edges(images), edges(images[:, :, ::-1])
    wrong = {name: edges(way) for name, way in wrong_ways(images).items()}

    def fit_to(part: np.ndarray) -> Outliers:
        others = np.concatenate([way[part] for way in wrong.values()])
        return _fit(np.concatenate([right[part], mirrored[part]]), others)

    scores = np.zeros((1 + len(wrong), len(images), 2))
    parts = list(parts_of(labels, groups))
    for fitted, held in parts:
        partly = fit_to(fitted)
        scores[:, held] = [partly.score_edges(each[held]) for each in (right, *wrong.values())]
    flagged = np.zeros(scores.shape[:2], bool)
    for fitted, held in parts:
        flagged[:, held] = (scores[:, held] > _limits(scores[0, fitted])).any(axis=-1)
    counts = flagged.sum(axis=1).tolist()
    distance, side = _limits(scores[0])
    found = dataclasses.replace(fit_to(np.ones(len(images), bool)), distance=distance, side=side)
    return found, {'images': len(images), 'flagged': counts[0], 'ways': dict(zip(wrong, counts[1:], strict=True))}


def _fit(right: np.ndarray, wrong: np.ndarray) -> Outliers:
    """Without limits, from the edges of images the right way up and of others."""
    shape = LedoitWolf().fit(right)
    plane = LinearDiscriminantAnalysis(solver='lsqr', shrinkage='auto')
    plane.fit(np.concatenate([right, wrong]), np.repeat([0, 1], [len(right), len(wrong)]))
    return Outliers(
        mean=shape.location_.astype(np.float32),
        precision=shape.precision_.astype(np.float32),
        normal=plane.coef_[0].astype(np.float32),
        offset=float(plane.intercept_[0]),
    )


def _limits(scores: np.ndarray) -> tuple[float, float]:
    """The scores [N, 2] below which KEPT of images like these are, counting the next one (a conformal quantile)."""
    place = min(len(scores), int(np.ceil(KEPT * (len(scores) + 1)))) - 1
    distance, side = np.sort(scores, axis=0)[place]
    return float(distance), float(side)
