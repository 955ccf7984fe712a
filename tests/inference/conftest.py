"""Small runs of every kind that a model can be made from, on drawn heads."""

import numpy as np
import pytest
from PIL import Image

from bhcnet_jax.run import train
from lanes import small_config

CROSS_VALIDATION = 'split.scheme=kfold split.folds=4 split.fold=0:2 seed=0:2'


@pytest.fixture(scope='session')
def heads(tmp_path_factory):
    """A folder with labels.csv and 24 images of bright ellipses on black, of many sizes; a brighter spot is label 1."""
    folder, generator = tmp_path_factory.mktemp('heads'), np.random.default_rng(0)
    rows = ['file,label']
    for number in range(24):
        height, width = generator.integers(40, 70, 2)
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        pixels = np.where((x / 0.8) ** 2 + (y / 0.9) ** 2 < 1, 120, 0) + generator.integers(0, 20, (height, width))
        if number % 2:
            pixels[height // 3 : height // 2, width // 3 : width // 2] += 80
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{number:02}.png')
        rows.append(f'{number:02}.png,{number % 2}')
    (folder / 'labels.csv').write_text('\n'.join(rows) + '\n')
    return folder


@pytest.fixture(scope='session')
def trained(heads, tmp_path_factory):
    """Trains in a new run directory and returns it. overrides: as of `small_config`; options: of `train.Options`."""
    root = tmp_path_factory.mktemp('runs')

    def run(name, overrides=None, **options):
        config = small_config(
            dataset__name='folder', dataset__dir=str(heads), imbalanced__positives=30, balanced__epochs=12,
            imbalanced__epochs=1, optimizer__peak_lr=0.02, **(overrides or {}),
        )  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv('TFDS_DATA_DIR', str(root / 'tfds'))
            assert train.run(config, train.Options(workdir=str(root / name), **options))
        return root / name

    return run


@pytest.fixture(scope='session')
def crossed(trained):
    """A cross-validation: two folds and two seeds of a CNN."""
    return trained('crossed', {'recipe': 'tiny cnn'}, sweep=CROSS_VALIDATION)


@pytest.fixture(scope='session')
def equalised(trained):
    """One network with batch normalisation, averaged weights and mirrored test images, on equalised images."""
    return trained('equalised', {
        'model__norm': 'batch', 'optimizer__ema': 0.9, 'augment__test_flip': True, 'dataset__equalise': True,
    })  # fmt: skip
