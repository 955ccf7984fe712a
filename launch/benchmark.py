"""Measures a recipe's training: images per second, compile seconds and peak memory, as JSON on standard output.

    python launch/benchmark.py --config=balanced --epochs=5

The images are random, since the time does not depend on what they show. Shapes, phases and settings are the recipe's.
Evaluation and augmentation are part of an epoch and of its time.
"""

import argparse
import importlib
import json
import resource
import statistics
import sys
import time

import jax
import numpy as np

from bhcnet_jax import optim, run_dir, splits, trial
from bhcnet_jax.engine import Engine
from bhcnet_jax.input_pipeline import ImageSet


def random_images(count: int, size: int) -> ImageSet:
    """As many images as the real set has, half of them labelled 1."""
    generator = np.random.default_rng(0)
    return ImageSet(
        name='random',
        synthetic=True,
        fingerprint='',
        ids=tuple(map(str, range(count))),
        images=(images := generator.integers(0, 256, (count, size, size), dtype=np.uint8)),
        thumbnails=images,
        labels=np.arange(count, dtype=np.int32) % 2,
        groups=('',) * count,
        pixel_sha256=('',) * count,
        heights=np.full(count, size, np.int32),
        widths=np.full(count, size, np.int32),
        modes=('L',) * count,
        coloured=np.zeros(count, bool),
        file_bytes=np.zeros(count, np.int32),
    )


def measure(config_name: str, epochs: int) -> dict[str, object]:
    """Trains `epochs` epochs of a config's first phase, after compilation.

    Returns images_per_second (training images over the median epoch, augmentation and evaluation included),
    epoch_seconds, compile_seconds, peak_memory_bytes of this process, and what it was measured on.
    """
    config = importlib.import_module(f'bhcnet_jax.configs.{config_name}').get_config()
    image_set = random_images(200, config.dataset.image_size)
    split = splits.split(image_set.labels, np.arange(200), 'holdout', 10, 0, 0)
    trials = [trial.make(config, image_set.labels, split, '')]
    engine = Engine(config, image_set.images, image_set.labels)
    lanes = trial.stack(trials, 0)
    rates = optim.learning_rates(config.optimizer, epochs, lanes.learning_rates.shape[1])
    compile_seconds = engine.compile(lanes)
    states = engine.to_devices(engine.init(lanes))
    seconds = []
    for epoch in range(epochs):
        lanes = lanes.replace(epoch=np.array([epoch], np.int32), learning_rates=rates[None, epoch])
        start = time.perf_counter()
        states, _ = engine.epoch(states, lanes)
        seconds.append(time.perf_counter() - start)
    return {
        'config': config_name,
        'images_per_second': config.augment.samples / statistics.median(seconds),
        'epoch_seconds': seconds,
        'compile_seconds': compile_seconds,
        'peak_memory_bytes': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        'hardware': run_dir.hardware(),
        'jax': jax.__version__,
        'code': run_dir.code_version(),
    }


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--config', default='balanced', help='name of a config that comes with the package')
    parser.add_argument('--epochs', type=int, default=5, help='epochs to train after compilation')
    arguments = parser.parse_args()
    json.dump(measure(arguments.config, arguments.epochs), sys.stdout, indent=2)
    print()
