"""Two CPU devices, strict dtype promotion, absl flags parsed: what every test here relies on."""

import atexit
import os
import shutil
import tempfile

import runs

if 'PYTEST_XDIST_WORKER' not in os.environ:  # workers inherit it
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {runs.xla_flags(devices=2)}'
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import pytest
from absl import flags

jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
if 'PYTEST_XDIST_WORKER' not in os.environ:
    # Processes that the tests start share a folder of this run alone: they are killed while they write to it.
    of_children = tempfile.mkdtemp(prefix='compiled')
    atexit.register(shutil.rmtree, of_children, ignore_errors=True)
    os.environ['JAX_COMPILATION_CACHE_DIR'] = of_children  # workers inherit it
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
flags.FLAGS.mark_as_parsed()  # grain reads absl flags; under pytest nobody else parses them

# A worker takes the files in this order, so that none begins a long one when the others are done.
LONGEST_FIRST = ('launch', 'durability', 'engine', 'models', 'steps', 'train', 'report', 'distributed', 'pruning')


def pytest_configure(config):
    """Keeps what the tests compile for their next run; --cache-clear drops it."""
    jax.config.update('jax_compilation_cache_dir', str(config.cache.mkdir('compiled')))


def pytest_collection_modifyitems(items):
    def place(item):
        name = item.path.stem.removeprefix('test_')
        return LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST)

    items.sort(key=place)


def pytest_terminal_summary(terminalreporter, config):
    if config.option.markexpr == 'not slow':
        everything = "python -m pytest -m 'slow or not slow'"
        terminalreporter.write_line(f'Tests marked slow were left out. All, as in CI: {everything}', yellow=True)


@pytest.fixture(scope='session')
def labelled_folder(tmp_path_factory):
    """A folder with labels.csv and 40 images of noise, with a bright square on those labelled 1."""
    return runs.draw_folder(tmp_path_factory.mktemp('images') / 'labelled_folder')
