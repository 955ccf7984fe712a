"""One trial's training as pure functions: `loss`, `train_step`, `train_epoch`, `evaluate`.

The engine maps them over lanes and devices. Each takes the config first, and what fixes shapes and code paths from
there: bind it (`functools.partial`) before `jax.jit`. All else is traced.

Shapes: B batch, S steps of an epoch, M augmented images of an epoch, N images in the set, T scored images,
H W pixels. With `dataset.slices` D > 1 an image is a volume: where it says H, W, there are D, H, W.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from ml_collections import ConfigDict

from bhcnet_jax import models
from bhcnet_jax.datasets.phantom import heads
from bhcnet_jax.models.family import AUXILIARY, RECONSTRUCTIONS
from bhcnet_jax.models.layers import MASKS, Mask
from bhcnet_jax.plan import phases
from bhcnet_jax.training import optim
from bhcnet_jax.training.augment import augment

BLOOD_WEIGHT = 10.0  # in the loss on masks, of a pixel of the maps with blood; of one without: 1
DRAWN_AT_ONCE = 2  # images or heads; see `micro_batch_of`
AUXILIARY_WEIGHT = 0.3  # in the loss, of each auxiliary classifier (Szegedy et al., 2015, section 5)
STREAMS = ('init', 'augment', 'shuffle', 'dropout', 'phantom')  # append only: a stream's key comes from its place here


@struct.dataclass
class TrainState:
    """What training changes.

    Attributes:
      params: the weights.
      opt_state: Adam's moments.
      batch_stats: the running moments of batch normalisation; empty without.
      average: {'params', 'batch_stats'}, their running mean over the steps (`optimizer.ema`); this is evaluated.
    """

    params: Any
    opt_state: Any
    batch_stats: Any
    average: Any


@struct.dataclass
class Lane:
    """What one trial brings to one epoch. All of it is traced: other values compile nothing."""

    seed: jax.Array  # int32
    phase: jax.Array  # int32, place of the phase in the trial
    epoch: jax.Array  # int32, 0-based inside the phase
    layer: jax.Array  # int32, which one learns to reconstruct what it sees, from 1; 0: all learn to classify
    begins: jax.Array  # bool, whether this is the first epoch of `layer`
    sources: jax.Array  # int32 [M], the image that each augmented image is made from; [0] of drawn heads
    class_weights: jax.Array  # float32 [2], of negatives and positives
    learning_rates: jax.Array  # float32 [S]
    values: dict[str, jax.Array]  # float32 each, by the names of the traced keys in use: see plan/table.py
    scored: jax.Array  # int32 [T], the images to evaluate on


class Truth(NamedTuple):
    """What is known of drawn heads."""

    labels: jax.Array  # int32 [B]
    blood: jax.Array  # bool [B, H, W]


class Batch(NamedTuple):
    """The images of one step, or of a part of it."""

    inputs: jax.Array | None  # float32 [B, H, W] in [0, 1], augmented; see `draw`. None: of heads yet to be drawn
    positions: jax.Array  # int32 [B], places in `Lane.sources`
    mask: jax.Array  # float32 [B], 0 for padding
    truth: Truth | None = None  # of drawn heads; None for images of the set


class Sums(NamedTuple):
    """Sums over images, float32: divide once, at the end."""

    loss: jax.Array  # weighted binary cross-entropy, nats; of a layer that learns by itself its reconstruction's
    hits: jax.Array  # 0 if a layer learns by itself
    images: jax.Array


def stream(seed: jax.Array, name: str, *indices: jax.Array) -> jax.Array:
    """The random key of a stream: from its seed and name, then from each index in turn."""
    key = jax.random.fold_in(jax.random.key(seed), STREAMS.index(name))
    for index in indices:
        key = jax.random.fold_in(key, index)
    return key


def to_unit(images: jax.Array) -> jax.Array:
    """uint8 [...] -> float32 [...] in [0, 1]."""
    return images.astype(jnp.float32) / 255.0


def init(config: ConfigDict, lane: Lane) -> TrainState:
    """The weights that the lane's seed gives, with a fresh optimizer."""
    shape = models.input_shape(config.dataset.image_size, config.dataset.slices)
    return start(models.create(config.model).init(stream(lane.seed, 'init'), jnp.zeros((1, *shape))))


