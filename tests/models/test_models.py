import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from bhcnet_jax import models
from bhcnet_jax.configs import base
from bhcnet_jax.models import cnn, convolution, layers, recurrent, windows
from lanes import BLOCKS


def having(*keys):
    """Names of the families that see slices and have these keys."""
    of_slices = {name: family for name, family in models.FAMILIES.items() if not family.sees_volumes}
    return [name for name, family in of_slices.items() if {key.name for key in family.keys}.issuperset(keys)]


def model_config(name='cnn', dtype='float32'):
    config = base.get_config().model
    config.name, config.dtype, config.filters = name, dtype, (4, 6, 8)
    return config


def random(shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize('shape', [(4, 5, 7, 3), (4, 2, 5, 7, 3)])
def test_batch_normalisation_equals_nn_batchnorm_in_output_gradients_and_moments(shape):
    x, counts = 2 + 3 * random(shape), jnp.array([1.0, 0.0, 1.0, 1.0])
    ours, reference = layers.BatchNorm(1e-3, jnp.float32), nn.BatchNorm(momentum=0.9, epsilon=1e-3)
    scale, bias, mean, var = 1 + jnp.abs(random((4, 3), 1))
    variables = {'params': {'scale': scale, 'bias': bias}, 'batch_stats': {'mean': mean, 'var': var}}

    def loss(apply, variables, x):
        y, changed = apply(variables, x)
        return jnp.sum(jnp.sin(y) * counts.reshape(-1, *(1,) * (x.ndim - 1))), (y, changed)

    def train(variables, x):
        return ours.apply(variables, x, layers.Mask(counts), mutable=['batch_stats'])

    def train_reference(variables, x):
        mask = counts.reshape(-1, *(1,) * (x.ndim - 1)) > 0
        return reference.apply(variables, x, use_running_average=False, mask=mask, mutable=['batch_stats'])

    found, wanted = (jax.grad(loss, (1, 2), has_aux=True)(each, variables, x) for each in (train, train_reference))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        ours.apply(variables, x, None), reference.apply(variables, x, use_running_average=True), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize('shape', [(2, 8, 8, 1), (1, 5, 7, 3), (3, 1, 1, 2), (1, 17, 18, 2)])
def test_convolution_equals_nn_conv_in_output_and_gradients(shape):
    x = random(shape)
    reference = nn.Conv(6, (3, 3))
    variables = reference.init(jax.random.key(1), x)
    ours = layers.Conv(6)
    assert jax.tree.map(jnp.shape, ours.init(jax.random.key(1), x)) == jax.tree.map(jnp.shape, variables)

    def loss(module, variables, x):
        return jnp.sum(jnp.sin(module.apply(variables, x)))

    np.testing.assert_allclose(ours.apply(variables, x), reference.apply(variables, x), atol=1e-5)
    gradients = jax.jit(jax.grad(loss, argnums=(1, 2)), static_argnums=0)
    for found, expected in zip(
        jax.tree.leaves(gradients(ours, variables, x)),
        jax.tree.leaves(gradients(reference, variables, x)),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(('way', 'channels'), [(convolution.im2col, 3), (convolution.shifted_sum, 1)])
@pytest.mark.parametrize('lanes', [0, 2])
def test_a_way_to_convolve_equals_nn_conv_also_with_a_kernel_for_each_lane(way, channels, lanes):
    leading = (lanes,) if lanes else ()
    x, kernel = random((*leading, 2, 7, 5, channels)), random((*leading, 3, 3, channels, 4), 1)
    weights = random((4,), 2)

    def loss(way, x, kernel):
        return jnp.sum(jnp.sin(way(x, kernel)) * weights)

    def reference(x, kernel):
        return nn.Conv(4, (3, 3), use_bias=False).apply({'params': {'kernel': kernel}}, x)

    found, expected = (jax.grad(functools.partial(loss, each), argnums=(0, 1)) for each in (way, reference))
    outputs = way, reference
    if lanes:
        found, expected, *outputs = map(jax.vmap, (found, expected, *outputs))
    found, expected, *outputs = map(jax.jit, (found, expected, *outputs))
    np.testing.assert_allclose(outputs[0](x, kernel), outputs[1](x, kernel), atol=1e-5)
    for ours, wanted in zip(found(x, kernel), expected(x, kernel), strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-4)


@pytest.mark.parametrize('way', [convolution.im2col, convolution.winograd])
def test_both_ways_to_convolve_round_a_sum_of_576_products_to_a_few_millionths(way):
    x, kernel, weights = random((2, 16, 15, 64)), random((3, 3, 64, 8), 1), random((2, 16, 15, 8), 2)
    x = x.at[:, :, :6].set(0)

    def exact(x, kernel):
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return sum(padded[:, i : i + 16, j : j + 15] @ kernel[i, j] for i in range(3) for j in range(3))

    def exact_gradients(x, kernel, weights):
        inputs, outputs = (np.pad(each, ((0, 0), (1, 1), (1, 1), (0, 0))) for each in (x, weights))
        of_x, of_kernel = np.zeros_like(x), np.zeros_like(kernel)
        for i, j in np.ndindex(3, 3):
            of_x += outputs[:, 2 - i : 18 - i, 2 - j : 17 - j] @ kernel[i, j].T
            of_kernel[i, j] = np.einsum('bhwc,bhwf->cf', inputs[:, i : i + 16, j : j + 15], weights)
        return of_x, of_kernel

    doubles = [np.asarray(each, np.float64) for each in (x, kernel, weights)]
    gradients = jax.jit(jax.grad(lambda x, kernel: jnp.sum(weights * way(x, kernel)), argnums=(0, 1)))
    expected = (exact(*doubles[:2]), *exact_gradients(*doubles))
    output = jax.jit(way)(x, kernel)
    np.testing.assert_array_equal(output == 0, expected[0] == 0)  # black stays black
    for found, wanted in zip((output, *gradients(x, kernel)), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=4e-6 * np.abs(wanted).max())


@pytest.mark.parametrize('shape', [(2, 8, 8, 3), (1, 7, 5, 2)])
def test_max_pool_equals_nn_max_pool_in_output_and_gradient(shape):
    x = random(shape)

    def loss(pool, x):
        return jnp.sum(jnp.sin(pool(x)))

    def reference(x):
        return nn.max_pool(x, (2, 2), (2, 2))

    np.testing.assert_array_equal(layers.max_pool2x2(x), reference(x))
    np.testing.assert_allclose(
        jax.grad(loss, argnums=1)(layers.max_pool2x2, x), jax.grad(loss, argnums=1)(reference, x), atol=1e-6
    )


@pytest.mark.parametrize('shape', [(2, 8, 8, 3), (1, 7, 5, 2)])
def test_gathered_patches_equal_concatenated_ones_in_output_and_gradient(shape):
    x, weights = random(shape), random((*shape[:3], 9 * shape[3]), 1)
    ways, seen = (convolution.gathered_patches, convolution.concatenated_patches), windows.Window()
    np.testing.assert_array_equal(*(way(x, seen) for way in ways))
    np.testing.assert_array_equal(*(jax.grad(lambda x, way=way: jnp.sum(weights * way(x, seen)))(x) for way in ways))


@pytest.mark.parametrize('shape', [(2, 8, 8, 3), (1, 7, 5, 2)])
def test_pooling_by_place_equals_relu_and_nn_max_pool_in_output_and_gradient(shape):
    x = random(shape) - 0.5  # so that some maxima are below zero

    def loss(pool, x):
        return jnp.sum(jnp.sin(pool(x)))

    def reference(x):
        return nn.max_pool(nn.relu(x), (2, 2), (2, 2))

    ours = layers.relu_max_pool2x2_by_place
    assert (np.asarray(reference(x)) == 0).any()
    np.testing.assert_array_equal(ours(x), reference(x))
    np.testing.assert_array_equal(layers.relu_max_pool2x2(x), reference(x))
    np.testing.assert_allclose(jax.grad(loss, argnums=1)(ours, x), jax.grad(loss, argnums=1)(reference, x), atol=1e-6)


def test_of_equal_maxima_the_first_gets_the_gradient_by_place():
    gradient = jax.grad(lambda x: layers.relu_max_pool2x2_by_place(x).sum())(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[1, 0], [0, 0]])


def test_the_global_maximum_has_the_gradient_of_jnp_max_and_of_equal_maxima_the_first_gets_it():
    x = random((2, 3, 4, 5))
    np.testing.assert_array_equal(layers.global_max(x), x.max(axis=(1, 2)))
    ways = layers.global_max, lambda x: x.max((1, 2))
    gradients = (jax.grad(lambda x, way=way: jnp.sin(way(x)).sum())(x) for way in ways)
    np.testing.assert_allclose(*gradients, atol=1e-6)
    gradient = jax.grad(lambda x: layers.global_max(x).sum())(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[1, 0], [0, 0]])


