"""The stacked autoencoder: each layer reconstructs what it sees with its own kernel, and learns from nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bhcnet_jax import models
from bhcnet_jax.errors import UserError
from bhcnet_jax.models import autoencoder
from bhcnet_jax.models.family import RECONSTRUCTIONS
from bhcnet_jax.plan import trial
from lanes import random_variables, tiny_config

CONFIG = tiny_config('autoencoder')


def images(count=4, size=16):
    return jax.random.uniform(jax.random.key(0), (count, size, size, 1))


def losses_of(params, x, dtype='float32'):
    """Logits, and the loss of each layer from below: float32 [B]."""
    config = tiny_config('autoencoder', model__dtype=dtype)
    logits, changed = models.create(config.model).apply({'params': params}, x, mutable=[RECONSTRUCTIONS])
    return logits, jax.tree.leaves(changed[RECONSTRUCTIONS])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_each_layer_reconstructs_what_it_sees_with_its_own_kernel():
    params, x = random_variables(CONFIG)['params'], images(size=64)
    logits, losses = jax.jit(losses_of)(params, x)
    seen = np.asarray(x, np.float64).reshape(4, 32, 2, 32, 2).mean((2, 4)).reshape(4, -1)
    assert len(losses) == len(autoencoder.LAYERS) == 3
    for name, found in zip(autoencoder.LAYERS, losses, strict=True):
        kernel, bias, back = (params[name][part].astype(np.float64) for part in ('kernel', 'bias', 'bias_back'))
        code = sigmoid(seen @ kernel + bias)
        rebuilt = sigmoid(code @ kernel.T + back)
        expected = -(seen * np.log(rebuilt) + (1 - seen) * np.log(1 - rebuilt)).mean(axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        seen = code
    expected = seen @ params['head']['logit']['kernel'] + params['head']['logit']['bias']
    np.testing.assert_allclose(logits, expected[:, 0], rtol=1e-4, atol=1e-6)


def test_a_reconstruction_teaches_its_own_layer_alone_and_a_logit_all():
    params, x = random_variables(CONFIG)['params'], images()
    learning = []
    for index in range(3):
        gradient = jax.jit(jax.grad(lambda params, index=index: losses_of(params, x)[1][index].sum()))(params)
        learning.append({name for name, part in gradient.items() if any(map(np.any, jax.tree.leaves(part)))})
    assert learning == [{name} for name in autoencoder.LAYERS]
    gradient = jax.jit(jax.grad(lambda params: losses_of(params, x)[0].sum()))(params)
    assert all(gradient[name]['kernel'].any() for name in autoencoder.LAYERS)
    assert not any(gradient[name]['bias_back'].any() for name in autoencoder.LAYERS)


def test_the_way_back_is_not_computed_unless_asked_for():
    params, x = random_variables(CONFIG)['params'], images()
    model = models.create(CONFIG.model)
    sizes = [jax.jit(apply).lower(params, x).compile().as_text().count('dot(')
             for apply in (lambda params, x: model.apply({'params': params}, x), losses_of)]  # fmt: skip
    assert sizes[1] == sizes[0] + 3


def test_the_loss_and_the_logits_are_float32_in_bfloat16():
    params = random_variables(CONFIG)['params']
    exact, rounded = (losses_of(params, images(), dtype=dtype) for dtype in ('float32', 'bfloat16'))
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded)} == {jnp.dtype('float32')}
    for found, expected in zip(jax.tree.leaves(rounded), jax.tree.leaves(exact), strict=True):
        assert 0 < np.abs(found - expected).max() < 0.1


def test_a_width_scales_the_units_and_a_mask_head_is_refused():
    config = tiny_config('autoencoder', model__width=0.5)
    shapes = [row.shape for row in models.describe(config.model, 16)]
    assert shapes == [(256,), (128,), (64,), (1,)]
    config.model.mask_head = True
    with pytest.raises(UserError, match=r'^model\.mask_head is True, but autoencoder has no mask head'):
        trial.check(config)
