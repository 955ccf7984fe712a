"""How the speed of this project grows with the size of images, batches and lanes."""

import contextlib
import pathlib
from collections.abc import Callable
from typing import Any

from contest import Contestant, prepare, project_entry, race, spread

from bhcnet_jax.datasets.input_pipeline import ImageSet

USUAL = {'image size': 128, 'batch size': 32, 'lanes': 1}  # of the paper's CNN; one of them is changed at a time
GROWTH = {'image size': (64, 128, 256), 'batch size': (8, 32, 128), 'lanes': (1, 2, 4, 8)}


def measure_growth(
    folder: pathlib.Path, random_images: Callable[[int, int], ImageSet], rounds: int, count: int
) -> dict[str, Any]:
    """Images/s (median, lowest, highest) and peak memory of one process for each size, in turn.

    random_images: number of images, pixels -> set. count: images of a lane in a round.
    """
    points = {tuple((USUAL | {what: size}).values()) for what, sizes in GROWTH.items() for size in sizes}
    with contextlib.ExitStack() as stack:
        running = {}
        for point in sorted(points):
            pixels, batch, lanes = point
            image_set = random_images(200, pixels)
            task = folder / '-'.join(map(str, point))
            keys = {'batch_size': batch, 'augment.samples': count, 'balanced.epochs': rounds + 1}
            prepare(task, image_set.images, image_set.labels, **keys)
            running[point] = stack.enter_context(Contestant(project_entry(lanes=lanes), task, folder / 'cache'))
        seconds = race(running, rounds)
        memory = {point: contestant.ask('memory') for point, contestant in running.items()}
    table = []
    for point in seconds:
        rates = spread([count * point[-1] / each for each in seconds[point]])
        size = dict(zip(USUAL, point, strict=True))
        table.append({**size, 'images_per_second': rates, 'peak_memory_bytes': memory[point]})
    return {'images_per_round': count, 'points': table}
