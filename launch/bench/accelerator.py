"""What a GPU makes of the paper's network: images/s by lanes and precision, beside PyTorch's; what bounds each part.

It runs on a CPU too, where its figures say little.
"""

import contextlib
import importlib.util
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from contender import PEAK_SIZE
from contest import INSTALL, TOLERANCES, Contestant, ContestError, Entry, Team, prepare, race, spread
from ml_collections import ConfigDict

from bhcnet_jax import models
from bhcnet_jax.configs import balanced
from bhcnet_jax.datasets.input_pipeline import ImageSet
from bhcnet_jax.models import convolution, layers
from bhcnet_jax.plan import splits, trial
from bhcnet_jax.training import augment, optim, steps
from bhcnet_jax.training.engine import Engine
from bhcnet_jax.training.lanes import stack

LANES = (1, 8, 32)  # trials that train together
BOUND_LANES = 8  # of the parts that are measured by themselves
TRAINED = 1000  # trainings of the paper's length whose time is told
COPIED = 2**26  # float32 values that no cache holds
CALLS = 10  # of a part in a turn
MODELS = 32  # of PyTorch that vmap trains together
PROCESSES = 8  # of PyTorch that share the device
Part = tuple[Callable[..., Any], tuple[Any, ...], int]  # function, arguments, operations of its convolutions


def measure_accelerator(folder: pathlib.Path, image_set: ImageSet, rounds: int, count: int) -> dict[str, Any]:
    """By dtype: images/s by lanes, PyTorch's by variant, seconds of one training and of many, and `measure_bounds`.

    count: images of a lane's epoch. Epochs include augmentation and evaluation; median, lowest and highest of `rounds`.
    """
    theirs = measure_torch(folder, image_set, rounds, count)
    epochs = balanced.get_config().balanced.epochs * balanced.get_config().augment.samples / count
    measured = {}
    for dtype in TOLERANCES:
        config, lane = _one_lane(image_set, dtype, count)
        seconds = {lanes: _epochs(config, image_set, lane, lanes, rounds) for lanes in LANES}
        rates = {lanes: [lanes * count / each for each in seconds[lanes]] for lanes in LANES}
        best = max(LANES, key=lambda lanes: statistics.median(rates[lanes]))
        measured[dtype] = {
            'images/s by lanes': {lanes: spread(rates[lanes]) for lanes in LANES},
            'lanes of most images/s': best,
            "PyTorch's images/s": theirs[dtype],
            "times as fast as PyTorch's best": _times_as_fast(rates[best], theirs[dtype]),
            f'seconds of {TRAINED} trainings': spread([TRAINED / best * epochs * each for each in seconds[best]]),
            'seconds of one training by itself': spread([epochs * each for each in seconds[1]]),
            'bounds': measure_bounds(image_set, dtype, min(best, BOUND_LANES), rounds),
        }
    return measured


def measure_torch(folder: pathlib.Path, image_set: ImageSet, rounds: int, count: int) -> dict[str, Any]:
    """By dtype, images/s of each of PyTorch's variants in the same training, without evaluation; or why there are none.

    Each is a process of its own, or PROCESSES of them at once, on the device that JAX has.
    """
    if importlib.util.find_spec('torch') is None:
        return dict.fromkeys(TOLERANCES, f'not measured: torch is not installed: {INSTALL}')
    prepare(folder, image_set.images, image_set.labels, **{'augment.samples': count, 'balanced.epochs': rounds + 1})
    return {
        dtype: {name: _race_torch(folder, variant, members, rounds, count) for name, (variant, members) in each.items()}
        for dtype, each in ((dtype, torch_variants(dtype)) for dtype in TOLERANCES)
    }


def torch_variants(dtype: str) -> dict[str, tuple[dict[str, Any], int]]:
    """The variant of `rival_torch_gpu.py`, and how many processes of it train at once."""
    common = {'dtype': dtype, 'device': 'cpu' if jax.default_backend() == 'cpu' else 'cuda', 'way': 'eager'}
    graph = {**common, 'way': 'graph'}
    return {
        'eager': (common, 1),
        'eager, channels_last': ({**common, 'channels_last': True}, 1),
        'compiled': ({**common, 'compile': True}, 1),
        'CUDA graph': (graph, 1),
        f'vmap over {MODELS} models': ({**common, 'way': 'vmap', 'models': MODELS}, 1),
        f'{PROCESSES} processes': (common, PROCESSES),
        f'{PROCESSES} processes with CUDA graphs': (graph, PROCESSES),
    }


def _race_torch(
    folder: pathlib.Path, variant: dict[str, Any], members: int, rounds: int, count: int
) -> dict[str, float] | str:
    """Images/s, or why it did not run."""
    visible = '' if variant['device'] == 'cpu' else os.environ.get('CUDA_VISIBLE_DEVICES', '0')
    entry = Entry('rival_torch_gpu.py', variant, {'CUDA_VISIBLE_DEVICES': visible})
    images = count * members * variant.get('models', 1)
    try:
        with contextlib.ExitStack() as stack:
            team = Team([stack.enter_context(Contestant(entry, folder, folder / 'cache')) for _ in range(members)])
            return spread([images / seconds for seconds in race({'': team}, rounds)['']])
    except ContestError as error:
        return f'did not run: {error}'


def _times_as_fast(mine: list[float], theirs: dict[str, Any] | str) -> float | None:
    """The ratio of medians; None if nothing of theirs ran."""
    rates = [] if isinstance(theirs, str) else [each['median'] for each in theirs.values() if not isinstance(each, str)]
    return statistics.median(mine) / max(rates) if rates else None


