"""A contender of `contest.py`: a process of its own that trains the paper's network, a piece when it is told to.

Commands are lines on standard input; the answer to each is a line of JSON on what was standard output when the process
started. Imports no framework, so that every contender loads its own only.
"""

import json
import os
import pathlib
import re
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

PEAK_SIZE = 2048  # rows and columns of the matrices whose product gives the peak


class Task(NamedTuple):
    """What all contenders of a race train: N images of H x W pixels, M augmented ones in an epoch.

    config: of the project, as a dict. variant: how this contender does it, such as {'dtype': 'bfloat16'}.
    images: uint8 [N, H, W]; labels: int32 [N], 1 = hemorrhage. sources: int32 [M], the image that each augmented one is
    made from. test: int, the images to evaluate on. batches: int32 [S, B], images of the first steps that are compared.
    weights: float32, as of Flax, by names such as 'trunk/conv1/kernel', in the order in which the network uses them.
    """

    config: dict[str, Any]
    variant: dict[str, Any]
    images: np.ndarray
    labels: np.ndarray
    sources: np.ndarray
    test: np.ndarray
    batches: np.ndarray
    weights: dict[str, np.ndarray]


class Contender(Protocol):
    """What a contender can do; each returns when it is done and not merely begun."""

    def train(self) -> None:
        """Trains all augmented images once, in random order."""

    def first_losses(self) -> list[float]:
        """The loss of each step of a training on `batches` from `weights`, without augmentation and dropout."""

    def multiply(self) -> Callable[[], Any]:
        """A function that multiplies two float32 matrices of PEAK_SIZE."""


def write_task(folder: pathlib.Path, config: dict[str, Any], **arrays: Any) -> None:
    """Writes what `read_task` reads: all fields of Task but the variant."""
    folder.mkdir(parents=True)
    weights = {f'weights/{name}': value for name, value in arrays.pop('weights').items()}
    np.savez(folder / 'arrays.npz', **arrays, **weights)
    (folder / 'config.json').write_text(json.dumps(config))


def read_task(folder: str, variant: str) -> Task:
    """folder: of `write_task`. variant: JSON."""
    config = json.loads((pathlib.Path(folder) / 'config.json').read_text())
    arrays = dict(np.load(pathlib.Path(folder) / 'arrays.npz'))
    names = [name for name in arrays if name.startswith('weights/')]
    weights = {name.removeprefix('weights/'): arrays.pop(name) for name in names}
    return Task(config, json.loads(variant), weights=weights, **arrays)


def peak_memory() -> int:
    """Bytes of this process, at most so far."""
    status = pathlib.Path('/proc/self/status')
    if status.exists():  # on Linux, ru_maxrss begins with what the process that started this one had
        return 1024 * int(re.search(r'VmHWM:\s*(\d+) kB', status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def serve(make: Callable[[Task], Contender]) -> None:
    """Answers commands until there are none; the command line is the arguments of `read_task`."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # frameworks print to standard output too
    contender = make(read_task(*sys.argv[1:]))
    commands: dict[str, Callable[[], Any]] = {
        'train': lambda: _seconds(contender.train),
        'first losses': contender.first_losses,
        'peak': lambda: _peak(contender.multiply()),
        'memory': peak_memory,
    }
    for line in sys.stdin:
        print(json.dumps(commands[line.strip()]()), file=answers, flush=True)


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _peak(multiply: Callable[[], Any]) -> float:
    """FLOP/s of the fastest of some matrix products."""
    return 2 * PEAK_SIZE**3 / min(_seconds(multiply) for _ in range(8))