def start(variables: Mapping[str, Any]) -> TrainState:
    """Training before its first step. variables: 'params' of the model and, with batch normalisation, 'batch_stats'."""
    params, batch_stats = variables['params'], variables.get('batch_stats', {})
    average = {'params': params, 'batch_stats': batch_stats}
    return TrainState(params, optim.optimizer(0.0, 0.0).init(params), batch_stats, average)


def micro_batch_of(batch: int, at_once: int) -> int:
    """How many images of a batch are computed at a time: all, or on a CPU what divides it of at_once, a power of 2."""
    return math.gcd(batch, at_once) if jax.default_backend() == 'cpu' else batch


def strengths(lane: Lane, policy: str) -> dict[str, Any]:
    """Those of an augmentation policy in `lane.values`, as `augment` takes them."""
    if '+' in policy:
        return {part: strengths(lane, part) for part in policy.split('+')}
    section = f'augment.{policy}.'
    return {name.removeprefix(section): value for name, value in lane.values.items() if name.startswith(section)}


def draw(config: ConfigDict, lane: Lane, images: jax.Array, positions: jax.Array) -> jax.Array:
    """Augments images: uint8 [N, H, W], at positions int32 [...] in `lane.sources` -> float32 [..., H, W] in [0, 1]."""

    policy = config.augment.policy

    def one(position: jax.Array) -> jax.Array:
        # A frozen image depends on its place in the enlarged set alone, not on the epoch.
        epoch = 0 if config.augment.frozen else lane.epoch
        key = stream(lane.seed, 'augment', lane.phase, epoch, position)
        return augment(key, to_unit(images[lane.sources[position]]), strengths(lane, policy), policy)

    drawn = lax.map(one, positions.reshape(-1), batch_size=micro_batch_of(positions.size, DRAWN_AT_ONCE))
    return drawn.reshape(*positions.shape, *images.shape[1:])


def draw_heads(config: ConfigDict, lane: Lane, batch: Batch) -> Batch:
    """A batch with its heads, drawn for their positions and augmented; with its volumes, as they are drawn."""
    policy, size, slices = config.augment.policy, config.dataset.image_size, config.dataset.slices

    def one(position: jax.Array) -> tuple[jax.Array, Truth]:
        draw_key, augment_key = (
            stream(lane.seed, name, lane.phase, lane.epoch, position) for name in ('phantom', 'augment')
        )
        if slices > 1:
            patient = heads.draw_volume(draw_key, size, slices)
            return to_unit(patient.image), Truth(patient.label.max(), patient.mask)
        drawn = heads.draw(draw_key, size)
        image = augment(augment_key, to_unit(drawn.image), strengths(lane, policy), policy)
        return image, Truth(drawn.label, drawn.mask)

    inputs, truth = lax.map(one, batch.positions, batch_size=micro_batch_of(len(batch.positions), DRAWN_AT_ONCE))
    return batch._replace(inputs=inputs, truth=truth)


def mask_loss(logits: jax.Array, blood: jax.Array) -> jax.Array:
    """Weighted binary cross-entropy of a mask, the mean over the pixels of the maps; float32 [B], nats.

    logits: float32 [B, h, w] of the mask head. blood: bool [B, H, W]; a pixel of the maps has blood if any pixel of the
    image under it has. The Dice loss says nothing of heads without blood, half of all, so it is not used.
    """
    covered = blood
    for axis, places in enumerate(logits.shape[1:], 1):
        side = blood.shape[axis] // places
        covered = lax.slice_in_dim(covered, 0, places * side, axis=axis)
        covered = covered.reshape(*covered.shape[:axis], places, side, *covered.shape[axis + 1 :]).any(axis + 1)
    losses = optax.sigmoid_binary_cross_entropy(logits, covered.astype(jnp.float32))
    return jnp.mean(jnp.where(covered, BLOOD_WEIGHT, 1.0) * losses, axis=tuple(range(1, logits.ndim)))