@pytest.mark.parametrize(
    'layer',
    [
        lambda x: convolution.im2col(x, random((3, 3, 2, 4), 1)),
        lambda x: convolution.winograd(x, random((3, 3, 2, 4), 1)),
        layers.max_pool2x2,
    ],
)
@pytest.mark.slow
def test_layers_are_the_same_eager_jitted_and_vmapped(layer):
    x = random((3, 6, 6, 2))
    eager = layer(x)
    np.testing.assert_allclose(jax.jit(layer)(x), eager, atol=1e-5)
    one_by_one = jax.vmap(lambda image: layer(image[None])[0])(x)
    np.testing.assert_allclose(one_by_one, eager, atol=1e-5)


def compiled_gradient(config, size, lanes=0):
    """Of a batch of two images with respect to the weights, of as many sets of weights as there are lanes."""
    model = models.create(config)
    x = jax.ShapeDtypeStruct((2, size, size, 1), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    gradient = jax.grad(lambda params, x: model.apply(params, x).sum())
    if lanes:
        gradient = jax.vmap(gradient, in_axes=(0, None))
        params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((lanes, *leaf.shape), leaf.dtype), params)
    return jax.jit(gradient).lower(params, x).compile()


@pytest.mark.parametrize('backend', ['cpu', 'gpu'])
@pytest.mark.parametrize('name', BLOCKS)
@pytest.mark.parametrize('lanes', [0, 3])
def test_a_compiled_gradient_has_no_convolution_and_no_scatter(name, lanes, backend, monkeypatch):
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)  # a CPU compiles also what is meant for a GPU
    text = compiled_gradient(model_config(name), 64, lanes).as_text()
    assert 'dot(' in text
    assert 'convolution(' not in text
    assert 'scatter(' not in text


