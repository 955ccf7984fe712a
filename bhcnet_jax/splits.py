"""Which images belong together (groups), and stratified splits that never tear a group apart.

N images, H = W pixels, S = SIDE, P features of an image, G groups, K folds.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image
from scipy import fft, ndimage, sparse

from bhcnet_jax.datasets.folder import images
from bhcnet_jax.input_pipeline import ImageSet

SIDE = 48  # pixels, height and width of the low-resolution copy that is compared
BLOCK = 1024  # images compared with all others at a time; bounds the memory to a few BLOCK x N matrices

# A pair is near where the perceptual hash agrees AND the correlation at low resolution is an outlier among
# all pairs of the set. How both were chosen stands at _near_pairs.
MAX_HASH_DISTANCE = 14  # bits of 63
MIN_OUTLYINGNESS = 5.4  # robust standard deviations

ATTEMPTS = 20  # shuffles tried until the class counts are exact; with many ungrouped images the first one is
MAX_SWAPPED = 500  # groups considered for swaps between folds; more give no better folds and take memory


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


@dataclasses.dataclass(frozen=True)
class Split:
    """train, test, val: int32, sorted image indices. digest: SHA-256 of the arguments and the indices, hex.

    val is the validation part, taken from the training images; empty where none was asked for.
    """

    train: np.ndarray
    test: np.ndarray
    digest: str
    val: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))


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


def split(labels: np.ndarray, groups: np.ndarray, scheme: str, folds: int, fold: int, seed: int) -> Split:
    """Splits the images into a training and a test part that share no group.

    holdout: the test part holds 1/folds of each class, drawn at random; large groups are drawn less often.
    kfold: the test parts of the folds are disjoint and cover all images. Both are as close to 1/folds of each
    class as the groups allow; without single images the optimum may be missed by an image.

    Args:
      labels: int [N], 0 or 1.
      groups: int [N]; images with equal numbers stay together, also where their labels differ.
      scheme: holdout or kfold.
      folds: 2 or more, at most the number of groups of the smaller class.
      fold: which test part, 0 to folds-1; 0 for holdout.
      seed: 0 or more.

    Returns:
      A pure function of the arguments: numpy's global state is neither read nor changed. Only raw words of
      PCG64 are drawn, which numpy keeps the same over versions (NEP 19), unlike Generator's methods.

    Raises:
      ValueError: an argument is out of range, or a group is too large.
    """
    labels, groups = np.asarray(labels), np.asarray(groups)
    _check(labels, groups, scheme, folds, fold, seed)
    _, member = np.unique(groups, return_inverse=True)  # [N], group number 0..G-1
    sizes = np.stack([np.bincount(member[labels == label], minlength=member.max() + 1) for label in (0, 1)])
    _check_sizes(sizes, folds)
    part = _assign(sizes, scheme, folds, seed)[member]  # [N]
    if len(np.unique(2 * part + labels)) < 2 * (folds if scheme == 'kfold' else 2):
        raise ValueError(
            f'Groups of up to {sizes.sum(axis=0).max()} images are too large for {folds} folds: a part would '
            f'lack a class. Use fewer folds.'
        )
    tested = part == fold
    train, test = (np.flatnonzero(chosen).astype(np.int32) for chosen in (~tested, tested))
    digest = _digest((labels, groups, train, test), scheme, int(folds), int(fold), int(seed))
    return Split(train, test, digest)


def hold_out_validation(whole: Split, labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> Split:
    """Takes 1/folds of each class out of the training part as validation part; no group is in both.

    What chooses between trainings (pruning, the best epoch) looks at this part, so that the test part stays unseen.
    Arguments as of `split`, ValueError likewise.
    """
    inner = split(labels[whole.train], groups[whole.train], 'holdout', folds, 0, seed)
    train, val = whole.train[inner.train], whole.train[inner.test]
    return Split(train, whole.test, _digest((train, val), whole.digest, int(folds), int(seed)), val)


def _check(labels: np.ndarray, groups: np.ndarray, scheme: str, folds: int, fold: int, seed: int) -> None:
    if labels.ndim != 1 or labels.shape != groups.shape:
        raise ValueError(f'labels {labels.shape} and groups {groups.shape}: expected one of each per image.')
    if scheme not in ('holdout', 'kfold'):
        raise ValueError(f"Unknown split.scheme {scheme!r}: expected 'holdout' or 'kfold'.")
    if folds < 2:
        raise ValueError(f'split.folds is {folds}: expected 2 or more.')
    if not 0 <= fold < folds:
        raise ValueError(f'split.fold is {fold} of {folds} folds: expected 0 to {folds - 1}.')
    if scheme == 'holdout' and fold != 0:
        raise ValueError(f"split.fold is {fold}: a holdout has fold 0 only. Others need scheme 'kfold'.")
    if seed < 0:
        raise ValueError(f'split.seed is {seed}: expected 0 or more.')
    if set(np.unique(labels)) != {0, 1}:
        raise ValueError(f'Labels {np.unique(labels)[:5].tolist()}: expected both classes, 0 and 1.')


def _check_sizes(sizes: np.ndarray, folds: int) -> None:
    """sizes: int [2, G], images of each class in each group."""
    fewest = int(np.count_nonzero(sizes, axis=1).min())
    if folds > fewest:
        raise ValueError(f'split.folds is {folds}: a class has only {fewest} groups. Use fewer folds.')
    label, group = np.unravel_index(np.argmax(sizes / sizes.sum(axis=1, keepdims=True)), sizes.shape)
    largest, total = sizes[label, group], sizes[label].sum()
    if 2 * largest > total:
        raise ValueError(
            f'A group is too large: {largest} of the {total} images of class {label}, expected at most half. '
            f'Check the grouping.'
        )


def _assign(sizes: np.ndarray, scheme: str, folds: int, seed: int) -> np.ndarray:
    """Gives every group a part: the fold that tests it, or for a holdout 0 (test) or 1. [2, G] -> int [G]."""
    bits = np.random.PCG64(seed)
    sizes = np.concatenate([sizes, sizes.sum(axis=0, keepdims=True)])  # [3, G], last row: both classes
    totals = sizes.sum(axis=1)
    if scheme == 'holdout':
        share = np.maximum(1, (2 * totals[:2] + folds) // (2 * folds))  # 1/folds of each class, rounded
        share = np.append(share, share.sum())
        place, wanted = _draw_test, np.stack([share, totals - share], axis=1)
    else:
        place, wanted = _deal_out, np.tile(totals[:, None] / folds, folds)  # [3, K]
    best, best_misfit = None, np.inf
    for order in _shuffles(sizes.shape[1], bits):
        part = _swap(place(order, sizes, wanted), sizes, wanted, order[:MAX_SWAPPED])
        counts = _count(part, sizes, wanted.shape[1])
        misfit = _misfit(counts, wanted).sum()
        if misfit < best_misfit:
            best, best_misfit = part, misfit
        if _fits(counts, wanted):
            break
    return best


def _shuffles(count: int, bits: np.random.BitGenerator) -> Iterator[np.ndarray]:
    """Permutations of 0..count-1 from raw 64-bit words, whose stream no version of numpy changes."""
    for _ in range(ATTEMPTS):
        yield np.argsort(bits.random_raw(count), kind='stable')


def _count(part: np.ndarray, sizes: np.ndarray, parts: int) -> np.ndarray:
    """Images in each part. part [G], sizes [3, G] -> int64 [3, K]."""
    return np.stack([np.bincount(part, weights=row, minlength=parts) for row in sizes]).astype(np.int64)


def _misfit(counts: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Chi-square distance of the counts from the wanted ones, summed over rows. [3, ...] -> float64 [...]."""
    return ((counts - wanted) ** 2 / wanted).sum(axis=0)


