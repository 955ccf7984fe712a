"""One training of every network of the project beside PyTorch's, on a CPU."""

import contextlib
import json
import pathlib
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from contest import Contestant, ContestError, first_losses, prepare, project_entry, race, require, spread, torch_entries
from ml_collections import ConfigDict

from bhcnet_jax import models
from bhcnet_jax.configs import balanced, strong, zoo
from bhcnet_jax.datasets.input_pipeline import ImageSet

# First steps whose losses are compared. Adam's first step moves all weights by the same, those too whose gradient is
# mere rounding, so the second loss of a deep network is another one.
CHECKED = 1
NETWORKS: dict[str, Mapping[str, Any]] = {  # by name, the keys of its config
    'strong': {f'model.{key}': value for key, value in strong.get_config().model.items()},
    **{keys['model.name']: keys for keys in zoo.NETWORKS if 'phases' not in keys},  # which one phase trains
}


def config_of(name: str, image_size: int) -> ConfigDict:
    """`balanced` with one of NETWORKS."""
    config = balanced.get_config()
    config.update_from_flattened_dict({**NETWORKS[name], 'dataset.image_size': image_size})
    return config


def measure_networks(
    folder: pathlib.Path, image_set: ImageSet, rounds: int, count: int, names: Sequence[str]
) -> dict[str, Any]:
    """This project and PyTorch eager, contiguous and channels_last, network after network.

    A network's figures also go to standard error once they are known. count: images of a round of the paper's CNN; see
    `images_of`. names: of NETWORKS; none for all. ContestError: an unknown name, a library that is missing, or networks
    of one name that are not the same.
    """
    if unknown := [name for name in names if name not in NETWORKS]:
        raise ContestError(f'{unknown[0]!r} is no network; expected some of {",".join(NETWORKS)}.')
    require('torch', 'torchvision', 'timm')
    rows = []
    for name in names or NETWORKS:
        rows.append(_measure(folder / name, name, image_set, rounds, count))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        shutil.rmtree(folder / name)
    return {'networks': rows}


def images_of(name: str, image_size: int, count: int) -> int:
    """Images that take a network as many operations as `count` take the CNN; whole batches, at most `count`."""
    config, cnn = config_of(name, image_size), config_of('cnn', image_size)
    share = models.operations(cnn.model, image_size) / models.operations(config.model, image_size)
    return max(1, round(min(1, share) * count / config.batch_size)) * config.batch_size


def check_parameters(name: str, image_size: int) -> int:
    """How many parameters a network has. ContestError if PyTorch's has another number."""
    import torch  # here, so that the other suites need not load it
    import torch_networks

    model = config_of(name, image_size).model
    with torch.device('meta'):  # shapes only
        theirs = torch_networks.parameters(torch_networks.create(model.to_dict(), image_size))
    mine = sum(row.parameters for row in models.describe(model, image_size))
    if theirs != mine:
        raise ContestError(f"{name}: PyTorch's network has {theirs} parameters, this project's {mine}.")
    return mine


def _measure(folder: pathlib.Path, name: str, image_set: ImageSet, rounds: int, count: int) -> dict[str, Any]:
    image_size = image_set.images.shape[1]
    parameters, images = check_parameters(name, image_size), images_of(name, image_size, count)
    keys = {**NETWORKS[name], 'augment.samples': images, 'balanced.epochs': rounds + 1}
    prepare(folder / 'try', image_set.images, image_set.labels, CHECKED, evaluates=False, **keys)
    contiguous, channels_last = (entry for entry in torch_entries('float32') if not entry.variant['compile'])
    rivals = {'PyTorch, float32': contiguous, 'PyTorch, float32, channels_last': channels_last}
    fields = {'bhcnet_jax, float32': project_entry(), **rivals}
    losses = first_losses(fields, folder)
    with contextlib.ExitStack() as stack:
        running = {
            each: stack.enter_context(Contestant(entry, folder / 'try', folder / 'cache'))
            for each, entry in fields.items()
        }
        seconds = race(running, rounds)
    fastest = min(rivals, key=lambda each: statistics.median(seconds[each]))
    ratios = [their / my for their, my in zip(seconds[fastest], seconds['bhcnet_jax, float32'], strict=True)]
    return {
        'network': name,
        'parameters': parameters,
        'images_per_round': images,
        'images_per_second': {each: spread([images / one for one in taken]) for each, taken in seconds.items()},
        'fastest of PyTorch': fastest,
        'times as fast as it': spread(ratios),
        'times as fast as it, by round': ratios,
        'losses of the first steps': losses,
    }