@pytest.mark.parametrize('name', BLOCKS)
@pytest.mark.slow
def test_what_a_gpu_computes_equals_what_a_cpu_computes(name, monkeypatch):
    model, x = models.create(model_config(name)), random((2, 32, 32, 1))
    params = model.init(jax.random.key(0), x)

    def loss(params):
        return jnp.sum(jnp.sin(model.apply(params, x)))

    wanted = jax.jit(jax.value_and_grad(loss))(params)
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    found = jax.jit(jax.value_and_grad(loss))(params)
    jax.tree.map(lambda *both: np.testing.assert_allclose(*both, atol=1e-4), found, wanted)


def test_the_papers_cnn_costs_the_multiplications_and_the_bytes_that_its_layers_add_up_to():
    # For 2 images: 36 products per tile instead of 144 in the second and third layer, forward and for both gradients.
    # As much again, at most, for the maps into and out of tiles, the first layer and all that is elementwise.
    direct = 2 * 9 * (32 * 64 * 64 * 64 + 64 * 128 * 32 * 32)
    products = 2 * (3 * direct / 4)
    # Bytes: what stands between the layers, float32, is written and read, and so are, twice, its gradients. As much
    # again, at most, for what is computed on the way, such as maps of tiles in another order.
    first = 32 * 128 * 128 + 32 * 64 * 64  # a convolution's output, and that pooled
    second = 36 * 16 * 16 * (32 + 32 + 64) + 64 * 64 * 64 + 64 * 32 * 32  # tiles, mapped, multiplied; output, pooled
    third = 36 * 8 * 8 * (64 + 64 + 128) + 128 * 32 * 32
    moved = 2 * 4 * (first + second + third) * 2 * 3
    counted = compiled_gradient(base.get_config().model, 128).cost_analysis()
    assert products < counted['flops'] < 2 * products
    assert moved < counted['bytes accessed'] < 2 * moved


