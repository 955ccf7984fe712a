"""One trial's training step, epoch and evaluation as pure functions; the engine maps them over lanes and devices.

Shapes: B batch, S steps of an epoch, M augmented images of an epoch, N images in the set, T scored images,
H W pixels.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from ml_collections import ConfigDict

from bhcnet_jax import models
from bhcnet_jax.training import optim
from bhcnet_jax.training.augment import augment

STREAMS = ('init', 'augment', 'shuffle', 'dropout')  # append only: a stream's key is made from its place here


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
    sources: jax.Array  # int32 [M], the image that each augmented image is made from
    class_weights: jax.Array  # float32 [2], of normal and hemorrhage
    learning_rates: jax.Array  # float32 [S]
    weight_decay: jax.Array  # float32
    ema: jax.Array  # float32
    label_smoothing: jax.Array  # float32
    dropout: jax.Array  # float32
    strengths: dict[str, jax.Array]  # float32 each, of the augmentation policy
    scored: jax.Array  # int32 [T], the images to evaluate on


class Sums(NamedTuple):
    """Sums over images, float32: divide once, at the end."""

    loss: jax.Array  # weighted binary cross-entropy, nats
    hits: jax.Array
    images: jax.Array


def stream(seed: jax.Array, name: str, *indices: jax.Array) -> jax.Array:
    """The random key of a stream, made from (seed, name) and then from each index in turn."""
    key = jax.random.fold_in(jax.random.key(seed), STREAMS.index(name))
    for index in indices:
        key = jax.random.fold_in(key, index)
    return key


def to_unit(images: jax.Array) -> jax.Array:
    """uint8 [...] -> float32 [...] in [0, 1]."""
    return images.astype(jnp.float32) / 255.0


def make_init(config: ConfigDict) -> Callable[[Lane], TrainState]:
    """Returns init(lane): the weights that its seed gives, with a fresh optimizer."""
    model = models.create(config.model)
    size = config.dataset.image_size

    def init(lane: Lane) -> TrainState:
        return start(model.init(stream(lane.seed, 'init'), jnp.zeros((1, size, size, 1))))

    return init


def start(variables: Mapping[str, Any]) -> TrainState:
    """Training before its first step. variables: 'params' of the model and, with batch normalisation, 'batch_stats'."""
    params, batch_stats = variables['params'], variables.get('batch_stats', {})
    average = {'params': params, 'batch_stats': batch_stats}
    return TrainState(params, optim.optimizer(0.0, 0.0).init(params), batch_stats, average)


def micro_batch_of(batch: int) -> int:
    """How many images of a batch are computed at a time: all, or on a CPU 2 (1 if the batch is odd).

    What 2 images need in between stays in a CPU's cache. A step of 4 at a time takes 1.1 to 1.4 times as long.
    """
    return math.gcd(batch, 2) if jax.default_backend() == 'cpu' else batch


def make_draw(config: ConfigDict) -> Callable[[Lane, jax.Array, jax.Array], jax.Array]:
    """Returns draw(lane, images, positions) -> float32 [..., H, W] in [0, 1]: augmented images.

    images: uint8 [N, H, W]; positions: int32 [...], places in `lane.sources`.
    """
    policy, frozen = config.augment.policy, config.augment.frozen

    def draw(lane: Lane, images: jax.Array, positions: jax.Array) -> jax.Array:
        def one(position: jax.Array) -> jax.Array:
            # A frozen image depends on its place in the enlarged set alone, not on the epoch.
            epoch = 0 if frozen else lane.epoch
            key = stream(lane.seed, 'augment', lane.phase, epoch, position)
            return augment(key, to_unit(images[lane.sources[position]]), lane.strengths, policy)

        drawn = lax.map(one, positions.reshape(-1), batch_size=micro_batch_of(positions.size))
        return drawn.reshape(*positions.shape, *images.shape[1:])

    return draw


def _make_gradients(config: ConfigDict) -> Callable[..., tuple[Any, tuple[Sums, Any]]]:
    """Returns gradients(params, batch_stats, lane, labels, inputs, positions, mask).

    It returns their sum over images, their Sums and the new batch_stats.
    """
    model = models.create(config.model)

    def gradients(
        params: Any,
        batch_stats: Any,
        lane: Lane,
        labels: jax.Array,
        inputs: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
    ) -> tuple[Any, tuple[Sums, Any]]:
        target = labels[lane.sources[positions]]
        dropout_key = stream(lane.seed, 'dropout', lane.phase, lane.epoch)
        dropout_keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(dropout_key, positions)

        def summed_loss(params: Any) -> tuple[jax.Array, tuple[Sums, Any]]:
            variables = {'params': params, 'batch_stats': batch_stats}
            logits, changed = model.apply(
                variables, inputs[..., None], lane.dropout, dropout_keys, mask, mutable=['batch_stats']
            )
            smooth = target.astype(jnp.float32) * (1 - lane.label_smoothing) + lane.label_smoothing / 2
            losses = optax.sigmoid_binary_cross_entropy(logits, smooth)
            loss = jnp.sum(mask * lane.class_weights[target] * losses)
            hits = jnp.sum(jnp.where((logits >= 0) == (target == 1), mask, 0.0))
            return loss, (Sums(loss, hits, jnp.sum(mask)), changed.get('batch_stats', {}))

        return jax.grad(summed_loss, has_aux=True)(params)

    return gradients


def make_train_step(config: ConfigDict, axis: str | None = None) -> Callable[..., tuple[TrainState, Sums]]:
    """Returns train_step(state, lane, labels, inputs, positions, mask, learning_rate) -> state, Sums.

    labels: int32 [N]. inputs: float32 [B, H, W], the images that `make_draw` draws at `positions`, int32 [B]; mask:
    float32 [B], 0 for padding. With `axis`, each device brings its part of the batch, and gradients and sums are added
    over the devices of that axis.
    """
    gradients = _make_gradients(config)
    needs_all = config.model.norm == 'batch'

    def train_step(
        state: TrainState,
        lane: Lane,
        labels: jax.Array,
        inputs: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        learning_rate: jax.Array,
    ) -> tuple[TrainState, Sums]:
        def add(carry: tuple[Any, Sums, Any], micro_batch: tuple[jax.Array, ...]) -> tuple[Any, None]:
            *total, batch_stats = carry
            grads, (sums, batch_stats) = gradients(state.params, batch_stats, lane, labels, *micro_batch)
            return (*jax.tree.map(jnp.add, total, [grads, sums]), batch_stats), None

        zeros = (jax.tree.map(jnp.zeros_like, state.params), Sums(*jnp.zeros(3)), state.batch_stats)
        at_once = len(positions) if needs_all else micro_batch_of(len(positions))
        micro_batches = [each.reshape(-1, at_once, *each.shape[1:]) for each in (inputs, positions, mask)]
        (grads, sums, batch_stats), _ = lax.scan(add, zeros, tuple(micro_batches))
        if axis is not None:
            batch_stats = jax.tree.map(lambda moment: moment * sums.images, batch_stats)
            grads, sums, batch_stats = lax.psum((grads, sums, batch_stats), axis)
            batch_stats = jax.tree.map(lambda moment: moment / sums.images, batch_stats)
        grads = jax.tree.map(lambda grad: grad / sums.images, grads)
        adam = optim.optimizer(learning_rate, lane.weight_decay)
        with jax.numpy_dtype_promotion('standard'):  # optax raises a float to an integer step count
            updates, opt_state = adam.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        kept = optim.kept_share(lane.ema, opt_state)
        average = jax.tree.map(
            lambda old, new: kept * old + (1 - kept) * new,
            *(state.average, {'params': params, 'batch_stats': batch_stats}),
        )
        return TrainState(params, opt_state, batch_stats, average), sums

    return train_step


def steps_per_epoch(config: ConfigDict) -> int:
    """S; the last step is filled up with masked images."""
    return -(-config.augment.samples // config.batch_size)


def make_train_epoch(config: ConfigDict, axis: str | None = None, shards: int = 1) -> Callable[..., Any]:
    """Returns train_epoch(state, lane, images, labels) -> state, Sums: every augmented image once, shuffled.

    With `axis`, the batch is cut into `shards` parts, one for each device of that axis.
    """
    draw, train_step = make_draw(config), make_train_step(config, axis)
    samples, steps = config.augment.samples, steps_per_epoch(config)
    padding = steps * config.batch_size - samples

    def train_epoch(
        state: TrainState, lane: Lane, images: jax.Array, labels: jax.Array
    ) -> tuple[TrainState, Sums]:
        shuffle_key = stream(lane.seed, 'shuffle', lane.phase, lane.epoch)
        order = jnp.pad(jax.random.permutation(shuffle_key, samples), (0, padding))
        mask = jnp.pad(jnp.ones(samples), (0, padding))
        shard = 0 if axis is None else lax.axis_index(axis)

        def step(state: TrainState, batch: tuple[jax.Array, ...]) -> tuple[TrainState, Sums]:
            return train_step(state, lane, labels, *batch)

        positions, mask = (each.reshape(steps, shards, -1)[:, shard] for each in (order, mask))
        # Before the steps, so that none of them begins with the small kernels of a draw: eight of 55 on a GPU.
        inputs = draw(lane, images, positions)
        state, sums = lax.scan(step, state, (inputs, positions, mask, lane.learning_rates))
        return state, jax.tree.map(jnp.sum, sums)

    return train_epoch


def make_evaluate(config: ConfigDict) -> Callable[..., jax.Array]:
    """Returns evaluate(variables, scored, images) -> logits float32 [T]; variables: as in `TrainState.average`.

    With `augment.test_flip`, the logit is the mean of those of an image and of its mirror image.
    """
    model = models.create(config.model)
    mirror = config.augment.test_flip

    def evaluate(variables: Any, scored: jax.Array, images: jax.Array) -> jax.Array:
        count = len(scored)
        batch = micro_batch_of(config.batch_size)
        batches = jnp.pad(scored, (0, -count % batch)).reshape(-1, batch)

        def logits(indices: jax.Array) -> jax.Array:
            inputs = to_unit(images[indices])[..., None]
            found = model.apply(variables, inputs)
            return (found + model.apply(variables, inputs[:, :, ::-1])) / 2 if mirror else found

        return lax.map(logits, batches).reshape(-1)[:count]

    return evaluate
