"""Which images belong together: published groups, exact copies and look-alikes.

N images, H = W pixels, S = SIDE, P features of an image.
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image
from scipy import fft, ndimage, sparse

from bhcnet_jax.datasets.folder import images
from bhcnet_jax.datasets.input_pipeline import ImageSet

SIDE = 48  # pixels, height and width of the low-resolution copy that is compared
BLOCK = 1024  # images compared with all others at a time; bounds the memory to a few BLOCK x N matrices
# A pair is near where the perceptual hash agrees AND the correlation at low resolution is an outlier among
# all pairs of the set. How both were chosen stands at _near_pairs.
MAX_HASH_DISTANCE = 14  # bits of 63
MIN_OUTLYINGNESS = 5.4  # robust standard deviations


class Pair(NamedTuple):
    """Two images (indices, a < b) of one group, why, and the higher of their two correlations, in [-1, 1]."""

    a: int
    b: int
    reason: Literal['exact', 'near', 'published']
    similarity: float


@dataclasses.dataclass(frozen=True)
class Grouping:
    """groups: int32 [N], the smallest index in an image's group. pairs: what ties the groups together."""

    groups: np.ndarray
    pairs: tuple[Pair, ...]


class _Looks(NamedTuple):
    """What near duplicates share. Rows are unit vectors (or zero), so that products are correlations."""

    hashes: np.ndarray  # float32 [N, 63], signs: -1 or 1
    features: tuple[np.ndarray, np.ndarray]  # float32 [N, P]: whole head, detail of the brain


def find_groups(image_set: ImageSet) -> Grouping:
    """Groups of exact duplicates, near duplicates and the publisher's own groups, merged where they overlap.

    Near duplicates are looked for as they are and mirrored, since the augmentation mirrors too. Two slices of
    one patient that look different are not found: only the publisher can tell.
    """
    looks = _look(image_set.thumbnails)
    digests = image_set.pixel_sha256
    found = {(a, b): ('published', _similarity(looks, a, b)) for a, b in _links(image_set.groups)}
    for others in (_look(image_set.thumbnails[:, :, ::-1]), looks):
        found |= {(a, b): ('near', similarity) for a, b, similarity in _near_pairs(looks, others)}
    same_pixels = [(a, b) for a, b in {*found, *_links(digests)} if digests[a] == digests[b]]
    found |= dict.fromkeys(same_pixels, ('exact', 1.0))
    pairs = tuple(Pair(*pair, *found[pair]) for pair in sorted(found))
    return Grouping(_merge(len(digests), pairs), pairs)


def _links(keys: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """Ties every image to the first one with the same key; '' is no key."""
    first = {}
    for index, key in enumerate(keys):
        if key and first.setdefault(key, index) != index:
            yield first[key], index


def _merge(count: int, pairs: tuple[Pair, ...]) -> np.ndarray:
    """Connected components of the pairs, each named after its smallest index. -> int32 [count]."""
    a, b = np.array([pair[:2] for pair in pairs], np.int32).reshape(-1, 2).T
    graph = sparse.coo_array((np.ones(len(a), np.int8), (a, b)), shape=(count, count))
    _, component = sparse.csgraph.connected_components(graph, directed=False)
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int32)


def _look(thumbnails: np.ndarray) -> _Looks:
    """uint8 [N, H, W] -> what the images look like, whatever their size, margin and grey window."""
    heads = np.stack([_head(image) for image in thumbnails])  # [N, S, S]
    spectrum = fft.dctn(heads, axes=(1, 2))[:, :8, :8].reshape(len(heads), 64)[:, 1:]  # without the mean
    hashes = np.where(spectrum > np.median(spectrum, axis=1, keepdims=True), 1, -1)
    whole = _unit(heads.reshape(len(heads), -1))
    own = np.where(whole.any(axis=1, keepdims=True), whole - whole.mean(axis=0), 0)  # all heads are alike
    row, column = (np.mgrid[:SIDE, :SIDE] + 0.5) * 2 / SIDE - 1
    inside = np.hypot(row, column) < 0.8  # without the skull
    brightest = np.percentile(heads[:, inside], 97, axis=1)[:, None, None]  # clips what is left of it
    brains = np.minimum(heads, brightest)
    detail = ndimage.gaussian_filter(brains, (0, 0.7, 0.7)) - ndimage.gaussian_filter(brains, (0, 5, 5))
    return _Looks(hashes.astype(np.float32), (_unit(own), _unit(detail[:, inside])))


