"""Two CPU devices, strict dtype promotion, absl flags parsed: what every test here relies on."""

import atexit
import os
import pathlib
import shutil
import tempfile

os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=2'
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image

jax.config.update('jax_numpy_dtype_promotion', 'strict')
# Many tests compile the same small programs; a run of the suite compiles each once. Processes that the tests start
# share a folder of their own: they are killed while they write to it.
_COMPILED = pathlib.Path(tempfile.mkdtemp(prefix='compiled'))
atexit.register(shutil.rmtree, _COMPILED, ignore_errors=True)
jax.config.update('jax_compilation_cache_dir', str(_COMPILED / 'here'))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
if 'PYTEST_XDIST_WORKER' not in os.environ:  # workers inherit it
    os.environ['JAX_COMPILATION_CACHE_DIR'] = str(_COMPILED / 'children')
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
flags.FLAGS.mark_as_parsed()  # grain reads absl flags; under pytest nobody else parses them


@pytest.fixture(scope='session')
def labelled_folder(tmp_path_factory):
    """A folder with labels.csv and 40 images of noise, with a bright square on those labelled 1."""
    folder = tmp_path_factory.mktemp('labelled_folder')
    generator = np.random.default_rng(0)
    rows = ['file,label']
    for number in range(40):
        pixels = generator.integers(0, 120, (24, 20), dtype=np.uint8)
        if number % 2:
            pixels[8:16, 6:14] = 230
        Image.fromarray(pixels).save(folder / f'{number:02}.png')
        rows.append(f'{number:02}.png,{number % 2}')
    (folder / 'labels.csv').write_text('\n'.join(rows) + '\n')
    return folder