def _one_lane(image_set: ImageSet, dtype: str, count: int) -> tuple[ConfigDict, steps.Lane]:
    config = balanced.get_config()
    config.model.dtype, config.augment.samples = dtype, count
    config.dataset.image_size = image_set.images.shape[1]
    split = splits.split(image_set.labels, np.arange(len(image_set.labels)), 'holdout', 10, 0, 0)
    lane = stack([trial.make(config, image_set.labels, split, '')], 0)
    rates = optim.learning_rates(config.optimizer, config.balanced.epochs, steps.steps_per_epoch(config))
    return config, lane.replace(learning_rates=rates[None, 0])


def _epochs(config: ConfigDict, image_set: ImageSet, lane: steps.Lane, lanes: int, rounds: int) -> list[float]:
    """Seconds of `rounds` epochs of equal lanes on one device, after one that is not counted."""
    engine = Engine(config, image_set.images, image_set.labels, lanes, lanes=lanes)
    repeated = jax.tree.map(lambda leaf: np.repeat(leaf, lanes, axis=0), lane)
    states, _ = engine.epoch(engine.to_devices(engine.init(repeated)), repeated)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        states, _ = engine.epoch(states, repeated)
        seconds.append(time.perf_counter() - start)
    return seconds


def measure_bounds(image_set: ImageSet, dtype: str, lanes: int, rounds: int) -> dict[str, Any]:
    """What bounds each part of a training step of `lanes` lanes: memory or arithmetic.

    Operations and bytes are those that XLA counts in the part's compiled program, with its gradients; of operations at
    least those of its convolutions, since XLA does not count what a GPU's library multiplies. The time that arithmetic
    needs at the least is operations / peak of a large matrix product in the same dtype, and memory bytes / its measured
    speed; the longer of them is the bound, and what the part takes is measured beside it. A cache spares the memory
    bytes, so that a part may take less than its bound: on a CPU most do.
    """
    peak, bandwidth = _peak(dtype, rounds), _bandwidth(rounds)
    parts = {}
    for name, (part, arguments, products) in _parts(image_set, dtype, lanes).items():
        compiled = jax.jit(part).lower(*arguments).compile()
        counted = compiled.cost_analysis()
        flops, accessed = max(counted['flops'], products), counted['bytes accessed']
        least = {'arithmetic': flops / peak, 'memory': accessed / bandwidth}
        parts[name] = {
            'flops': flops,
            'bytes': accessed,
            'bound by': max(least, key=least.get),
            'least seconds': max(least.values()),
            'seconds': spread(_seconds(lambda run=compiled, given=arguments: run(*given), rounds)),
        }
    return {'peak, FLOP/s': peak, 'memory, bytes/s': bandwidth, 'parts': parts}


def _parts(image_set: ImageSet, dtype: str, lanes: int) -> dict[str, Part]:
    """Parts of a step of lanes: the changes of a batch, and the blocks of the network with their gradients.

    A batch is as many images as the training step computes at a time.
    """
    config = balanced.get_config()
    batch, size = steps.micro_batch_of(config.batch_size, models.at_once(config.model)), image_set.images.shape[1]
    strengths = {name: jnp.float32(value) for name, value in config.augment.affine.to_dict().items()}
    keys = jax.random.split(jax.random.key(0), (lanes, batch))
    images = jnp.broadcast_to(image_set.images[np.arange(batch) % len(image_set.images)], (lanes, batch, size, size))

    def change(key: jax.Array, image: jax.Array) -> jax.Array:
        return augment.augment(key, steps.to_unit(image), strengths, config.augment.policy)

    parts: dict[str, Any] = {'augmentation': (jax.vmap(jax.vmap(change)), (keys, images), 0)}
    channels = 1
    for number, features in enumerate(config.model.filters, 1):
        last = number == len(config.model.filters)
        maps = jax.random.normal(jax.random.key(1), (lanes, batch, size, size, channels), dtype)
        kernels = jax.random.normal(jax.random.key(2), (lanes, 3, 3, channels, features), dtype)

        def block(kernel: jax.Array, x: jax.Array, pools: bool = not last) -> jax.Array:
            x = convolution.conv3x3(x, kernel)
            return jnp.sum(layers.relu_max_pool2x2(x) if pools else jax.nn.relu(x), dtype=jnp.float32)

        wanted = (0,) if number == 1 else (0, 1)  # nothing needs the gradient of the images
        products = 2 * kernels[0].size * maps.size // channels * (1 + len(wanted))
        parts[f'block {number}'] = (jax.vmap(jax.grad(block, wanted)), (kernels, maps), products)
        size, channels = size // 2, features
    return parts


def _seconds(run: Callable[[], Any], rounds: int) -> list[float]:
    """Of a call, the mean of CALLS, in each round."""
    jax.block_until_ready(run())
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready([run() for _ in range(CALLS)])
        seconds.append((time.perf_counter() - start) / CALLS)
    return seconds


def _peak(dtype: str, rounds: int) -> float:
    """FLOP/s of a large matrix product."""
    size = PEAK_SIZE if jax.default_backend() == 'cpu' else 4 * PEAK_SIZE
    a, b = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
    product = jax.jit(jnp.dot)
    return 2 * size**3 / min(_seconds(lambda: product(a, b), rounds))


def _bandwidth(rounds: int) -> float:
    """Bytes/s read and written where a large array is changed in its place."""
    add = jax.jit(lambda values: values + 1, donate_argnums=0)
    values = add(jnp.zeros(COPIED))
    jax.block_until_ready(values)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(CALLS):
            values = add(values)
        jax.block_until_ready(values)
        seconds.append((time.perf_counter() - start) / CALLS)
    return 2 * values.nbytes / min(seconds)