def test_dropout_keeps_the_mean_and_drops_the_given_share():
    x = jnp.ones((64, 1000))
    keys = jax.random.split(jax.random.key(0), 64)
    dropped = layers.dropout(x, jnp.float32(0.3), keys)
    assert abs(float((dropped == 0).mean()) - 0.3) < 0.01
    assert abs(float(dropped.mean()) - 1) < 0.01
    np.testing.assert_array_equal(layers.dropout(x, jnp.float32(0), keys), x)


def test_dropout_of_an_image_depends_on_its_key_alone():
    x = random((4, 50))
    keys = jax.random.split(jax.random.key(0), 4)
    whole = layers.dropout(x, jnp.float32(0.5), keys)
    half = layers.dropout(x[2:], jnp.float32(0.5), keys[2:])
    np.testing.assert_array_equal(whole[2:], half)
    assert not np.array_equal(whole[0] == 0, whole[1] == 0)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('name', BLOCKS)
def test_every_model_gives_one_float32_logit_per_image_and_float32_weights(name, dtype):
    model = models.create(model_config(name, dtype))
    x = random((3, 16, 16, 1))
    params = model.init(jax.random.key(0), x)
    logits = model.apply(params, x)
    assert (logits.shape, logits.dtype) == ((3,), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype('float32')}


@pytest.mark.parametrize('name', BLOCKS)
def test_bfloat16_changes_logits_a_little_only(name):
    x = random((3, 16, 16, 1))
    exact, rounded = (models.create(model_config(name, dtype)) for dtype in ('float32', 'bfloat16'))
    params = exact.init(jax.random.key(0), x)
    difference = np.abs(exact.apply(params, x) - rounded.apply(params, x))
    assert 0 < difference.max() < 0.1


@pytest.mark.parametrize('cell', ['lstm', 'gru'])
@pytest.mark.slow
def test_a_recurrent_model_reads_the_rows_from_top_to_bottom(cell):
    model = models.create(model_config(f'cnn_{cell}'))
    x = random((2, 16, 16, 1))
    params = model.init(jax.random.key(0), x)
    assert not np.allclose(model.apply(params, x), model.apply(params, x[:, ::-1]), atol=1e-4)

    features = layers.ConvTrunk((4, 6, 8)).apply({'params': params['params']['trunk']}, x)  # [2, 4, 4, 8]
    reference = {'lstm': nn.OptimizedLSTMCell, 'gru': nn.GRUCell}[cell](64)
    carry = reference.initialize_carry(jax.random.key(0), (2, 32))
    for row in range(4):
        carry, output = reference.apply({'params': params['params'][cell]}, carry, features[:, row].reshape(2, 32))
    head = params['params']['head']['logit']
    np.testing.assert_allclose(model.apply(params, x), (output @ head['kernel'] + head['bias'])[:, 0], atol=1e-5)


@pytest.mark.parametrize('cell', ['lstm', 'gru'])
def test_the_weights_of_a_recurrent_layer_are_those_that_flax_would_draw(cell):
    reference = {'lstm': nn.OptimizedLSTMCell, 'gru': nn.GRUCell}[cell](5)
    x = random((2, 4, 3))
    carry = reference.initialize_carry(jax.random.key(0), (2, 3))
    expected = reference.init(jax.random.key(1), carry, x[:, 0])
    found = recurrent.Recurrent(cell, 5).init(jax.random.key(1), x)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize('cell', ['lstm', 'gru'])
