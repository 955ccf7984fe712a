"""Races: processes that train the same network take turns, round by round, and only one computes at a time.

`measure_cpu` lets this project, PyTorch and Keras compete on a CPU; `measure_growth` lets the project compete with
itself in other sizes.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from contender import write_task
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from bhcnet_jax import optim, splits, steps, trial
from bhcnet_jax.configs import balanced

FOLDER = pathlib.Path(__file__).parent
CHECKED = 10  # first steps whose losses are compared
TOLERANCES = {'float32': 1e-4, 'bfloat16': 1e-2}  # of the losses, relative
TRIED_IMAGES = 128  # of an epoch in which the variants of a contender are compared
TRIED_ROUNDS = 3
STARTS = 3  # rounds of starts; each ends with the first step
INSTALL = "pip install 'bhcnet_jax[bench]'"


class ContestError(RuntimeError):
    """A race that cannot go on, or whose contenders do not do the same; one line."""


class Entry(NamedTuple):
    """One way to run a contender: the script of its process, its variant and what it needs in the environment."""

    script: str
    variant: Mapping[str, Any]
    environment: Mapping[str, str]


def require(*packages: str) -> None:
    """ContestError if one of the rivals is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ContestError(f'{package} is not installed, and the project is compared with it: {INSTALL}')