def loss(
    config: ConfigDict,
    params: Any,
    batch_stats: Any,
    lane: Lane,
    labels: jax.Array,
    batch: Batch,
    axis: str | None = None,
) -> tuple[jax.Array, tuple[Sums, Any]]:
    """The weighted binary cross-entropy, summed over the images that count. -> loss, (Sums, new batch_stats).

    labels: int32 [N]. The loss on masks is added to the loss, but not in Sums. If a layer learns by itself, the loss is
    that of its reconstructions, and no label has a part in it. Auxiliary classifiers add theirs like masks. axis: as of
    `train_step`.
    """
    target = labels[lane.sources[batch.positions]] if batch.truth is None else batch.truth.labels
    dropout_key = stream(lane.seed, 'dropout', lane.phase, lane.epoch)
    dropout_keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(dropout_key, batch.positions)
    logits, changed = models.create(config.model).apply(
        {'params': params, 'batch_stats': batch_stats},
        batch.inputs[..., None],
        lane.values,
        dropout_keys,
        Mask(batch.mask, axis),
        mutable=['batch_stats', MASKS, RECONSTRUCTIONS, AUXILIARY],
    )
    smoothing = lane.values['optimizer.label_smoothing']
    smooth = target.astype(jnp.float32) * (1 - smoothing) + smoothing / 2

    def cross_entropy(logits: jax.Array) -> jax.Array:
        return jnp.sum(batch.mask * lane.class_weights[target] * optax.sigmoid_binary_cross_entropy(logits, smooth))

    total = cross_entropy(logits)
    hits = jnp.sum(jnp.where((logits >= 0) == (target == 1), batch.mask, 0.0))
    if models.greedy(config.model):
        losses = jnp.stack(jax.tree.leaves(changed[RECONSTRUCTIONS]))  # [layers, B]
        mine = lane.layer == 1 + jnp.arange(len(losses))
        alone = jnp.sum(jnp.where(mine[:, None], batch.mask * losses, 0.0))
        total, hits = jnp.where(lane.layer > 0, alone, total), jnp.where(lane.layer > 0, 0.0, hits)
    sums = Sums(total, hits, jnp.sum(batch.mask))
    for auxiliary in jax.tree.leaves(changed.get(AUXILIARY, {})):
        total += AUXILIARY_WEIGHT * cross_entropy(auxiliary)
    if config.model.mask_head and batch.truth is not None:
        losses = mask_loss(jax.tree.leaves(changed[MASKS])[0], batch.truth.blood)
        total += lane.values['phantom.mask'] * jnp.sum(batch.mask * losses)
    return total, (sums, changed.get('batch_stats', {}))


def gradients(
    config: ConfigDict, state: TrainState, lane: Lane, labels: jax.Array, batch: Batch, axis: str | None
) -> tuple[Any, Sums, Any]:
    """The gradient of `loss` over a batch, one micro-batch after the other. -> it, Sums, new batch_stats.

    axis: as of `train_step`; gradient and sums are those of this device's part.
    """
    needs_all = bool(state.batch_stats)  # the images of a batch are normalised together
    count = len(batch.positions)
    at_once = count if needs_all else micro_batch_of(count, models.at_once(config.model))
    grad = jax.grad(loss, argnums=1, has_aux=True)

    def add(carry: tuple[Any, Sums, Any], micro_batch: Batch) -> tuple[Any, None]:
        *total, batch_stats = carry
        grads, (sums, batch_stats) = grad(config, state.params, batch_stats, lane, labels, micro_batch, axis)
        return (*jax.tree.map(jnp.add, total, [grads, sums]), batch_stats), None

    zeros = (jax.tree.map(jnp.zeros_like, state.params), Sums(*jnp.zeros(3)), state.batch_stats)
    micro_batches = jax.tree.map(lambda each: each.reshape(-1, at_once, *each.shape[1:]), batch)
    return lax.scan(add, zeros, micro_batches)[0]


