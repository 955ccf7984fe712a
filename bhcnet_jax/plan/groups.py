"""Which images belong together: published groups, exact copies and look-alikes.

N images, H = W pixels, S = SIDE, P features of an image.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
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
# Near pairs below it may be neighbouring slices of one patient, or of two: it is the least of the copies seen by eye.
COPY_OUTLYINGNESS = 8.4
CHAINED = 3  # images; two groups of so many are not tied by a single pair below COPY_OUTLYINGNESS
# Pairs below COPY_OUTLYINGNESS per image without a published group, from which a set is taken for consecutive slices:
# the 200 single head CTs have 0.10, 1137 consecutive slices of 37 patients 0.37.
CONSECUTIVE = 0.2


class Pair(NamedTuple):
    """Two images (indices, a < b), why they are a pair, and the higher of their two correlations, in [-1, 1].

    exact: the same pixels; turned: the same after a turn by 90, 180 or 270 degrees, a flip or both; near: look-alikes;
    published: of one published group.
    """

    a: int
    b: int
    reason: Literal['exact', 'turned', 'near', 'published']
    similarity: float


@dataclasses.dataclass(frozen=True)
class Grouping:
    """Which images stay together.

    Attributes:
      groups: int32 [N], the smallest index in an image's group.
      pairs: what ties the groups together.
      apart: look-alikes in different groups: of two patients, or too weak to tie their groups.
      warnings: what a user should know of it, each one line.
    """

    groups: np.ndarray
    pairs: tuple[Pair, ...]
    apart: tuple[Pair, ...] = ()
    warnings: tuple[str, ...] = ()


class _Near(NamedTuple):
    """A near pair; outlyingness in robust standard deviations, see `_near_pairs`."""

    a: int
    b: int
    similarity: float
    outlyingness: float


class _Looks(NamedTuple):
    """What near duplicates share. Rows are unit vectors (or zero), so that products are correlations."""

    hashes: np.ndarray  # float32 [N, 63], signs: -1 or 1
    features: tuple[np.ndarray, np.ndarray]  # float32 [N, P]: whole head, detail of the brain


def find_groups(image_set: ImageSet) -> Grouping:
    """The publisher's own groups with exact copies, turned copies and look-alikes.

    Copies tie any images, also of two published groups. Look-alikes tie images of which one at most has a published
    group, and never two published groups. A chain of them is cut where a single weak pair holds it (`_tie_near`).
    Look-alikes are looked for as they are and mirrored, since the augmentation mirrors too. Two slices of one patient
    that look different are not found: only the publisher can tell.
    """
    looks = _look(image_set.thumbnails)
    digests, published = image_set.pixel_sha256, image_set.groups
    near = {}
    for others in (_look(image_set.thumbnails[:, :, ::-1]), looks):
        near |= {(each.a, each.b): each for each in _near_pairs(looks, others)}
    found = {(a, b): ('published', _similarity(looks, a, b)) for a, b in _links(published)}
    found |= {pair: ('near', each.similarity) for pair, each in near.items()}
    found |= dict.fromkeys(_links(image_set.turned_sha256), ('turned', 1.0))
    same_pixels = [(a, b) for a, b in {*found, *_links(digests)} if digests[a] == digests[b]]
    found |= dict.fromkeys(same_pixels, ('exact', 1.0))
    pairs = [Pair(*pair, *found[pair]) for pair in sorted(found)]
    groups = _merge(len(digests), [*(pair for pair in pairs if pair.reason != 'near'), *_links(published)])
    groups = _tie_near(groups, [bool(group) for group in published], list(near.values()))
    together = tuple(pair for pair in pairs if groups[pair.a] == groups[pair.b])
    apart = tuple(pair for pair in pairs if groups[pair.a] != groups[pair.b])
    warnings = [*_copies(image_set, together), *_strangers(published, apart), *_consecutive(published, near.values())]
    return Grouping(groups, together, apart, tuple(warnings))


def _links(keys: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """Ties every image to the first one with the same key; '' is no key."""
    first = {}
    for index, key in enumerate(keys):
        if key and first.setdefault(key, index) != index:
            yield first[key], index


def _merge(count: int, pairs: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Connected components of the pairs, each named after its smallest index. -> int32 [count]."""
    a, b = np.array([pair[:2] for pair in pairs], np.int32).reshape(-1, 2).T
    graph = sparse.coo_array((np.ones(len(a), np.int8), (a, b)), shape=(count, count))
    _, component = sparse.csgraph.connected_components(graph, directed=False)
    return _name(component)