def _fits(counts: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether no whole image could be placed better: every count is the wanted one, rounded up or down."""
    return bool((np.abs(counts - wanted) < 1).all())


def _draw_test(order: np.ndarray, sizes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Takes groups in random order that bring the test part nearer to its share. -> part [G], 0 is test."""
    part, counts = np.ones(len(order), np.int64), np.zeros(3, np.int64)
    for group in order:
        more = counts + sizes[:, group]
        if _misfit(more, wanted[:, 0]) < _misfit(counts, wanted[:, 0]):
            part[group], counts = 0, more
    return part


def _deal_out(order: np.ndarray, sizes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Puts every group, the largest first, in the fold that lacks it most. -> part [G], 0..K-1."""
    part, counts = np.empty(len(order), np.int64), np.zeros(wanted.shape, np.int64)
    for group in order[np.argsort(-sizes[2, order], kind='stable')]:
        more = counts + sizes[:, [group]]
        fold = np.argmin(_misfit(more, wanted) - _misfit(counts, wanted))
        part[group], counts[:, fold] = fold, more[:, fold]
    return (part + order[0]) % wanted.shape[1]  # so that the largest group is not always in fold 0


def _swap(part: np.ndarray, sizes: np.ndarray, wanted: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Swaps groups between parts, the best swap first, while that lowers the misfit. -> part [G].

    part: int [G]; sizes: int [3, G]; wanted: [3, K]; groups: the M groups that may change their part.
    """
    folds = wanted.shape[1]
    counts = _count(part, sizes, folds)
    empty = np.zeros((3, folds), np.int64)  # one empty group in each part: to swap with it is to move
    size = np.concatenate([sizes[:, groups], empty], axis=1)  # [3, M + K]
    where = np.concatenate([part[groups], np.arange(folds)])
    while not _fits(counts, wanted):
        gain = size[:, None, :] - size[:, :, None]  # [3, M + K, M + K]: what a's part gets when a and b swap
        after = _misfit(counts[:, where, None] + gain, wanted[:, where, None])
        change = after - _misfit(counts, wanted)[where, None]
        change = np.where(where[:, None] == where, 0, change + change.T)  # of a's part and of b's
        a, b = np.unravel_index(np.argmin(change), change.shape)
        if change[a, b] > -1e-9:
            break
        counts[:, where[a]] += gain[:, a, b]
        counts[:, where[b]] -= gain[:, a, b]
        where[[a, b]] = where[[b, a]]
    part[groups] = where[: len(groups)]
    return part


def _digest(arrays: tuple[np.ndarray, ...], *rest: str | int) -> str:
    """SHA-256 over plain values and int arrays, the same on every machine."""
    digest = hashlib.sha256(json.dumps(rest).encode())
    for array in arrays:
        digest.update(np.array(array, '<i8').tobytes())
    return digest.hexdigest()
