"""Measures this project on this machine; prints JSON on standard output. Figures are in docs/benchmarks.md.

    python launch/bench/benchmark.py --config=balanced --epochs=5  one training: images/s, compile seconds, memory
    python launch/bench/benchmark.py --suite=cpu                   one training against PyTorch and Keras
    python launch/bench/benchmark.py --suite=networks              every network against PyTorch
    python launch/bench/benchmark.py --suite=gpu                   images/s by lanes, PyTorch's, what bounds each part
    python launch/bench/benchmark.py --suite=sweep                 a sweep in one process, 8, 2 side by side, PyTorch
    python launch/bench/benchmark.py --suite=startup               imports, first step, preparation of the images
    python launch/bench/benchmark.py --suite=start                 whole commands, cold and warm
    python launch/bench/benchmark.py --suite=augment               share of augmentation; an affine change in PyTorch
    python launch/bench/benchmark.py --suite=growth                images/s by image size, batch size and lanes
    python launch/bench/benchmark.py --suite=prune                 a sweep of 64 trials, whole and pruned
    python launch/bench/benchmark.py --suite=records               database, expansion of a sweep, time beside epochs

Whole trainings run as real processes on images drawn for the purpose; a single training is measured on random ones,
since its time does not depend on what they show. PyTorch and Keras come with pip install 'bhcnet_jax[bench]'.
"""

import argparse
import contextlib
import importlib
import json
import os
import pathlib
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import pandas as pd
from accelerator import measure_accelerator
from augmenting import measure_augmentation
from contender import peak_memory
from contest import TOLERANCES, ContestError, Entry, measure_cpu, prepare, require, torch_entries
from growth import measure_growth
from ml_collections import ConfigDict
from networks import measure_networks
from PIL import Image
from startup import measure_commands, measure_startup

from bhcnet_jax import machine
from bhcnet_jax.configs import base
from bhcnet_jax.datasets import input_pipeline
from bhcnet_jax.datasets.input_pipeline import ImageSet
from bhcnet_jax.machine import make_every_core_a_device
from bhcnet_jax.plan import splits, sweep, trial
from bhcnet_jax.plan.study import Study
from bhcnet_jax.records.database import Results
from bhcnet_jax.training import optim
from bhcnet_jax.training.engine import Engine, choose_spread
from bhcnet_jax.training.lanes import stack

SUITES = (
    'training', 'cpu', 'networks', 'gpu', 'sweep', 'augment', 'startup', 'start', 'growth', 'prune', 'records',
)  # fmt: skip


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
        class_names=('negative', 'positive'),
        groups=('',) * count,
        pixel_sha256=('',) * count,
        heights=np.full(count, size, np.int32),
        widths=np.full(count, size, np.int32),
        modes=('L',) * count,
        coloured=np.zeros(count, bool),
        file_bytes=np.zeros(count, np.int32),
    )


def measure_training(config_name: str, epochs: int) -> dict[str, Any]:
    """Trains `epochs` epochs of a config's first phase, after compilation.

    Returns images_per_second (training images over the median epoch, augmentation and evaluation included),
    epoch_seconds, compile_seconds and peak_memory_bytes of this process.
    """
    config = importlib.import_module(f'bhcnet_jax.configs.{config_name}').get_config()
    image_set = random_images(200, config.dataset.image_size)
    split = splits.split(image_set.labels, np.arange(200), 'holdout', 10, 0, 0)
    trials = [trial.make(config, image_set.labels, split, '')]
    engine = Engine(config, image_set.images, image_set.labels, spread=choose_spread(config, alone=True))
    lanes = stack(trials, 0)
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
        'peak_memory_bytes': peak_memory(),
    }


# The paper's network; few images per epoch, so that a round takes minutes.
SWEEP_KEYS = {'dataset.name': 'phantom', 'augment.samples': 320, 'balanced.epochs': 3}
SWEEP = ('--config=balanced', *(f'--config.{key}={value}' for key, value in SWEEP_KEYS.items()))
TRIALS = 8


