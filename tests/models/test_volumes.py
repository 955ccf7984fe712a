"""Networks for volumes: their layers equal those of XLA, and what the networks see."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bhcnet_jax.models import convolution, layers


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
