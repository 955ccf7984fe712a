"""Convolutions and maxima of the published networks' windows are those of XLA, forward and backward, in lanes too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from bhcnet_jax.models import convolution, windows

pytestmark = pytest.mark.slow

# Size, stride, margin: of LeNet-5, AlexNet, GoogLeNet, ResNet, EfficientNet.
CONVOLUTIONS = [
    (5, 1, 0), (11, 4, 2), (5, 1, 2), (7, 2, 'centred'), (3, 2, 'centred'), (1, 1, 'centred'), (1, 2, 'centred'),
    (3, 2, 'same'),
]  # fmt: skip
DEPTHWISE = [(3, 1, 'same'), (5, 2, 'same')]
MAXIMA = [(3, 2, 0), (3, 2, 'ceil'), (3, 1, 'centred'), (3, 2, 'centred')]


def random(shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def with_gradients(function, *arguments):
    """The output and the gradients of a sum that weighs every output, of two lanes under `vmap`."""

    def loss(*arguments):
        output = function(*arguments)
        return jnp.sum(jnp.sin(output)), output

    def one(*arguments):
        gradients, output = jax.grad(loss, argnums=tuple(range(len(arguments))), has_aux=True)(*arguments)
        return output, gradients

    return jax.jit(jax.vmap(one))(*arguments)


def assert_alike(found, expected):
    jax.tree.map(lambda *both: np.testing.assert_allclose(*both, rtol=1e-5, atol=1e-4), found, expected)


@pytest.mark.parametrize('backend', ['cpu', 'gpu'])
@pytest.mark.parametrize(('size', 'stride', 'margin'), CONVOLUTIONS)
def test_a_convolution_equals_that_of_xla_with_a_kernel_for_each_lane(size, stride, margin, backend, monkeypatch):
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    x, kernel = random((2, 2, 17, 14, 2)), random((2, size, size, 2, 3), 1) / size
    seen = windows.window(x.shape[1:], size, stride, margin)

    def reference(x, kernel):
        layout = ('NHWC', 'HWIO', 'NHWC')
        return lax.conv_general_dilated(x, kernel, (stride,) * 2, seen.margin, dimension_numbers=layout)

    expected = with_gradients(reference, x, kernel)
    assert expected[0].shape[2:4] == seen.outputs(x.shape[1:])
    assert_alike(with_gradients(lambda x, kernel: convolution.convolve(x, kernel, seen), x, kernel), expected)


@pytest.mark.parametrize(('size', 'stride', 'margin'), DEPTHWISE)
def test_a_depthwise_convolution_equals_that_of_xla(size, stride, margin):
    x, kernel = random((2, 2, 9, 8, 4)), random((2, size, size, 1, 4), 1)
    seen = windows.window(x.shape[1:], size, stride, margin)

    def reference(x, kernel):
        layer = nn.Conv(4, (size, size), stride, 'SAME', use_bias=False, feature_group_count=4)
        return layer.apply({'params': {'kernel': kernel}}, x)

    expected = with_gradients(reference, x, kernel)
    assert_alike(with_gradients(lambda x, kernel: convolution.depthwise(x, kernel, seen), x, kernel), expected)


@pytest.mark.parametrize(('size', 'stride', 'margin'), MAXIMA)
def test_maxima_equal_those_of_nn_max_pool(size, stride, margin):
    x = random((2, 2, 9, 8, 3)) - 3  # below zero, so that a margin of zeros would show
    seen = windows.window(x.shape[1:], size, stride, margin)
    expected = with_gradients(lambda x: nn.max_pool(x, (size, size), (stride, stride), seen.margin), x)
    assert_alike(with_gradients(lambda x: windows.max_pool(x, seen), x), expected)


def test_equal_maxima_share_the_gradient():
    seen = windows.Window(3, 1, ((0, 0), (0, 0)))
    gradient = jax.grad(lambda x: windows.max_pool(x, seen).sum())(jnp.ones((1, 3, 3, 1)))
    assert gradient.sum() == 1 and (gradient > 0).all()


@pytest.mark.parametrize(('side', 'outputs'), [(112, 56), (56, 28), (14, 7), (7, 3), (2, 1)])
def test_a_margin_of_ceil_sees_the_last_pixels(side, outputs):
    shape = (1, side, side, 1)
    assert windows.window(shape, 3, 2, 'ceil').outputs(shape) == (outputs, outputs)


@pytest.mark.parametrize('layer', ['convolve', 'depthwise', 'max_pool'])
def test_lanes_need_no_grouped_convolution_and_no_scatter(layer):
    x = random((2, 2, 9, 8, 2))
    seen = windows.window(x.shape[1:], 3, 2)
    kernel = random((2, 3, 3, 1 if layer == 'depthwise' else 2, 2), 1)

    def loss(x, kernel):
        apply = windows.max_pool if layer == 'max_pool' else getattr(convolution, layer)
        return apply(x, *(() if layer == 'max_pool' else (kernel,)), seen).sum()

    text = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1)))).lower(x, kernel).as_text()
    assert 'convolution' not in text and 'scatter' not in text