def measure_sweep(folder: pathlib.Path, rounds: int) -> dict[str, Any]:
    """Seconds for 8 trials of the paper's network: one process, 8 after another, 2 side by side; and PyTorch's.

    All from the start of the process to its end, with JAX's compilation cache filled by an earlier run. The two side by
    side are started by launch/sweep.py, each on its share of the cores. PyTorch's script (torch_trial.py) runs once for
    each trial, in the variant that took the shortest for one trial, compilation included with a filled cache.
    Ratios are of the same round.
    """
    require('torch')
    fastest, tried = _prepare_torch(folder)
    measured = []
    for number in range(-1, rounds):  # round -1 prepares the images and fills the cache
        at = folder / str(number)
        times = {
            'one process': _seconds(_main(at / 'one', *SWEEP, f'--sweep=seed=0:{TRIALS}')),
            'one after another': sum(
                _seconds(_main(at / f'seed-{seed}', *SWEEP, f'--config.seed={seed}')) for seed in range(TRIALS)
            ),
            'two side by side': _seconds(_launch(at / 'two', *SWEEP, f'--sweep=seed=0:{TRIALS}', '--shards=2')),
            'PyTorch, one after another': sum(_torch_trial(folder, fastest, seed) for seed in range(TRIALS)),
            'PyTorch, two side by side': _torch_side_by_side(folder, fastest),
        }
        with contextlib.closing(sqlite3.connect(at / 'seed-0' / 'results.sqlite')) as database:
            times['epochs of one trial'] = database.execute('SELECT train_seconds FROM trials').fetchone()[0]
        measured.append(times)
    measured = measured[1:]
    sweeps = [name for name in measured[0] if name != 'epochs of one trial']
    return {
        'seconds': measured,
        'trainings per hour': {
            name: TRIALS * 3600 / statistics.median(each[name] for each in measured) for name in sweeps
        },
        'PyTorch variants, seconds for one trial': tried,
        'one process / best other': [
            each['one process'] / min(each['one after another'], each['two side by side']) for each in measured
        ],
        "one process / best of PyTorch's": [
            each['one process'] / min(each['PyTorch, one after another'], each['PyTorch, two side by side'])
            for each in measured
        ],
        'one process / 8 times the epochs of one trial': [
            each['one process'] / (TRIALS * each['epochs of one trial']) for each in measured
        ],
    }


def _prepare_torch(folder: pathlib.Path) -> tuple[Entry, dict[str, float]]:
    """Writes the task of a trial; the fastest variant for it, and the seconds of each, the second time it runs."""
    image_set = input_pipeline.load(ConfigDict({'name': 'phantom', 'dir': '', 'image_size': 128}))
    prepare(folder / 'torch', image_set.images, image_set.labels, **SWEEP_KEYS)
    tried = {}
    for entry in torch_entries('float32'):
        _torch_trial(folder, entry, 0)
        tried[json.dumps(entry.variant)] = _torch_trial(folder, entry, 0)
    return min(torch_entries('float32'), key=lambda entry: tried[json.dumps(entry.variant)]), tried


def _torch_trial(folder: pathlib.Path, entry: Entry, seed: int, threads: int = 0) -> float:
    """Seconds of a process that trains one trial. threads: 0 for as many as there are cores."""
    script = str(pathlib.Path(__file__).with_name('torch_trial.py'))
    command = [sys.executable, script, str(folder / 'torch'), json.dumps(entry.variant), str(seed)]
    cache = {'TORCHINDUCTOR_CACHE_DIR': str(folder / 'torch' / 'compiled')}
    return _seconds(command, cache | ({'OMP_NUM_THREADS': str(threads)} if threads else {}))


def _torch_side_by_side(folder: pathlib.Path, entry: Entry) -> float:
    """Seconds for all trials, always two at a time with one thread each."""
    start = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda seed: _torch_trial(folder, entry, seed, threads=1), range(TRIALS)))
    return time.perf_counter() - start


def _main(workdir: pathlib.Path, *flags: str) -> list[str]:
    return [sys.executable, '-m', 'bhcnet_jax.main', f'--workdir={workdir}', *flags]


def _launch(workdir: pathlib.Path, *flags: str) -> list[str]:
    script = pathlib.Path(__file__).parents[1] / 'sweep.py'
    return [sys.executable, str(script), '--engine=local', f'--workdir={workdir}', *flags]


def _seconds(command: Sequence[str], environment: Mapping[str, str] | None = None) -> float:
    """environment: what is set beside this process's own."""
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True, env={**os.environ, **(environment or {})})
    return time.perf_counter() - start


PRUNED_SWEEP = (
    '--config=smoke', '--config.dataset.name=folder', '--config.split.val_folds=5', '--config.augment.samples=128',
    "--config.phases=('balanced',)", '--config.balanced.epochs=24', '--config.engine.checkpoint_seconds=1000',
    '--sweep=optimizer.peak_lr=log(1e-5,1e-1,16) model.dropout=0,0.2,0.4,0.6',
)  # fmt: skip
RULE = 'rungs=4,8 keep=1/3'