def _head(image: np.ndarray) -> np.ndarray:
    """Crops to the largest part above the mean, skull and brain. uint8 [H, W] -> float32 [S, S]."""
    small = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX, box=images.head_box(image))
    return np.asarray(small, np.float32)


def _unit(rows: np.ndarray) -> np.ndarray:
    """Centres every row and scales it to length 1; a constant row becomes zero."""
    rows = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 1e-3).astype(np.float32)


def _similarity(looks: _Looks, a: int, b: int) -> float:
    return float(np.mean([feature[a] @ feature[b] for feature in looks.features]))


def _fisher(correlation: np.ndarray) -> np.ndarray:
    """Fisher's z, which makes correlations about normal with a spread that does not depend on their size."""
    return np.arctanh(np.clip(correlation, -0.9999, 0.9999))


def _usual(feature: np.ndarray) -> tuple[float, float]:
    """Median and robust standard deviation of Fisher's z over the pairs of a set. feature: [N, P], N > 1."""
    some = feature[:: 1 + len(feature) // 2000]  # two million pairs are enough to know them by
    z = _fisher((some @ some.T)[np.triu_indices(len(some), 1)])
    middle = np.median(z)
    spread = np.median(np.abs(z - middle)) / 0.67449  # the median absolute deviation of a standard normal distribution
    return float(middle), max(0.15, float(spread))


def _near_pairs(looks: _Looks, others: _Looks) -> Iterator[tuple[int, int, float]]:
    """Pairs a < b, a of looks and b of others, that are near; with their similarity.

    A fixed limit would not do: unrelated heads correlate more in one set than in another. So Fisher's z of a
    pair is compared with that of all pairs of its set, in robust standard deviations, and the mean over both
    features has to be an outlier. On the 200 real head CTs, with the 150 most similar pairs seen by eye:
    - the same slice in another size, window or crop (16 pairs): 8.4 to 27;
    - neighbouring slices of one patient: from 10.0 down into the rest; 21 pairs are above the limit;
    - different patients: up to 4.80, mirrored up to 3.60; in the phantom set, where all differ, up to 5.27.
    A search over rotation, scale and shift (12 degrees, 17 %, 4 of 32 pixels) found no other copy.
    Of 200 altered copies these are found: another window 200, JPEG of quality 40 199, smaller 198, turned by
    3 degrees 198, padded 194, with a letter 179; but only 90 cropped into the skull, 56 turned by 8 degrees.
    """
    if len(looks.hashes) < 3:
        return  # no other pair to compare with
    usual = [_usual(feature) for feature in looks.features]
    for start in range(0, len(looks.hashes), BLOCK):
        rows = slice(start, start + BLOCK)
        differing = (looks.hashes.shape[1] - looks.hashes[rows] @ others.hashes.T) / 2
        correlations = [a[rows] @ b.T for a, b in zip(looks.features, others.features, strict=True)]
        z = [(_fisher(c) - median) / spread for c, (median, spread) in zip(correlations, usual, strict=True)]
        near = (np.mean(z, axis=0) >= MIN_OUTLYINGNESS) & (differing <= MAX_HASH_DISTANCE)
        for row, b in np.argwhere(near):
            if start + row < b:
                yield int(start + row), int(b), float(np.mean([c[row, b] for c in correlations]))
