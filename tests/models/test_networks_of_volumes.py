"""Networks for volumes: their layers equal those of XLA, and what the networks see."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from bhcnet_jax import models
from bhcnet_jax.errors import UserError
from bhcnet_jax.models import convolution, layers, mask_roi
from bhcnet_jax.plan import trial
from bhcnet_jax.training import steps
from lanes import small_config

pytestmark = pytest.mark.slow

VOLUMES = [name for name, family in models.FAMILIES.items() if family.sees_volumes]


def xla_conv3d(x, kernel):
    return lax.conv_general_dilated(
        x, kernel, (1, 1, 1), 'SAME', dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC'), precision='highest'
    )


# The side of 16 takes Winograd's way on a CPU, that of 6 im2col's.
@pytest.mark.parametrize(('side', 'channels'), [(6, 1), (6, 3), (16, 2)])
@pytest.mark.parametrize('backend', ['cpu', 'gpu'])
def test_a_convolution_of_volumes_equals_that_of_xla_with_a_kernel_for_each_lane(side, channels, backend, monkeypatch):
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.normal(size=(2, 2, 5, side, side + 1, channels)), jnp.float32)
    kernels = jnp.asarray(generator.normal(size=(2, 3, 3, 3, channels, 4)), jnp.float32)
    weights = jnp.asarray(generator.normal(size=(2, 2, 5, side, side + 1, 4)), jnp.float32)

    def value_and_gradients(convolve):
        def total(x, kernel, weights):
            output = convolve(x, kernel)
            return jnp.sum(output * weights), output

        return jax.vmap(jax.grad(total, argnums=(0, 1), has_aux=True))(x, kernels, weights)

    found, expected = value_and_gradients(convolution.conv3x3x3), value_and_gradients(xla_conv3d)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * float(jnp.abs(other).max()))


@pytest.mark.parametrize('backend', ['cpu', 'gpu'])
def test_pooling_of_volumes_equals_relu_and_nn_max_pool_in_output_and_gradient(backend, monkeypatch):
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    generator = np.random.default_rng(1)
    x = jnp.asarray(generator.normal(size=(2, 5, 6, 7, 3)), jnp.float32)
    weights = jnp.asarray(generator.normal(size=(2, 2, 3, 3, 3)), jnp.float32)

    def nn_pool(x):
        return nn.max_pool(nn.relu(x), (2, 2, 2), (2, 2, 2))

    np.testing.assert_array_equal(layers.relu_max_pool2x2x2(x), nn_pool(x))
    found, expected = (
        jax.grad(lambda x, pool=pool: jnp.sum(pool(x) * weights))(x) for pool in (layers.relu_max_pool2x2x2, nn_pool)
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


def volume_config(name, **overrides):
    return small_config(**{
        'model__name': name, 'dataset__name': 'phantom', 'dataset__slices': 4, 'phases': ('phantom',),
        'model__mask_head': True, 'phantom__mask': 1.0, 'augment__policy': 'none', **overrides,
    })  # fmt: skip


def volumes(count=2, slices=4, size=16):
    return jax.random.uniform(jax.random.key(3), (count, slices, size, size, 1))


@pytest.mark.parametrize('name', VOLUMES)
@pytest.mark.parametrize('backend', ['cpu', 'gpu'])
def test_a_compiled_gradient_of_lanes_has_no_convolution_and_no_scatter(name, backend, monkeypatch):
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    model, x = models.create(volume_config(name).model), volumes()
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((3, *leaf.shape), leaf.dtype), params)

    def loss(params, x):
        logits, found = model.apply(params, x, mutable=[layers.MASKS])
        return logits.sum() + jax.tree.leaves(found)[0].sum()

    text = jax.jit(jax.vmap(jax.grad(loss), in_axes=(0, None))).lower(params, x).compile().as_text()
    assert 'dot(' in text and 'convolution(' not in text and 'scatter(' not in text


@pytest.mark.parametrize('name', VOLUMES)
def test_the_mask_head_gives_a_logit_for_each_place_of_the_maps_and_the_network_one_for_a_patient(name):
    model = models.create(volume_config(name).model)
    variables = {'params': model.init(jax.random.key(0), volumes())['params']}
    logits, found = model.apply(variables, volumes(), mutable=[layers.MASKS])
    assert logits.shape == (2,) and jax.tree.leaves(found)[0].shape == (2, 2, 8, 8)


@pytest.mark.parametrize('name', VOLUMES)
def test_the_layer_table_counts_every_parameter_and_the_last_layer_is_the_head(name):
    config = volume_config(name).model
    params = jax.eval_shape(models.create(config).init, jax.random.key(0), volumes())['params']
    rows = models.describe(config, 16, 4)
    assert sum(row.parameters for row in rows) == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert rows[0].name == 'trunk/conv1' and rows[0].parameters == 27 * 4 + 4 and rows[-1].name == 'head/logit'


def test_operations_are_two_for_each_weight_at_each_place_of_a_volume():
    of_trunk = 2 * (27 * 4 * 4 * 16**2 + 27 * 4 * 6 * 2 * 8**2)
    assert models.operations(volume_config('cnn3d', model__mask_head=False).model, 16, 4) == of_trunk + 2 * 6
    of_slices = 2 * 4 * (9 * 2 * 4 * 8**2 + 9 * 4 * 6 * 4**2 + 6)
    mask_head = 2 * 6 * 2 * 8**2
    assert models.operations(volume_config('mask_roi').model, 16, 4) == of_trunk + mask_head + of_slices


def test_a_region_is_the_square_around_the_proposed_blood_and_stays_within_the_slice():
    x = volumes(1, 3)
    blood = jnp.full((1, 3, 8, 8), -20.0).at[0, 0, 3, 5].set(20.0).at[0, 1, 0, 0].set(20.0)
    seen = mask_roi.regions(x, blood)
    assert seen.shape == (1, 3, 8, 8, 2)
    np.testing.assert_allclose(seen[0, 0, ..., 0], x[0, 0, 3:11, 7:15, 0], atol=1e-6)  # the middle is (7, 11)
    np.testing.assert_allclose(seen[0, 1, ..., 0], x[0, 1, :8, :8, 0], atol=1e-6)
    np.testing.assert_allclose(seen[0, 2, ..., 0], x[0, 2, 4:12, 4:12, 0], atol=1e-6)  # no blood: the middle
    where = np.zeros((8, 8))
    where[3:5, 3:5] = 1
    np.testing.assert_allclose(seen[0, 0, ..., 1], where, atol=1e-6)


def test_of_the_hybrid_the_3d_network_learns_from_masks_alone_and_the_2d_network_from_labels_alone():
    model = models.create(volume_config('mask_roi').model)
    params = model.init(jax.random.key(0), volumes())['params']

    def both(params):
        logits, found = model.apply({'params': params}, volumes(), mutable=[layers.MASKS])
        return logits.sum(), jax.tree.leaves(found)[0].sum()

    of_label, of_mask = (jax.grad(lambda params, place=place: both(params)[place])(params) for place in (0, 1))

    def moved(tree):
        return {name for name, part in tree.items() if any(np.any(leaf) for leaf in jax.tree.leaves(part))}

    assert moved(of_label) == {'slices', 'head'} and moved(of_mask) == {'trunk', layers.MASK_HEAD}


def test_the_loss_of_a_patient_is_of_the_mean_odds_of_the_slices():
    model, x = models.create(volume_config('mask_roi').model), volumes(1)
    variables = {'params': model.init(jax.random.key(0), x)['params']}
    seen = []

    def keep(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if context.module.path == ('head',) and context.method_name == '__call__':
            seen.append(output)
        return output

    with nn.intercept_methods(keep):
        logit = model.apply(variables, x)
    np.testing.assert_allclose(np.exp(logit), [np.exp(seen[0]).mean()], rtol=1e-5)


def patients(key, count=16):
    """Noise of 4 x 16 x 16 [B, D, H, W], in half of them a bright square in one slice; labels; where it is."""
    where, noise, label = jax.random.split(key, 3)
    labels = jax.random.bernoulli(label, 0.5, (count,)).astype(jnp.int32)
    z, y, x = jax.random.randint(where, (3, count, 1, 1, 1), 0, jnp.array([4, 14, 14]).reshape(3, 1, 1, 1, 1))
    slices, rows, columns = jnp.indices((4, 16, 16))[:, None]
    square = (slices == z) & (abs(rows - y - 1) <= 1) & (abs(columns - x - 1) <= 1)
    blood = square & (labels == 1)[:, None, None, None]
    inputs = 0.4 * jax.random.uniform(noise, blood.shape)
    return inputs + jnp.where(blood, 0.5, 0.0), labels, blood


@pytest.mark.parametrize('name', VOLUMES)
def test_a_network_of_volumes_learns_to_find_a_bright_square_in_one_slice_of_patients_never_seen_before(name):
    config = volume_config(name, model__dropout=0.0, model__norm='group', model__filters=(8, 16))
    if name == 'cnn3d':
        config.model.pooling = 'max'
    model, optimizer = models.create(config.model), optax.adam(3e-3)
    params = model.init(jax.random.key(0), volumes())['params']

    @jax.jit
    def step(params, state, key):
        inputs, labels, blood = patients(key)

        def loss(params):
            logits, found = model.apply({'params': params}, inputs[..., None], mutable=[layers.MASKS])
            of_masks = steps.mask_loss(jax.tree.leaves(found)[0], blood)
            of_labels = optax.sigmoid_binary_cross_entropy(logits, labels.astype(jnp.float32))
            return (of_labels + of_masks).sum(), (logits > 0) == (labels == 1)

        gradient, hits = jax.grad(loss, has_aux=True)(params)
        with jax.numpy_dtype_promotion('standard'):  # as optax needs it
            updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, hits.mean()

    state, accuracies = optimizer.init(params), []
    for key in jax.random.split(jax.random.key(1), 100):
        params, state, accuracy = step(params, state, key)
        accuracies.append(float(accuracy))
    assert np.mean(accuracies[-20:]) > 0.95


@pytest.mark.parametrize(('overrides', 'message'), [
    ({'dataset__slices': 1}, r'^dataset\.slices is 1, but cnn3d sees volumes; expected 2 or more, such as 24\.$'),
    ({'model__name': 'cnn'}, r'^dataset\.slices is 4, but cnn sees single slices; expected 1\.$'),
    ({'dataset__slices': 3}, r'^dataset\.slices is 3; 2 blocks halve it 1 times, so it must be a multiple of 2\.$'),
    ({'dataset__name': 'head_ct'}, r"^dataset\.name is 'head_ct', but cnn3d sees volumes, .*; set it to 'phantom'\.$"),
    ({'phases': ('phantom', 'balanced')}, r"^phases is .*, but cnn3d .*; set it to \('phantom',\)\.$"),
    ({'augment__policy': 'intensity'}, r"^augment\.policy is 'intensity', .*; set it to 'none'\.$"),
    ({'model__name': 'mask_roi', 'phantom__mask': 0.0}, r'^model\.mask_head is True and phantom\.mask 0\.0; mask_roi'),
])  # fmt: skip
def test_a_config_that_volumes_do_not_allow_is_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        trial.check(volume_config('cnn3d', **overrides))