def test_no_row_reads_the_weights_of_the_inputs_again(cell):
    layer, x = recurrent.Recurrent(cell, 5), random((2, 4, 300))
    params = layer.init(jax.random.key(0), x)
    gradient = jax.make_jaxpr(jax.grad(lambda params: layer.apply(params, x).sum()))(params)
    scans = [equation for equation in gradient.eqns if equation.primitive.name == 'scan']
    assert len(scans) == 2  # forward and backward
    assert all(300 not in variable.aval.shape for scan in scans for variable in (*scan.invars, *scan.outvars))


@pytest.mark.parametrize('name', having())
def test_the_layer_table_counts_every_parameter(name):
    config, size = model_config(name), 64
    images = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)
    params = jax.eval_shape(lambda x: models.create(config).init(jax.random.key(0), x), images)
    rows = models.describe(config, size)
    assert sum(row.parameters for row in rows) == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert len(rows) < 30


@pytest.mark.parametrize('name', having('model.filters', 'model.hidden_units'))
def test_the_layer_table_begins_with_the_first_convolution_and_ends_with_the_head(name):
    config = model_config(name)
    config.hidden_units = 5
    rows = models.describe(config, 16)
    assert rows[0] == ('trunk/conv1', (16, 16, 4), 40)
    assert rows[-2:] == [('head/hidden', (5,), rows[-2].parameters), ('head/logit', (1,), 6)]


def test_the_papers_cnn_has_the_parameters_that_its_layers_add_up_to():
    rows = models.describe(base.get_config().model, 128)
    assert [row.parameters for row in rows] == [9 * 32 + 32, 9 * 32 * 64 + 64, 9 * 64 * 128 + 128, 129]


def test_an_unknown_model_is_refused():
    config = model_config()
    config.name = 'resnet'
    with pytest.raises(ValueError, match=r"'resnet'; expected one of cnn, cnn_lstm, cnn_gru, lenet5, "):
        models.create(config)


@pytest.mark.parametrize('pooling', cnn.POOLINGS)
@pytest.mark.slow
def test_the_head_sees_the_last_block_pooled_as_asked(pooling):
    config = model_config()
    config.pooling, config.convs, config.norm = pooling, 2, 'group'
    x = random((2, 16, 16, 1))
    model = models.create(config)
    params = model.init(jax.random.key(0), x)['params']
    features = layers.ConvTrunk((4, 6, 8), 2, 'group').apply({'params': params['trunk']}, x)  # [2, 4, 4, 8]
    reduced = {'mean': [features.mean((1, 2))], 'max': [features.max((1, 2))]}
    pooled = np.concatenate(reduced.get(pooling) or reduced['mean'] + reduced['max'], axis=-1)
    expected = nn.Dense(1).apply({'params': params['head']['logit']}, pooled)[:, 0]
    np.testing.assert_allclose(model.apply({'params': params}, x), expected, rtol=1e-5, atol=1e-5)
    assert sum(name.startswith('conv') for name in params['trunk']) == 6


def test_operations_are_two_for_each_weight_at_each_place():
    config = base.get_config().model
    by_hand = 9 * (32 * 128**2 + 32 * 64 * 64**2 + 64 * 128 * 32**2) + 128
    assert models.operations(config, 128) == 2 * by_hand
    config.name, features, units, steps = 'cnn_lstm', 32 * 128, 64, 32
    assert models.operations(config, 128) == 2 * (by_hand - 128 + steps * 4 * (features + units) * units + units)


def test_operations_of_resnet18_are_the_published_ones():
    config = base.get_config().model
    config.name, config.norm = 'resnet18', 'batch'
    published = 1_814_073_344  # multiplications at 224 x 224 pixels, with three channels and 1000 classes
    assert models.operations(config, 224) == 2 * (published - 2 * 7**2 * 64 * 112**2 - 512 * 999)
