"""The phase `autoencoder`: each layer learns by itself to reconstruct what it sees, without labels, others frozen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bhcnet_jax import models
from bhcnet_jax.models.autoencoder import LAYERS
from bhcnet_jax.models.family import RECONSTRUCTIONS
from bhcnet_jax.training import optim, steps
from lanes import one, small_images, small_lanes, tiny_config

EPOCHS = 8  # of a layer


def small_config(**overrides):
    # Decay would move every weight, so it tells which ones are frozen.
    usual = {'optimizer__weight_decay': 0.1, 'optimizer__peak_lr': 3e-3}
    return tiny_config('autoencoder', **{**usual, **overrides})


class Training:
    """One lane on small images, by one compiled epoch."""

    def __init__(self, config, labels=None):
        images, usual = small_images()
        self.config, self.lane = config, one(small_lanes(config))
        self._data = jnp.asarray(images), jnp.asarray(usual if labels is None else labels)
        self.state = jax.jit(functools.partial(steps.init, config))(self.lane)
        self._epoch = jax.jit(functools.partial(steps.train_epoch, config))
        self._rates = optim.learning_rates(config.optimizer, EPOCHS, steps.steps_per_epoch(config))

    def learn(self, layer, epochs=EPOCHS, begins=True):
        """Sums of each epoch."""
        sums = []
        for epoch in range(epochs):
            here = {'layer': jnp.int32(layer), 'begins': jnp.array(begins and epoch == 0), 'epoch': jnp.int32(epoch)}
            lane = self.lane.replace(**here, learning_rates=jnp.asarray(self._rates[epoch]))
            self.state, found = self._epoch(self.state, lane, *self._data)
            sums.append(found)
        return sums


def changed(before, after):
    """Names of the parts in which any bit is another."""
    return {name for name, part in after.items()
            if not all(map(np.array_equal, jax.tree.leaves(part), jax.tree.leaves(before[name])))}  # fmt: skip


@pytest.mark.slow
def test_each_layer_learns_to_reconstruct_while_all_others_are_frozen():
    training = Training(small_config())
    for number, name in enumerate(LAYERS, 1):
        before = training.state.params
        sums = training.learn(number)
        losses = [float(each.loss / each.images) for each in sums]
        assert losses[-1] < losses[0]
        assert [float(each.hits) for each in sums] == [0] * EPOCHS
        assert changed(before, training.state.params) == {name}
        assert all(map(np.any, jax.tree.leaves(jax.tree.map(np.subtract, training.state.params[name], before[name]))))


@pytest.mark.slow
def test_the_loss_is_the_mean_reconstruction_of_the_augmented_images_that_count():
    # 20 images in batches of 8: the last step is filled up with 4 masked ones.
    config = small_config(augment__policy='none')
    training = Training(config)
    training._rates = np.zeros_like(training._rates)
    inputs = steps.to_unit(small_images()[0][training.lane.sources])[..., None]
    variables = {'params': training.state.params}
    _, found = models.create(config.model).apply(variables, inputs, mutable=[RECONSTRUCTIONS])
    for number, expected in enumerate(jax.tree.leaves(found[RECONSTRUCTIONS]), 1):
        (sums,) = training.learn(number, epochs=1)
        assert float(sums.images) == 20
        np.testing.assert_allclose(sums.loss, expected.sum(), rtol=1e-5)


@pytest.mark.parametrize(('layer', 'matters'), [(1, False), (3, False), (0, True)])
def test_labels_matter_to_the_classifier_alone(layer, matters):
    _, labels = small_images()
    found = []
    for each in (labels, 1 - labels):
        training = Training(small_config(), each)
        sums = training.learn(layer, epochs=2)
        found.append(jax.tree.leaves((training.state, sums)))
    assert all(map(np.array_equal, *found)) != matters


def test_each_layer_has_a_fresh_adam():
    config = small_config()
    steps_of_epoch = steps.steps_per_epoch(config)
    training = Training(config)
    training.learn(1, epochs=2)
    assert int(training.state.opt_state[0].count) == 2 * steps_of_epoch
    training.learn(2, epochs=1, begins=False)
    assert int(training.state.opt_state[0].count) == 3 * steps_of_epoch
    training.learn(3, epochs=1)
    assert int(training.state.opt_state[0].count) == steps_of_epoch
    moments = training.state.opt_state[0].mu
    learning = {name for name, part in moments.items() if any(map(np.any, jax.tree.leaves(part)))}
    assert learning == {LAYERS[2]}


def test_the_classifier_learns_all_weights_but_those_of_the_way_back():
    training = Training(small_config(optimizer__weight_decay=0.0))
    before = training.state.params
    training.learn(0, epochs=2)
    assert changed(before, training.state.params) == {*LAYERS, 'head'}
    for name in LAYERS:
        assert changed(before[name], training.state.params[name]) == {'kernel', 'bias'}


@pytest.mark.parametrize('backend', ['cpu', 'gpu'])
def test_lanes_of_the_phase_need_no_convolution_and_no_scatter(backend, monkeypatch):
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    config = small_config(augment__policy='none')
    lanes = small_lanes(config, seeds=(0, 1)).replace(layer=np.array([2, 2], np.int32), begins=np.array([True, True]))
    images, labels = map(jnp.asarray, small_images())
    positions = jnp.arange(8)

    def step(state, lane):
        batch = steps.Batch(steps.draw(config, lane, images, positions), positions, jnp.ones(8))
        return steps.train_step(config, state, lane, labels, batch, jnp.float32(1e-3))

    states = jax.eval_shape(jax.vmap(functools.partial(steps.init, config)), lanes)
    text = jax.jit(jax.vmap(step)).lower(states, lanes).as_text()
    assert 'dot_general' in text
    assert 'convolution' not in text and 'scatter' not in text
