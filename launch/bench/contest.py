"""Races: processes that train the same network take turns, round by round, and only one computes at a time.

`measure_cpu` lets this project, PyTorch and Keras compete on a CPU.
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
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from contender import write_task
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from bhcnet_jax.configs import balanced
from bhcnet_jax.plan import splits, trial
from bhcnet_jax.training import steps
from bhcnet_jax.training.lanes import stack

FOLDER = pathlib.Path(__file__).parent
CHECKED = 10  # first steps whose losses are compared
# Of the losses, relative. Keras adds Adam's epsilon before it corrects the bias, which makes some 1e-5 of difference.
TOLERANCES = {'float32': 1e-4, 'bfloat16': 2e-3}
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
            'CUDA_VISIBLE_DEVICES': '',
            'JAX_PLATFORMS': 'cpu',
            **entry.environment,
            'JAX_TRACEBACK_FILTERING': 'off',  # else a remark of JAX follows the error, which `ask` shows
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


class Team:
    """Contestants that do at once what they are asked, as one."""

    def __init__(self, members: Sequence[Contestant]):
        self._members = members

    def ask(self, command: str) -> float:
        """Seconds from the question to the last answer. ContestError if one of them has died."""
        start = time.perf_counter()
        with ThreadPoolExecutor(len(self._members)) as pool:
            list(pool.map(lambda member: member.ask(command), self._members))
        return time.perf_counter() - start


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


def prepare(
    folder: pathlib.Path,
    images: np.ndarray,
    labels: np.ndarray,
    checked: int = CHECKED,
    evaluates: bool = True,
    **keys: Any,
) -> ConfigDict:
    """Writes a task of the balanced config, with these keys.

    images: uint8 [N, H, W]; labels: int32 [N]. checked: steps whose losses are compared. evaluates: whether the project
    evaluates its test images after each epoch.
    """
    config = balanced.get_config()
    config.update_from_flattened_dict({'dataset.image_size': images.shape[1], **keys})
    split = splits.split(labels, np.arange(len(labels)), 'holdout', 10, 0, 0)
    planned = trial.make(config, labels, split, '')
    lane = jax.tree.map(lambda leaf: leaf[0], stack([planned], 0))
    generator = np.random.default_rng(0)
    write_task(
        folder, config.to_dict(), images=images, labels=labels, sources=planned.phases[0].sources,
        test=split.test if evaluates else split.test[:0],
        batches=generator.integers(0, len(labels), (checked, config.batch_size), dtype=np.int32),
        weights=_weights(config, lane),
    )  # fmt: skip
    return config


def _weights(config: ConfigDict, lane: steps.Lane) -> dict[str, np.ndarray]:
    """Those that a lane starts from, in the order in which the network uses them."""
    order = []

    def init(lane: steps.Lane) -> Any:
        params = flatten_dict(steps.init(config, lane).params, sep='/')
        order.extend(params)
        return params

    params = jax.device_get(jax.jit(init)(lane))  # sorted by name
    return {name: params[name] for name in order}


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
    variants = [
        {'dtype': dtype, 'backend': backend, 'jit_compile': compiled}
        for backend, compiled in ways
        if importlib.util.find_spec(backend) is not None
    ]
    return [Entry('rival_keras.py', variant, {'KERAS_BACKEND': variant['backend']}) for variant in variants]


def measure_cpu(
    folder: pathlib.Path, images: np.ndarray, labels: np.ndarray, rounds: int, count: int, dtypes: Sequence[str]
) -> dict[str, Any]:
    """This project, PyTorch and Keras, each in the fastest of its variants.

    images: uint8 [N, H, W]; labels: int32 [N]. count: images of a round. dtypes: float32 and what else of TOLERANCES to
    compute in. The project evaluates its test images after
    each round, the others do not. ContestError if the losses of the first steps are not the same.
    """
    require('torch', 'keras')
    batch = balanced.get_config().batch_size
    lengths = {'step': (batch, 2), 'try': (TRIED_IMAGES, TRIED_ROUNDS + 1), 'race': (count, rounds + 1)}
    for name, (samples, epochs) in lengths.items():
        prepare(folder / name, images, labels, **{'augment.samples': samples, 'balanced.epochs': epochs})
    fields, tried = {}, {}
    for dtype in dtypes:
        fields[f'bhcnet_jax, {dtype}'] = project_entry(dtype)
        for rival, entries in (('PyTorch', torch_entries(dtype)), ('Keras', keras_entries(dtype))):
            name = f'{rival}, {dtype}'
            fields[name], tried[name] = choose(entries, folder)
    losses = first_losses(fields, folder)
    starts = measure_starts(fields, folder, min(rounds, STARTS))
    seconds, memory, peaks = measure_race(fields, folder, rounds)
    flops, peak = training_flops(balanced.get_config().model.filters, images.shape[1]), max(peaks.values())
    return {
        'contenders': {
            name: {
                'variant': dict(entry.variant),
                **_speed([count / each for each in seconds[name]], batch, flops, peak),
                **starts[name],
                'peak_memory_bytes': memory[name],
            }
            for name, entry in fields.items()
        },
        'times as fast as, by round': _ratios(seconds),
        'tried, images/s': tried,
        'losses of the first steps': losses,
        'tolerance of the losses, relative': TOLERANCES,
        'flops_per_image': flops,
        'peak_flops_per_second': peaks,
        'images_per_round': count,
    }


def _speed(rates: Sequence[float], batch: int, flops: int, peak: float) -> dict[str, Any]:
    """What follows from images/s. flops: of an image. peak: FLOP/s of the machine, in float32."""
    median = statistics.median(rates)
    return {
        'images_per_second': spread(rates),
        'images_per_second by round': rates,
        'ms_per_step': 1000 * batch / median,
        'flops_per_second': flops * median,
        'share of the float32 peak': flops * median / peak,
    }


def _ratios(seconds: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """By round, how many times as fast as each rival the project is in the same dtype."""
    ratios = {}
    for name, theirs in seconds.items():
        mine = seconds[f'bhcnet_jax, {name.split(", ")[1]}']
        if mine is not theirs:
            ratios[name] = [their / my for their, my in zip(theirs, mine, strict=True)]
    return ratios


def choose(entries: Sequence[Entry], folder: pathlib.Path) -> tuple[Entry, dict[str, Any]]:
    """The fastest entry, and images/s of all by variant, or why one did not run. ContestError if none did."""
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
    """Seconds from the start of a process to its first step, cold and with compiled programs kept; and of compilation.

    What compiles keeps its programs in a folder: empty at the first start, filled at the second. Compilation is what
    the first step of a cold start takes longer than the second.
    """
    seconds = {name: {'compile_seconds': [], 'start, cold': [], 'start, warm': []} for name in fields}
    for name in in_turn(list(fields), rounds):
        cache = folder / 'start'
        for how in ('cold', 'warm'):
            with Contestant(fields[name], folder / 'step', cache) as contestant:
                first, whole = contestant.first_step()
                seconds[name][f'start, {how}'].append(whole)
                if how == 'cold':
                    seconds[name]['compile_seconds'].append(first - contestant.ask('train'))
        shutil.rmtree(cache)
    return {name: {key: spread(values) for key, values in each.items()} for name, each in seconds.items()}


def measure_race(
    fields: Mapping[str, Entry], folder: pathlib.Path, rounds: int
) -> tuple[dict[str, list[float]], dict[str, int], dict[str, float]]:
    """Seconds of the rounds, then bytes of memory, then FLOP/s of a large float32 matrix product; by name."""
    with contextlib.ExitStack() as stack:
        running = {
            name: stack.enter_context(Contestant(entry, folder / 'race', folder / 'cache'))
            for name, entry in fields.items()
        }
        seconds = race(running, rounds)
        memory = {name: contestant.ask('memory') for name, contestant in running.items()}
        peaks = dict.fromkeys(('bhcnet_jax, float32', 'PyTorch, float32'), 0.0)
        for name in in_turn(list(peaks), rounds):
            peaks[name] = max(peaks[name], running[name].ask('peak'))
    return seconds, memory, peaks


def first_losses(fields: Mapping[str, Entry], folder: pathlib.Path) -> dict[str, list[float]]:
    """Losses of the first steps of all. ContestError if they do not agree."""
    losses = {}
    for name, entry in fields.items():
        with Contestant(entry, folder / 'try', folder / 'cache') as contestant:
            losses[name] = contestant.ask('first losses')
    check_losses(losses)
    return losses


def check_losses(losses: Mapping[str, Sequence[float]]) -> None:
    """ContestError if those of a contender, by its name, are not those of this project in the same dtype."""
    for name, theirs in losses.items():
        dtype = name.split(', ')[1]
        mine, tolerance = np.array(losses[f'bhcnet_jax, {dtype}']), TOLERANCES[dtype]
        wrong = ~(np.abs(np.array(theirs) - mine) <= tolerance * np.abs(mine))  # nan is wrong too
        if wrong.any():
            step = int(wrong.argmax())
            raise ContestError(
                f'{name}: the loss of step {step + 1} is {theirs[step]:.7f}, that of this project {mine[step]:.7f}; '
                f'expected a relative difference of {tolerance} at most. They do not train the same.'
            )
