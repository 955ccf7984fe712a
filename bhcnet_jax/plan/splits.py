"""Stratified splits that never tear a group of images apart.

N images, G groups, K folds.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator

import numpy as np

ATTEMPTS = 20  # shuffles tried until the class counts are exact; with many ungrouped images the first one is
# Keys of parts of the training part: what to set for none, with its meaning.
WITHOUT = {'split.val_folds': '0 for no validation part', 'split.train_folds': '1 for all of it'}
MAX_SWAPPED = 500  # groups considered for swaps between folds; more give no better folds and take memory


@dataclasses.dataclass(frozen=True)
class Split:
    """train, test, val: int32, sorted image indices. digest: SHA-256 of the arguments and the indices, hex.

    val is the validation part, taken from the training images; empty where none was asked for.
    """

    train: np.ndarray
    test: np.ndarray
    digest: str
    val: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))


NO_SPLIT = Split(np.zeros(0, np.int32), np.zeros(0, np.int32), '')  # of what sees no image of the set


def split(labels: np.ndarray, groups: np.ndarray, scheme: str, folds: int, fold: int, seed: int) -> Split:
    """Splits the images into a training and a test part that share no group.

    holdout: the test part holds 1/folds of each class, drawn at random; large groups are drawn less often.
    kfold: the test parts of the folds are disjoint and cover all images. Both are as close to 1/folds of each
    class as the groups allow; without single images the optimum may be missed by an image. No part lacks a class.

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
      ValueError: an argument is out of range, or a class has too few groups.
    """
    return _split(np.asarray(labels), np.asarray(groups), scheme, folds, fold, seed, 'split.folds')


def fold_sizes(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Images of each class in the test part of every fold of `kfold`, int64 [2, K]. Arguments as of `split`."""
    labels = np.asarray(labels)
    part = _parts(labels, np.asarray(groups), 'kfold', folds, seed, 'split.folds')
    return np.stack([np.bincount(part[labels == label], minlength=folds) for label in (0, 1)])