def train_step(
    config: ConfigDict,
    state: TrainState,
    lane: Lane,
    labels: jax.Array,
    batch: Batch,
    learning_rate: jax.Array,
    axis: str | None = None,
) -> tuple[TrainState, Sums]:
    """One step of Adam on the mean `loss` of a batch.

    labels: int32 [N]. axis: each device of this axis brings its part of the batch, and gradients and sums are added
    over the devices, as are the moments of batch normalisation.
    """
    grads, sums, batch_stats = gradients(config, state, lane, labels, batch, axis)
    if axis is not None:
        grads, sums = lax.psum((grads, sums), axis)
    grads = jax.tree.map(lambda grad: grad / sums.images, grads)
    adam = optim.optimizer(learning_rate, lane.values['optimizer.weight_decay'])
    with jax.numpy_dtype_promotion('standard'):  # optax raises a float to an integer step count
        updates, opt_state = adam.update(grads, state.opt_state, state.params)
    if config.model.mask_head and not phases.is_pretraining(config):
        updates = models.freeze_mask_head(updates)  # weight decay would change it
    if models.greedy(config.model):
        updates = models.freeze_others(config.model, updates, lane.layer)  # so would it the layers below
    params = optax.apply_updates(state.params, updates)
    kept = optim.kept_share(lane.values['optimizer.ema'], opt_state)
    average = jax.tree.map(
        lambda old, new: kept * old + (1 - kept) * new,
        *(state.average, {'params': params, 'batch_stats': batch_stats}),
    )
    return TrainState(params, opt_state, batch_stats, average), sums


def steps_per_epoch(config: ConfigDict) -> int:
    """S; the last step is filled up with masked images."""
    return -(-config.augment.samples // config.batch_size)


def train_epoch(
    config: ConfigDict,
    state: TrainState,
    lane: Lane,
    images: jax.Array,
    labels: jax.Array,
    axis: str | None = None,
    shards: int = 1,
) -> tuple[TrainState, Sums]:
    """Trains on every augmented image once, in random order.

    images: uint8 [N, H, W]. labels: int32 [N]. axis: each batch is cut into `shards` parts, one for each device of this
    axis.
    """
    if models.greedy(config.model):  # each layer has an Adam of its own
        fresh = jax.tree.map(lambda leaf: jnp.where(lane.begins, jnp.zeros_like(leaf), leaf), state.opt_state)
        state = state.replace(opt_state=fresh)
    samples, steps = config.augment.samples, steps_per_epoch(config)
    padding = steps * config.batch_size - samples
    shuffle_key = stream(lane.seed, 'shuffle', lane.phase, lane.epoch)
    order = jnp.pad(jax.random.permutation(shuffle_key, samples), (0, padding))
    mask = jnp.pad(jnp.ones(samples), (0, padding))
    shard = 0 if axis is None else lax.axis_index(axis)
    positions, mask = (each.reshape(steps, shards, -1)[:, shard] for each in (order, mask))
    is_pretraining = phases.is_pretraining(config)
    # All images are drawn before the steps, else each step would begin with a draw's small kernels: 8 of 55 on a GPU.
    # Not so heads: an epoch may have more of them than fit into memory.
    batches = Batch(None if is_pretraining else draw(config, lane, images, positions), positions, mask)

    def step(state: TrainState, batch_and_rate: tuple[Batch, jax.Array]) -> tuple[TrainState, Sums]:
        batch, rate = batch_and_rate
        batch = draw_heads(config, lane, batch) if is_pretraining else batch
        return train_step(config, state, lane, labels, batch, rate, axis)

    state, sums = lax.scan(step, state, (batches, lane.learning_rates))
    return state, jax.tree.map(jnp.sum, sums)


def evaluate(config: ConfigDict, variables: Any, scored: jax.Array, images: jax.Array) -> jax.Array:
    """Logits float32 [T] of the images uint8 [N, H, W] at scored, int32 [T]; other arguments as of `logits`."""
    count, batch = len(scored), micro_batch_of(config.batch_size, models.at_once(config.model))
    batches = jnp.pad(scored, (0, -count % batch)).reshape(-1, batch)
    found = lax.map(lambda indices: logits(config, variables, images[indices]), batches)
    return found.reshape(-1)[:count]


def logits(config: ConfigDict, variables: Any, images: jax.Array) -> jax.Array:
    """Logits float32 [B] of images uint8 [B, H, W]. variables: as in `TrainState.average`.

    With `augment.test_flip`, the logit is the mean of those of an image and of its mirror image.
    """
    model, inputs = models.create(config.model), to_unit(images)[..., None]
    found = model.apply(variables, inputs)
    return (found + model.apply(variables, inputs[..., ::-1, :])) / 2 if config.augment.test_flip else found
