"""Heat maps: which parts of an image move a network's logit towards the positive class.

A map tells what a network uses, right or wrong, and not where a finding is; `localization` measures how far the two
agree.

M members, N images, B of them at a time, S pixels a side; h w places of a coarse map, F feature maps.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import FrozenConfigDict

from bhcnet_jax import models
from bhcnet_jax.errors import UserError
from bhcnet_jax.training import steps

SQUARES = 8  # occluding squares along a side of an image; they slide by half their width
PATH_STEPS = 32  # images between black and the image itself, for integrated gradients


def methods(config: FrozenConfigDict) -> tuple[str, ...]:
    """The ways that a model has, that of choice first; some need feature maps, one the mask head."""
    has_maps, has_mask_head = models.FAMILIES[config.model.name].maps, config.model.mask_head
    return tuple(
        how for how in METHODS if (has_maps or how not in OF_MAPS) and (has_mask_head or how != 'mask')
    )  # fmt: skip


def segment(config: FrozenConfigDict, variables: Any, images: np.ndarray) -> np.ndarray:
    """The probability of blood in each pixel, float32 [N, S, S], of images uint8 [N, S, S]; see `Model.segment`.

    config: of a recipe with a mask head. variables: each array with a leading axis [M].
    """
    return np.asarray(_segment(config, variables, images))


@functools.partial(jax.jit, static_argnums=0)
def _segment(config: FrozenConfigDict, variables: Any, images: jax.Array) -> jax.Array:
    logits = lax.map(lambda member: _mask_logits(config, member, images), variables).mean(axis=0)
    logits -= math.log(steps.BLOOD_WEIGHT)  # the loss counts blood so many times, which adds this
    # A pixel of the maps lies over so many of the image's; the last ones may lie under none.
    count, side, size = len(images), images.shape[1] // logits.shape[1], images.shape[1]
    covered = side * logits.shape[1]
    fine = jax.image.resize(logits, (count, covered, covered), 'linear')
    return jax.nn.sigmoid(jnp.pad(fine, ((0, 0), *2 * ((0, size - covered),)), mode='edge'))


def explain(config: FrozenConfigDict, variables: Any, images: np.ndarray, how: str) -> np.ndarray:
    """Heat maps float32 [N, S, S] in [0, 1] of images uint8 [N, S, S].

    A map is the positive part of the evidence, in log-odds, of the mean over the members, divided by its largest value
    in the image: 1 is where the image has most evidence for the positive class, however little that is. It is 0
    everywhere if nothing speaks for that class. 'mask' has the probabilities of the mask head in place of evidence.

    config: of a recipe. variables: each array with a leading axis [M]. how: one of METHODS. UserError: another, or the
    model has no feature maps.
    """
    if how not in methods(config):
        raise UserError(f'how={how!r}: {config.model.name} can be explained by {", ".join(methods(config))}.')
    maps = np.asarray(_explain(config, how, variables, images))
    largest = maps.max(axis=(1, 2), keepdims=True)
    return maps / np.where(largest > 0, largest, 1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _explain(config: FrozenConfigDict, how: str, variables: Any, images: jax.Array) -> jax.Array:
    """The positive part of the evidence, [N, S, S]."""
    evidence = lax.map(lambda member: METHODS[how](config, member, images), variables).mean(axis=0)
    positive = jnp.maximum(evidence, 0.0)
    return jax.image.resize(positive, images.shape, 'linear') if positive.shape != images.shape else positive


# Evidence of one member: variables without a leading axis, images uint8 [N, S, S] -> float32 [N, h, w], in any unit.
Method = Callable[[FrozenConfigDict, Any, jax.Array], jax.Array]


def _differentiated(of_inputs: Method) -> Method:
    """A method of inputs float32 [B, S, S] in [0, 1] as one of images, of which few are computed at a time.

    With `augment.test_flip` the logit is a mean over an image and its mirror image, and so is the evidence.
    """

    def of_images(config: FrozenConfigDict, variables: Any, images: jax.Array) -> jax.Array:
        count, batch = len(images), steps.micro_batch_of(config.batch_size, models.at_once(config.model))
        batches = jnp.pad(images, ((0, -count % batch), (0, 0), (0, 0))).reshape(-1, batch, *images.shape[1:])

        def evidence(some: jax.Array) -> jax.Array:
            inputs = steps.to_unit(some)
            found = of_inputs(config, variables, inputs)
            if not config.augment.test_flip:
                return found
            return (found + of_inputs(config, variables, inputs[:, :, ::-1])[:, :, ::-1]) / 2

        found = lax.map(evidence, batches)
        return found.reshape(-1, *found.shape[2:])[:count]

    return of_images


@_differentiated
def _hires_cam(config: FrozenConfigDict, variables: Any, inputs: jax.Array) -> jax.Array:
    """Feature maps, each place times the gradient of the logit with respect to it. -> [B, h, w].

    Draelos and Carin, Use HiResCAM instead of Grad-CAM, 2020, section 3. Before a linear head the sum is the logit
    without its bias.
    """
    gradients, maps = _of_maps(config, variables, inputs)
    return (gradients * maps).sum(axis=-1)


@_differentiated
def _grad_cam(config: FrozenConfigDict, variables: Any, inputs: jax.Array) -> jax.Array:
    """Feature maps, each weighted with the mean gradient of the logit over its places. -> [B, h, w].

    Selvaraju et al., Grad-CAM, 2017, equations 1 and 2; the ReLU follows in `explain`. The mean takes the gradient
    to places that had no part in the logit, such as those below the maximum of a pooling.
    """
    gradients, maps = _of_maps(config, variables, inputs)
    return (gradients.mean(axis=(1, 2), keepdims=True) * maps).sum(axis=-1)


def _of_maps(config: FrozenConfigDict, variables: Any, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gradients of the logits with respect to the feature maps, and these, both float32 [B, h, w, F]."""
    apply = functools.partial(models.apply_with_maps, config.model, variables, inputs[..., None])

    def logit(offset: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, maps = apply(offset)
        return logits.sum(), maps

    shape = jax.eval_shape(apply)[1]
    gradients, maps = jax.grad(logit, has_aux=True)(jnp.zeros(shape.shape, shape.dtype))
    return gradients.astype(jnp.float32), maps.astype(jnp.float32)


@_differentiated
def _integrated_gradients(config: FrozenConfigDict, variables: Any, inputs: jax.Array) -> jax.Array:
    """Pixels times their gradient, averaged on the way from a black image. -> [B, S, S].

    Their sum is the logit minus that of a black image, up to the steps. Sundararajan et al., Axiomatic attribution for
    deep networks, 2017, equation 3, by the midpoint rule.
    """
    model = models.create(config.model)
    gradient = jax.grad(lambda x: model.apply(variables, x[..., None]).sum())
    shares = (jnp.arange(PATH_STEPS, dtype=jnp.float32) + 0.5) / PATH_STEPS
    total = lax.scan(lambda sums, share: (sums + gradient(share * inputs), None), jnp.zeros_like(inputs), shares)[0]
    return inputs * total / PATH_STEPS


@_differentiated
def _mask_logits(config: FrozenConfigDict, variables: Any, inputs: jax.Array) -> jax.Array:
    """What the mask head says. -> [B, h, w]."""
    return models.mask_logits(config.model, variables, inputs[..., None])


def _mask(config: FrozenConfigDict, variables: Any, images: jax.Array) -> jax.Array:
    """Where the mask head sees blood, as it was trained on drawn heads. -> [N, h, w], probabilities."""
    return jax.nn.sigmoid(_mask_logits(config, variables, images))


def _occlusion(config: FrozenConfigDict, variables: Any, images: jax.Array) -> jax.Array:
    """How far the logit falls when a square is covered with the image's mean grey. -> [N, S, S].

    A pixel has the mean over the squares that cover it. Zeiler and Fergus, Visualizing and understanding convolutional
    networks, 2014, section 4.2.
    """
    covers = _covers(images.shape[1])  # [P, S]
    grey = jnp.round(images.astype(jnp.float32).mean(axis=(1, 2), keepdims=True)).astype(images.dtype)

    def logits(some: jax.Array) -> jax.Array:
        return steps.evaluate(config, variables, jnp.arange(len(some)), some)

    def covered(place: jax.Array) -> jax.Array:
        square = covers[place // len(covers)][:, None] & covers[place % len(covers)]
        return logits(jnp.where(square, grey, images))

    falls = logits(images) - lax.map(covered, jnp.arange(len(covers) ** 2))  # [P P, N]
    falls = falls.T.reshape(len(images), len(covers), len(covers))
    shares = covers.astype(jnp.float32) / covers.sum(axis=0, dtype=jnp.float32)
    return jnp.einsum('nij,iy,jx->nyx', falls, shares, shares, precision='highest')


def _covers(size: int) -> jax.Array:
    """Which pixels of a side each of P places of a square covers: bool [P, S]."""
    width = max(1, round(size / SQUARES))
    starts = sorted({*range(0, size - width, max(1, width // 2)), size - width})
    pixels = np.arange(size)
    return jnp.array([(start <= pixels) & (pixels < start + width) for start in starts])


NAMES = {  # for readers
    'hires_cam': 'HiResCAM',
    'grad_cam': 'Grad-CAM',
    'integrated_gradients': 'integrated gradients',
    'occlusion': 'occlusion',
    'mask': 'mask head',
}
OF_MAPS = ('hires_cam', 'grad_cam')
METHODS: dict[str, Method] = {  # by their cost
    'hires_cam': _hires_cam,
    'grad_cam': _grad_cam,
    'integrated_gradients': _integrated_gradients,
    'occlusion': _occlusion,
    'mask': _mask,
}