def hold_out_validation(whole: Split, labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> Split:
    """Takes 1/folds of each class out of the training part as validation part; no group is in both.

    What chooses between trainings (pruning, the best epoch) looks at this part, so that the test part stays unseen.
    Arguments as of `split`, ValueError likewise, about `split.val_folds`.
    """
    inner = _split(labels[whole.train], groups[whole.train], 'holdout', folds, 0, seed, 'split.val_folds')
    train, val = whole.train[inner.train], whole.train[inner.test]
    return Split(train, whole.test, _digest((train, val), whole.digest, int(folds), int(seed)), val)


def thin_out(whole: Split, labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> Split:
    """Leaves 1/folds of each class of the training part, drawn at random; the other parts stay.

    Arguments as of `split`, ValueError likewise, about `split.train_folds`.
    """
    inner = _split(labels[whole.train], groups[whole.train], 'holdout', folds, 0, seed, 'split.train_folds')
    train = whole.train[inner.test]
    return Split(train, whole.test, _digest((train,), whole.digest, int(folds), int(seed)), whole.val)


def _split(
    labels: np.ndarray, groups: np.ndarray, scheme: str, folds: int, fold: int, seed: int, key: str
) -> Split:
    """See `split`. key: of the config, that says how many folds."""
    _check(labels, groups, scheme, folds, fold, seed, key)
    tested = _parts(labels, groups, scheme, folds, seed, key) == fold
    train, test = (np.flatnonzero(chosen).astype(np.int32) for chosen in (~tested, tested))
    return Split(train, test, _digest((labels, groups, train, test), scheme, int(folds), int(fold), int(seed)))


def _check(
    labels: np.ndarray, groups: np.ndarray, scheme: str, folds: int, fold: int, seed: int, key: str
) -> None:
    if labels.ndim != 1 or labels.shape != groups.shape:
        raise ValueError(f'labels {labels.shape} and groups {groups.shape}: expected one of each per image.')
    if scheme not in ('holdout', 'kfold'):
        raise ValueError(f"Unknown split.scheme {scheme!r}: expected 'holdout' or 'kfold'.")
    if folds < 2:
        raise ValueError(f'{key} is {folds}: expected 2 or more.')
    if not 0 <= fold < folds:
        raise ValueError(f'split.fold is {fold} of {folds} folds: expected 0 to {folds - 1}.')
    if scheme == 'holdout' and fold != 0:
        raise ValueError(f"split.fold is {fold}: a holdout has fold 0 only. Others need scheme 'kfold'.")
    if seed < 0:
        raise ValueError(f'split.seed is {seed}: expected 0 or more.')
    if set(np.unique(labels)) != {0, 1}:
        raise ValueError(f'Labels {np.unique(labels)[:5].tolist()}: expected both classes, 0 and 1.')


def _parts(labels: np.ndarray, groups: np.ndarray, scheme: str, folds: int, seed: int, key: str) -> np.ndarray:
    """The part of every image: the fold that tests it, or for a holdout 0 (test) or 1. -> int [N]."""
    _, member = np.unique(groups, return_inverse=True)  # [N], group number 0..G-1
    sizes = np.stack([np.bincount(member[labels == label], minlength=member.max() + 1) for label in (0, 1)])
    _check_groups(sizes, folds, key)
    return _assign(sizes, scheme, folds, seed)[member]


def _check_groups(sizes: np.ndarray, folds: int, key: str) -> None:
    """ValueError if a class has fewer groups than folds; else every part can have both. sizes: int [2, G]."""
    counts = np.count_nonzero(sizes, axis=1)
    label, fewest = int(np.argmin(counts)), int(counts.min())
    if folds <= fewest:
        return
    within = key in WITHOUT
    remedies = [f'use {key}={fewest} or less'] if fewest > 1 else []
    remedies.append(f'use {key}={WITHOUT[key]}' if within else f'add images of class {label}')
    raise ValueError(
        f'{key} is {folds}: class {label} has only {fewest} {"groups" if fewest > 1 else "group"} of images'
        f'{" in the training part" if within else ""}, and each part needs one; {", or ".join(remedies)}.'
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
    return best if _has_both(best, sizes, wanted) else _assign_both(sizes, wanted, bits)


def _assign_both(sizes: np.ndarray, wanted: np.ndarray, bits: np.random.BitGenerator) -> np.ndarray:
    """Like `_assign`, where its best lacks a class in some part: from starts that lack none. -> part [G]."""
    found = [
        _swap(_deal_both(order, sizes, wanted), sizes, wanted, order[:MAX_SWAPPED], keep_both=True)
        for order in _shuffles(sizes.shape[1], bits)
    ]
    return min(found, key=lambda part: _misfit(_count(part, sizes, wanted.shape[1]), wanted).sum())


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


def _has_both(part: np.ndarray, sizes: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether every part has images of both classes."""
    return bool((_count(part, sizes, wanted.shape[1])[:2] > 0).all())


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


def _deal_both(order: np.ndarray, sizes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Gives every part one group of both classes or one of each, then the rest as `_deal_out`. -> part [G].

    That works if each class has as many groups as there are parts.
    """
    folds = wanted.shape[1]
    part = np.full(len(order), -1)
    small_first = order[np.argsort(sizes[2, order], kind='stable')]
    normal, positive = sizes[:2, small_first] > 0
    both = small_first[normal & positive][:folds]
    part[both] = np.arange(len(both))
    for only in (normal & ~positive, positive & ~normal):
        part[small_first[only][: folds - len(both)]] = np.arange(len(both), folds)
    dealt = part >= 0
    counts = np.stack([np.bincount(part[dealt], weights=row[dealt], minlength=folds) for row in sizes])
    for group in small_first[::-1]:
        if part[group] < 0:
            more = counts + sizes[:, [group]]
            fold = np.argmin(_misfit(more, wanted) - _misfit(counts, wanted))
            part[group], counts[:, fold] = fold, more[:, fold]
    return part


def _swap(
    part: np.ndarray, sizes: np.ndarray, wanted: np.ndarray, groups: np.ndarray, keep_both: bool = False
) -> np.ndarray:
    """Swaps groups between parts, the best swap first, while that lowers the misfit. -> part [G].

    part: int [G]; sizes: int [3, G]; wanted: [3, K]; groups: the M groups that may change their part. keep_both: no
    swap takes the last image of a class from a part; every part has both at the start.
    """
    folds = wanted.shape[1]
    counts = _count(part, sizes, folds)
    empty = np.zeros((3, folds), np.int64)  # one empty group in each part: to swap with it is to move
    size = np.concatenate([sizes[:, groups], empty], axis=1)  # [3, M + K]
    where = np.concatenate([part[groups], np.arange(folds)])
    while not _fits(counts, wanted):
        gain = size[:, None, :] - size[:, :, None]  # [3, M + K, M + K]: what a's part gets when a and b swap
        new_counts = counts[:, where, None] + gain
        after = _misfit(new_counts, wanted[:, where, None])
        if keep_both:
            after[(new_counts[:2] <= 0).any(axis=0)] = np.inf
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
