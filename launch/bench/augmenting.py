"""What augmentation costs: its share of an epoch, and an affine change against PyTorch's."""

import contextlib
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from contest import Contestant, in_turn, prepare, project_entry, race, require, spread

from bhcnet_jax.configs import balanced
from bhcnet_jax.datasets.input_pipeline import ImageSet
from bhcnet_jax.training import augment

CALLS = 20  # of a change in a turn


def measure_augmentation(folder: pathlib.Path, image_set: ImageSet, rounds: int, count: int) -> dict[str, Any]:
    """Shares of an epoch, and seconds of the affine change of a batch; median, lowest and highest over the rounds.

    The share of a policy is 1 - (epoch without augmentation) / (epoch with it), in the same round. count: images of an
    epoch. ContestError: PyTorch is not installed.
    """
    require('torch')
    with contextlib.ExitStack() as stack:
        running = {}
        for policy in ('none', 'affine', 'distort'):
            keys = {'augment.policy': policy, 'augment.samples': count, 'balanced.epochs': rounds + 1}
            prepare(folder / policy, image_set.images, image_set.labels, **keys)
            running[policy] = stack.enter_context(Contestant(project_entry(), folder / policy, folder / 'cache'))
        seconds = race(running, rounds)
    plain = np.array(seconds.pop('none'))
    shares = {policy: spread((1 - plain / np.array(each)).tolist()) for policy, each in seconds.items()}
    return {'share of an epoch': shares, 'affine change of a batch, s': _race_changes(image_set.images, rounds)}


def _race_changes(images: np.ndarray, rounds: int) -> dict[str, dict[str, float]]:
    """images: uint8 [N, H, W]; of a batch, the same changes by both."""
    import rival_torch  # here, since it needs PyTorch
    import torch

    config = balanced.get_config()
    batch, drawn = images[: config.batch_size], rival_torch.draw_affine(config.augment.affine, config.batch_size)
    arguments = {name: jnp.asarray(value.numpy()) for name, value in drawn.items()}
    pixels, tensor = jnp.asarray(batch), torch.from_numpy(batch)[:, None]
    change = jax.jit(jax.vmap(lambda image, given: augment.affine(image.astype(jnp.float32) / 255.0, **given)))
    changes: dict[str, Callable[[], Any]] = {
        'bhcnet_jax': lambda: change(pixels, arguments).block_until_ready(),
        'PyTorch, affine_grid and grid_sample': lambda: rival_torch.warp(tensor, rival_torch.affine_matrices(**drawn)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in changes}
    for each in changes.values():
        each()  # compiles
    for name in in_turn(list(changes), rounds):
        start = time.perf_counter()
        for _ in range(CALLS):
            changes[name]()
        seconds[name].append((time.perf_counter() - start) / CALLS)
    return {name: spread(each) for name, each in seconds.items()}