def measure_pruning(folder: pathlib.Path, rounds: int) -> dict[str, Any]:
    """Seconds for 64 recipes of a small network, whole and pruned, and which one has the lowest validation loss.

    On images of which the brighter ones are labelled 1, since a small network learns that in 24 short epochs. Every
    round has another seed and another split.
    """
    images, measured = folder / 'images', []
    draw_bright(images)
    for number in range(rounds):
        whole, pruned = folder / f'{number}-whole', folder / f'{number}-pruned'
        flags = [*PRUNED_SWEEP, f'--config.dataset.dir={images}']
        flags += [f'--config.{key}={number}' for key in ('seed', 'split.seed')]
        seconds = [_seconds(_main(whole, *flags)), _seconds(_main(pruned, *flags, f'--prune={RULE}'))]
        ranks = _ranked(whole)
        winner = _ranked(pruned)[0][0]
        measured.append({
            'whole': seconds[0],
            'pruned': seconds[1],
            'validation losses of the whole sweep: best, median': [ranks[0][1], ranks[len(ranks) // 2][1]],
            'pruned winner in the whole sweep: rank of 64, validation loss': next(
                [rank, loss] for rank, (trial_id, loss) in enumerate(ranks, 1) if trial_id == winner
            ),
        })  # fmt: skip
    return {'rounds': measured, 'pruned / whole': [each['pruned'] / each['whole'] for each in measured]}


def draw_bright(folder: pathlib.Path, count: int = 200, size: int = 32) -> None:
    """A labelled folder of noise; the mean grey level is normal with a deviation of 15, around 100, or 125 if 1."""
    folder.mkdir()
    generator, lines = np.random.default_rng(0), ['file,label']
    for number in range(count):
        mean = generator.normal(100 + 25 * (number % 2), 15)
        pixels = generator.normal(mean, 30, (size, size)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f'{number:03}.png')
        lines.append(f'{number:03}.png,{number % 2}')
    (folder / 'labels.csv').write_text('\n'.join(lines) + '\n')


def _ranked(path: pathlib.Path) -> list[tuple[str, float]]:
    """Ids and validation losses of the finished trials, the best first."""
    with contextlib.closing(sqlite3.connect(path / 'results.sqlite')) as database:
        query = "SELECT trial_id, val_loss FROM trials WHERE status = 'DONE' ORDER BY val_loss"
        return database.execute(query).fetchall()


EXPANDED = {
    'seeds and folds': 'seed=0:1000 split.fold=0:10 balanced.epochs=4,6,8,10,12,14,16,18,20,24',
    'all recipes different': 'optimizer.peak_lr=loguniform(1e-5,1e-1,100000,0)',
}
EPOCHS_OF_A_SECOND = (
    '--config=balanced', '--config.dataset.name=phantom', '--config.augment.samples=160', '--config.balanced.epochs=4',
    '--sweep=seed=0:6',
)  # fmt: skip


def measure_records(
    folder: pathlib.Path,
    trials: int = 1024,
    expanded: Mapping[str, str] = EXPANDED,
    beside: Sequence[str] = EPOCHS_OF_A_SECOND,
) -> dict[str, Any]:
    """Finished trials per second that the database takes, expansion of a large sweep, and the cost beside epochs.

    trials: that finish, a multiple of 64. expanded: sweeps, by name. beside: flags of a sweep.
    """
    rates = {lanes: _finish(folder / str(lanes), lanes, trials) for lanes in (1, 8, 64)}
    return {
        'finished trials per second, by lanes': rates,
        'expansion': {name: _expand(folder / name, axes) for name, axes in expanded.items()},
        'time beside the epochs': _beside_epochs(folder, beside),
    }


def _finish(folder: pathlib.Path, lanes: int, trials: int) -> float:
    """Trials per second, each with one epoch and 20 predictions, in batches of `lanes`."""
    folder.mkdir(parents=True)
    with contextlib.closing(Results(folder / 'results.sqlite')) as results:
        start = time.perf_counter()
        for first in range(0, trials, lanes):
            ids = [f'{number:064x}' for number in range(first, first + lanes)]
            results.begin([{'trial_id': each, 'seed': 0} for each in ids])
            epochs = [{'trial_id': each, 'phase': 'balanced', 'epoch': 1, 'train_loss': 0.5} for each in ids]
            predictions = [
                {'trial_id': each, 'image_id': str(image), 'label': 0, 'probability': 0.5}
                for each in ids for image in range(20)
            ]  # fmt: skip
            results.record_epoch(epochs, predictions)
            results.finish_many({each: {'accuracy': 0.5} for each in ids})
        return trials / (time.perf_counter() - start)


def _expand(folder: pathlib.Path, axes: str) -> dict[str, float]:
    """Expands a sweep and compares it with a database of all its trials, in a process of its own."""
    program = f'import sys; sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r}); import benchmark; '
    program += f'benchmark.expand({str(folder)!r}, {axes!r})'
    output = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def expand(folder: str, axes: str) -> None:
    """Prints seconds and peak memory of expanding a sweep and finding what of it is missing in a full database."""
    config = base.get_config()
    config.dataset.name, config.split.scheme = 'phantom', 'kfold'
    study = Study(config, axes)
    pathlib.Path(folder).mkdir(parents=True)
    with contextlib.closing(Results(pathlib.Path(folder) / 'results.sqlite')) as results:
        results.begin({'trial_id': each.trial_id} for each in study.trials(sweep.parse_shard('1/1')))
    fresh = Study(config, axes)
    start = time.perf_counter()
    with contextlib.closing(Results(pathlib.Path(folder) / 'results.sqlite')) as results:
        wanted, statuses = fresh.trials(sweep.parse_shard('1/1')), results.statuses()
        missing = sum(statuses.get(each.trial_id) not in ('DONE', 'FAILED', 'DIVERGED') for each in wanted)
    seconds = time.perf_counter() - start
    figures = {'trials': len(wanted), 'missing': missing, 'seconds': seconds, 'peak_memory_bytes': peak_memory()}
    print(json.dumps(figures))


def _beside_epochs(folder: pathlib.Path, flags: Sequence[str]) -> dict[str, float]:
    """Share of a sweep's time that is not in its epochs, from the first epoch on."""
    env = {**os.environ, 'PYTHONUNBUFFERED': '1'}
    with subprocess.Popen(_main(folder / 'beside', *flags), stdout=subprocess.PIPE, text=True, env=env) as child:
        for line in child.stdout:
            if line.startswith('Compiled'):
                start = time.perf_counter()
            elif ' trials: ' in line and 'DONE' in line:
                wall = time.perf_counter() - start
    epochs = pd.read_csv(folder / 'beside' / 'curves.csv').seconds
    return {'epochs': len(epochs), 'median epoch, s': float(epochs.median()), 'share': 1 - float(epochs.sum()) / wall}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--suite', default='training', choices=SUITES)
    parser.add_argument('--config', default='balanced', help='training: a config that comes with the package')
    parser.add_argument('--epochs', type=int, default=5, help='training: epochs after compilation')
    parser.add_argument('--rounds', type=int, default=5, help='turns of each, but in training and records')
    parser.add_argument('--images', type=int, default=1024, help='of a round, a multiple of 128')
    parser.add_argument('--networks', default='', help='networks: some of them, such as cnn,vgg16; all without it')
    parser.add_argument('--float32_only', action='store_true', help='cpu: no bfloat16, which few CPUs are made for')
    parser.add_argument('--figure', default='', help='cpu, growth: an SVG file to draw')
    arguments = parser.parse_args()
    rounds, count = arguments.rounds, arguments.images
    names = [name for name in arguments.networks.split(',') if name]
    dtypes = ('float32',) if arguments.float32_only else tuple(TOLERANCES)
    if arguments.figure and arguments.suite not in ('cpu', 'growth'):
        parser.error(f'--figure: the suite {arguments.suite} has none; expected cpu or growth.')
    if rounds < 1 or count < 128 or count % 128:
        parser.error(f'--rounds={rounds} --images={count}: expected 1 or more, and a multiple of 128.')
    make_every_core_a_device()
    image_set = random_images(200, 128)
    suites: Mapping[str, Callable[[pathlib.Path], dict[str, Any]]] = {
        'training': lambda _: measure_training(arguments.config, arguments.epochs),
        'cpu': lambda folder: measure_cpu(folder, image_set.images, image_set.labels, rounds, count, dtypes),
        'networks': lambda folder: measure_networks(folder, image_set, rounds, count, names),
        'gpu': lambda folder: measure_accelerator(folder / 'torch', image_set, rounds, count),
        'sweep': lambda folder: measure_sweep(folder, rounds),
        'prune': lambda folder: measure_pruning(folder, rounds),
        'records': measure_records,
        'startup': lambda folder: measure_startup(folder, rounds),
        'start': measure_commands,
        'augment': lambda folder: measure_augmentation(folder, image_set, rounds, count),
        'growth': lambda folder: measure_growth(folder, random_images, rounds, count),
    }
    try:
        with tempfile.TemporaryDirectory() as folder:
            measured = suites[arguments.suite](pathlib.Path(folder))
    except ContestError as error:
        sys.exit(f'error: {error}')
    measured |= {'hardware': machine.hardware(), 'jax': jax.__version__, 'code': machine.code_version()}
    if arguments.figure:
        import figures  # here, so that matplotlib is no part of the memory that is measured

        draw = {'cpu': figures.contenders, 'growth': figures.growth}[arguments.suite]
        draw(measured, arguments.figure)
    json.dump(measured, sys.stdout, indent=2)
    print()


if __name__ == '__main__':
    main()