class Contestant:
    """A running process of an entry. Ends with the context."""

    def __init__(self, entry: Entry, task: pathlib.Path, cache: pathlib.Path):
        """task: of `write_task`. cache: folder for compiled programs."""
        self._name = f'{entry.script} {dict(entry.variant)}'
        self._started = time.perf_counter()
        environment = {
            **os.environ,
            **entry.environment,
            'CUDA_VISIBLE_DEVICES': '',
            'JAX_PLATFORMS': 'cpu',
            'JAX_COMPILATION_CACHE_DIR': str(cache / 'jax'),
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
            'TORCHINDUCTOR_CACHE_DIR': str(cache / 'torch'),
        }
        cache.mkdir(parents=True, exist_ok=True)
        self._errors = cache / f'{time.monotonic_ns()}.stderr'
        with self._errors.open('w') as errors:
            self._process = subprocess.Popen(
                [sys.executable, FOLDER / entry.script, task, json.dumps(entry.variant)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment,
            )  # fmt: skip

    def ask(self, command: str) -> Any:
        """The answer to a command of `contender.serve`. ContestError if the process has died."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(command + '\n')
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            said = self._errors.read_text().strip().splitlines() or ['it said nothing']
            raise ContestError(f'{self._name}: ended while it was to answer {command!r}: {said[-1]}')
        return json.loads(answer)

    def first_step(self) -> tuple[float, float]:
        """Trains its first step, where an epoch is one. Returns the seconds of it and those since the start."""
        return self.ask('train'), time.perf_counter() - self._started

    def __enter__(self) -> 'Contestant':
        return self

    def __exit__(self, *_: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def in_turn(names: Sequence[str], rounds: int) -> Iterator[str]:
    """All names in every round, each round beginning with another, so that a machine that drifts favours nobody."""
    for number in range(rounds):
        first = number % len(names)
        yield from (*names[first:], *names[:first])


def race(contestants: Mapping[str, Contestant], rounds: int) -> dict[str, list[float]]:
    """Seconds of every round of each, after a first one that is not counted."""
    for contestant in contestants.values():
        contestant.ask('train')
    seconds = {name: [] for name in contestants}
    for name in in_turn(list(contestants), rounds):
        seconds[name].append(contestants[name].ask('train'))
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {'median': statistics.median(values), 'min': min(values), 'max': max(values)}


def training_flops(filters: Sequence[int], image_size: int) -> int:
    """Floating-point operations of one image's training step in the CNN, the optimizer's left out.

    A 3x3 convolution from C to F channels on P pixels takes 9 C F P multiply-adds, the logit C; each is two operations.
    The gradients take as much again for the weights, and again for the inputs, but the first convolution's input needs
    none. Taps on the zeros around an image count; ReLU, pooling, biases, loss and augmentation do not.
    """
    forward, first, channels = 0, 0, 1
    for number, features in enumerate(filters):
        multiply_adds = 9 * channels * features * (image_size >> number) ** 2
        first = first or multiply_adds
        forward, channels = forward + multiply_adds, features
    return 2 * (3 * (forward + channels) - first)


def prepare(folder: pathlib.Path, images: np.ndarray, labels: np.ndarray, **keys: Any) -> ConfigDict:
    """Writes a task of the balanced config, with these keys. images: uint8 [N, H, W]; labels: int32 [N]."""
    config = balanced.get_config()
    config.update_from_flattened_dict({'dataset.image_size': images.shape[1], **keys})
    split = splits.split(labels, np.arange(len(labels)), 'holdout', 10, 0, 0)
    planned = trial.make(config, labels, split, '')
    state = jax.jit(steps.make_init(config))(jax.tree.map(lambda leaf: leaf[0], trial.stack([planned], 0)))
    generator = np.random.default_rng(0)
    write_task(
        folder, config.to_dict(), images=images, labels=labels, sources=planned.phases[0].sources, test=split.test,
        batches=generator.integers(0, len(labels), (CHECKED, config.batch_size), dtype=np.int32),
        weights=flatten_dict(jax.device_get(state.params), sep='/'),
    )  # fmt: skip
    return config


def project_entry(dtype: str = 'float32', **variant: Any) -> Entry:
    """This project. variant: see contender_project.py."""
    return Entry('contender_project.py', {'dtype': dtype, **variant}, {})


def torch_entries(dtype: str) -> list[Entry]:
    """The ways that PyTorch's guides recommend, of which the fastest is to be taken."""
    return [
        Entry('rival_torch.py', {'dtype': dtype, 'compile': compiled, 'channels_last': channels_last}, {})
        for compiled in (False, True)
        for channels_last in (False, True)
    ]


def keras_entries(dtype: str) -> list[Entry]:
    """Every backend that is installed, as Keras has it by default and with its compiler switched the other way."""
    ways = [('jax', 'auto'), ('torch', 'auto'), ('torch', True), ('tensorflow', 'auto'), ('tensorflow', False)]
    return [
        Entry('rival_keras.py', {'dtype': dtype, 'backend': backend, 'jit_compile': compiled}, {'KERAS_BACKEND': backend})
        for backend, compiled in ways
        if importlib.util.find_spec(backend) is not None
    ]


def measure_cpu(folder: pathlib.Path, images: np.ndarray, labels: np.ndarray, rounds: int, count: int) -> dict[str, Any]:
    """This project, PyTorch and Keras, in float32 and bfloat16, each in the fastest of its variants.

    images: uint8 [N, H, W]; labels: int32 [N]. count: images of a round. ContestError if the losses of the first steps
    are not the same.
    """
    require('torch', 'keras')
    for name, samples, epochs in (
        ('step', balanced.get_config().batch_size, 2), ('try', TRIED_IMAGES, TRIED_ROUNDS + 1), ('race', count, rounds + 1)
    ):  # fmt: skip
        config = prepare(folder / name, images, labels, **{'augment.samples': samples, 'balanced.epochs': epochs})
    fields, tried = {}, {}
    for dtype in TOLERANCES:
        fields[f'bhcnet_jax, {dtype}'] = project_entry(dtype)
        for name, entries in (('PyTorch', torch_entries(dtype)), ('Keras', keras_entries(dtype))):
            fastest, tried[f'{name}, {dtype}'] = choose(entries, folder)
            fields[f'{name}, {dtype}'] = fastest
    starts = measure_starts(fields, folder, min(rounds, STARTS))
    raced = measure_race(fields, folder, rounds)
    flops = training_flops(config.model.filters, images.shape[1])
    peak = max(raced['peaks'].values())
    table = {}
    for name, entry in fields.items():
        seconds, step = raced['seconds'][name], statistics.median(raced['seconds'][name]) * config.batch_size / count
        rates = spread([count / each for each in seconds])
        table[name] = {
            'variant': dict(entry.variant),
            'images_per_second': rates,
            'ms_per_step': 1000 * step,
            'compile_seconds': max(starts[name]['first step, cold']['median'] - step, 0.0),
            **starts[name],
            'peak_memory_bytes': raced['memory'][name],
            'flops_per_second': flops * rates['median'],
            **({'share of the peak': flops * rates['median'] / peak} if entry.variant['dtype'] == 'float32' else {}),
        }
    ratios = {name: [mine / theirs for mine, theirs in _rates(raced['seconds'], name)] for name in fields}
    return {
        'contenders': table,
        'times as fast as, by round': {name: ratio for name, ratio in ratios.items() if 'bhcnet_jax' not in name},
        'tried, images/s': tried,
        'losses of the first steps': raced['losses'],
        'tolerance of the losses': TOLERANCES,
        'flops_per_image': flops,
        'peak_flops_per_second': raced['peaks'],
        'images_per_round': count,
        'seconds': raced['seconds'],
    }


def _rates(seconds: Mapping[str, Sequence[float]], name: str) -> Iterator[tuple[float, float]]:
    """By round, images/s of the project and of a contender with the same dtype, up to the same factor."""
    mine = seconds[f'bhcnet_jax, {name.split(", ")[1]}']
    return ((1 / ours, 1 / theirs) for ours, theirs in zip(mine, seconds[name], strict=True))


def choose(entries: Sequence[Entry], folder: pathlib.Path) -> tuple[Entry, dict[str, Any]]:
    """The fastest entry, and images/s of all, or why one did not run. ContestError if none did."""
    found, running = {}, {}
    with contextlib.ExitStack() as stack:
        for entry in entries:
            contestant = stack.enter_context(Contestant(entry, folder / 'try', folder / 'cache'))
            try:
                contestant.ask('train')
                running[json.dumps(entry.variant)] = entry, contestant
            except ContestError as error:
                found[json.dumps(entry.variant)] = f'did not run: {error}'
        if not running:
            raise ContestError(next(iter(found.values())))
        seconds = race({name: contestant for name, (_, contestant) in running.items()}, TRIED_ROUNDS)
    rates = {name: TRIED_IMAGES / statistics.median(each) for name, each in seconds.items()}
    return running[max(rates, key=rates.get)][0], {**rates, **found}


def measure_starts(fields: Mapping[str, Entry], folder: pathlib.Path, rounds: int) -> dict[str, dict[str, Any]]:
    """Seconds of the first step and from the start of the process to its end, cold and with compiled programs kept.

    What compiles keeps its programs in a folder: empty at the first start, filled at the second.
    """
    keys = [f'{what}, {how}' for what in ('first step', 'start to first step') for how in ('cold', 'warm')]
    seconds = {name: {key: [] for key in keys} for name in fields}
    for name in in_turn(list(fields), rounds):
        cache = folder / 'start'
        for how in ('cold', 'warm'):
            with Contestant(fields[name], folder / 'step', cache) as contestant:
                step, whole = contestant.first_step()
            seconds[name][f'first step, {how}'].append(step)
            seconds[name][f'start to first step, {how}'].append(whole)
        shutil.rmtree(cache)
    return {name: {key: spread(values) for key, values in each.items()} for name, each in seconds.items()}


def measure_race(fields: Mapping[str, Entry], folder: pathlib.Path, rounds: int) -> dict[str, Any]:
    """First losses, which must agree, then the rounds, memory, and FLOP/s of a large matrix product after each."""
    with contextlib.ExitStack() as stack:
        running = {
            name: stack.enter_context(Contestant(entry, folder / 'race', folder / 'cache'))
            for name, entry in fields.items()
        }
        seconds = race(running, rounds)
        memory = {name: contestant.ask('memory') for name, contestant in running.items()}
        multiplying = [name for name in fields if name.endswith('float32') and not name.startswith('Keras')]
        peaks = {name: 0.0 for name in multiplying}
        for name in in_turn(multiplying, rounds):
            peaks[name] = max(peaks[name], running[name].ask('peak'))
        losses = {name: contestant.ask('first losses') for name, contestant in running.items()}
    check_losses(losses)
    return {'seconds': seconds, 'memory': memory, 'peaks': peaks, 'losses': losses}


def check_losses(losses: Mapping[str, Sequence[float]]) -> None:
    """ContestError if those of a contender, by its name, are not those of this project in the same dtype."""
    for name, theirs in losses.items():
        dtype = name.split(', ')[1]
        mine = np.array(losses[f'bhcnet_jax, {dtype}'])
        errors = np.abs(np.array(theirs) - mine) / np.abs(mine)
        if not (errors <= TOLERANCES[dtype]).all():
            step = int(np.argmax(errors > TOLERANCES[dtype]))
            raise ContestError(
                f'{name}: the loss of step {step + 1} is {theirs[step]:.7f}, this project has {mine[step]:.7f}; expected '
                f'no more than {TOLERANCES[dtype]} between them, relative. They do not train the same.'
            )