def _name(component: np.ndarray) -> np.ndarray:
    """Any numbers of groups -> the smallest index in each. int [N] -> int32 [N]."""
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int32)


def _tie_near(groups: np.ndarray, published: list[bool], near: list[_Near]) -> np.ndarray:
    """Merges groups by near pairs, the nearest first. groups: int32 [N]; published: N. -> int32 [N].

    Neighbouring slices are alike from one end of a head to the other, and now and then like a slice of somebody else:
    80 images of 13 patients became one group. So a pair below COPY_OUTLYINGNESS ties two groups of CHAINED images or
    more only if another pair does too.
    """
    group_of, members, alike = groups.tolist(), collections.defaultdict(list), collections.defaultdict(list)
    for image, group in enumerate(group_of):
        members[group].append(image)
    named = {group for group, known in zip(group_of, published, strict=True) if known}
    for pair in near:
        alike[pair.a].append(pair.b)
        alike[pair.b].append(pair.a)
    for pair in sorted(near, key=lambda pair: (-pair.outlyingness, pair.a, pair.b)):
        small, large = sorted((group_of[pair.a], group_of[pair.b]), key=lambda group: (len(members[group]), group))
        if small == large or {small, large} <= named:
            continue
        ties = sum(group_of[other] == large for image in members[small] for other in alike[image])
        if pair.outlyingness < COPY_OUTLYINGNESS and len(members[small]) >= CHAINED and ties < 2:
            continue
        for image in members[small]:
            group_of[image] = large
        members[large] += members.pop(small)
        named |= {large} if small in named else set()
    return _name(np.array(group_of))


def _copies(image_set: ImageSet, together: Sequence[Pair]) -> Iterator[str]:
    """Warns of copies in two published groups, which are one group from then on."""
    published, ids = image_set.groups, image_set.ids
    across = [pair for pair in together if pair.reason in ('exact', 'turned') and _two_groups(published, pair)]
    if across:
        first = across[0]
        yield (
            f'{len(across)} pairs of copies are in two published groups each, which are kept together; the first: '
            f'{ids[first.a]} of {published[first.a]} and {ids[first.b]} of {published[first.b]}.'
        )


def _strangers(published: tuple[str, ...], apart: Sequence[Pair]) -> Iterator[str]:
    """Notes look-alikes of two published groups, which stay apart."""
    count = sum(_two_groups(published, pair) for pair in apart)
    if count:
        yield f'{count} pairs of look-alikes are in two published groups each, which stay apart; the audit lists them.'


def _two_groups(published: tuple[str, ...], pair: Pair) -> bool:
    return '' not in (published[pair.a], published[pair.b]) and published[pair.a] != published[pair.b]


def _consecutive(published: tuple[str, ...], near: Iterable[_Near]) -> Iterator[str]:
    """Warns where look-alikes cannot tell patients apart: too many images are alike, but less than copies."""
    alone = [pair for pair in near if not published[pair.a] and not published[pair.b]]
    weak, count = sum(pair.outlyingness < COPY_OUTLYINGNESS for pair in alone), published.count('')
    if weak > CONSECUTIVE * count:
        yield (
            f'{weak} pairs of the {count} images without a published group look alike, but less than copies do: '
            'these may be consecutive slices, whose patients look-alikes cannot tell apart, so that a patient may be '
            'on both sides of a split. Add a column `group` with the patient to labels.csv.'
        )


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


def _near_pairs(looks: _Looks, others: _Looks) -> Iterator[_Near]:
    """Pairs a < b, a of looks and b of others, that are near.

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
        outlyingness = np.mean(z, axis=0)
        near = (outlyingness >= MIN_OUTLYINGNESS) & (differing <= MAX_HASH_DISTANCE)
        for row, b in np.argwhere(near):
            if start + row < b:
                similarity = float(np.mean([c[row, b] for c in correlations]))
                yield _Near(int(start + row), int(b), similarity, float(outlyingness[row, b]))
