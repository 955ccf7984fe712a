import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bhcnet_jax.configs import base
from bhcnet_jax.training import optim


def rates(epochs, steps, **settings):
    config = base.get_config().optimizer
    config.update(settings)
    return optim.learning_rates(config, epochs, steps)


def test_the_rate_rises_linearly_to_its_peak_and_falls_as_a_cosine():
    table = rates(4, 25, peak_lr=1e-2, warmup=0.1)
    assert (table.shape, table.dtype) == ((4, 25), np.float32)
    flat = table.ravel()
    np.testing.assert_allclose(flat[:11], 1e-2 * np.arange(11) / 10, rtol=1e-5)
    expected = 1e-2 * 0.5 * (1 + np.cos(np.pi * np.arange(90) / 90))
    np.testing.assert_allclose(flat[10:], expected, atol=1e-8)


def test_without_warm_up_the_first_step_has_the_peak_rate():
    assert rates(2, 5, peak_lr=3e-3, warmup=0.0)[0, 0] == pytest.approx(3e-3)


def test_a_phase_of_one_step_is_possible():
    assert np.isfinite(rates(1, 1)).all()


@pytest.mark.parametrize(('warmup', 'steps'), [(0.5, 1), (0.6, 1), (0.9, 1), (0.84, 3), (0.9, 2), (0.9, 4), (0.9, 5)])
def test_a_warm_up_of_nearly_all_steps_ends_at_the_peak(warmup, steps):
    table = rates(1, steps, peak_lr=1e-2, warmup=warmup).ravel()
    np.testing.assert_allclose(table, 1e-2 * np.arange(steps) / (steps - 1) if steps > 1 else [1e-2], rtol=1e-5)


@pytest.mark.parametrize('decay', [0.0, 0.5, 0.999])
def test_a_running_mean_is_corrected_for_its_start(decay):
    params = {'kernel': jnp.array([1.0])}
    adam = optim.optimizer(0.1, 0.0)
    values, state, mean = np.random.default_rng(0).normal(size=40), adam.init(params), 1e6
    for steps, value in enumerate(values, start=1):
        with jax.numpy_dtype_promotion('standard'):
            _, state = adam.update({'kernel': jnp.array([0.5])}, state, params)
        kept = optim.kept_share(jnp.float32(decay), state)
        mean = float(kept) * mean + (1 - float(kept)) * value
        weights = decay ** np.arange(steps - 1, -1, -1.0)
        assert mean == pytest.approx(np.average(values[:steps], weights=weights), rel=1e-3, abs=1e-3)
    assert kept == 0 or decay > 0  # without a decay exactly the new weights


def test_rate_and_weight_decay_may_be_traced():
    params = {'kernel': jnp.array([1.0, -2.0])}

    @jax.jit
    def step(rate, decay):
        adam = optim.optimizer(rate, decay)
        with jax.numpy_dtype_promotion('standard'):
            return adam.update({'kernel': jnp.array([0.5, 0.5])}, adam.init(params), params)[0]['kernel']

    # Adam's first step is -rate * sign(gradient); decoupled decay adds -rate * decay * weight.
    np.testing.assert_allclose(step(0.1, 0.0), [-0.1, -0.1], rtol=1e-4)
    np.testing.assert_allclose(step(0.1, 0.2), [-0.12, -0.06], rtol=1e-4)
    assert step._cache_size() == 1
